"""Models that do not give the same answer twice: random operators, and layers left in training mode.

A seed does not make an operator repeatable: it fixes the sequence, and every run takes the next numbers of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING

from engineworks.errors import ModelError
from engineworks.host.lazy import onnx
from engineworks.model.graphs import names_read, node_label, subgraphs
from engineworks.model.onnx_files import opset_of
from engineworks.model.opset import inline_functions, shortened

if TYPE_CHECKING:
    Constants = Mapping[str, onnx.TensorProto]

RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
_DROPOUT_BY_INPUT, _BATCH_NORM_BY_ATTRIBUTE, _WITHOUT_IS_TEST = 12, 14, 7
"""Opsets from which on training mode is an input of Dropout, an attribute of BatchNormalization, and neither's
`is_test`."""


def check_repeatable(model: onnx.ModelProto, where: str) -> None:
    """Raises `ModelError` naming the nodes that draw random numbers or are in training mode, in branches, bodies and
    functions too. Nodes that no output needs, and branches that are never taken, do not count."""
    shown = model
    if model.functions:
        shown = deepcopy(model)
        shown = inline_functions(shown)
    opset, random, training = opset_of(shown), list[str](), list[str]()
    for node, constants in _used(shown.graph, {}):
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type in RANDOM:
            random.append(f"'{node.op_type}' at {node_label(node)}")
        elif _in_training(node, opset, constants):
            training.append(f"'{node.op_type}' at {node_label(node)}")
    if training:
        raise ModelError(
            f"{where}: the model is in training mode: {shortened(training)}",
            hint="export it in evaluation mode (PyTorch: model.eval())",
        )
    if random:
        raise ModelError(
            f"{where}: random numbers are drawn by {shortened(random)}: no two runs could be compared",
            hint="make the noise an input of the model",
        )


def _used(graph: onnx.GraphProto, outer: Constants) -> Iterator[tuple[onnx.NodeProto, Constants]]:
    """The nodes that the graph's outputs depend on, in the order they have, each with the constants that it sees."""
    constants = {**outer, **_constants(graph)}
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    open_names, used = [value.name for value in graph.output], set[int]()
    while open_names:
        index = makers.get(open_names.pop())
        if index is not None and index not in used:
            used.add(index)
            open_names += _read(graph.node[index], constants)
    for index in sorted(used):
        yield graph.node[index], constants
        for inner in _taken(graph.node[index], constants):
            yield from _used(inner, constants)


def _read(node: onnx.NodeProto, constants: Constants) -> Iterator[str]:
    """What the node reads, without what only branches read that are never taken."""
    yield from node.input
    for inner in _taken(node, constants):
        yield from (value.name for value in inner.output)
        for inner_node in inner.node:
            yield from names_read(inner_node)


def _taken(node: onnx.NodeProto, constants: Constants) -> Iterator[onnx.GraphProto]:
    """The graphs inside the node that may run: of an If whose condition is constant, one."""
    known = _truth(node.input[0], constants) if node.op_type == "If" and node.input else None
    if known is None:
        yield from subgraphs(node)
    else:
        taken = "then_branch" if known else "else_branch"
        yield from (attribute.g for attribute in node.attribute if attribute.name == taken)


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Initializers and tensors of Constant nodes by name, through Identity too. Expects sorted nodes for the latter."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
        elif node.op_type == "Identity" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
    return constants


def _in_training(node: onnx.NodeProto, opset: int, constants: Constants) -> bool:
    """Whether a Dropout drops or a BatchNormalization takes the statistics of its own batch. Where only a run can show
    it (training mode is computed, or an input of the model), no; folding then finds it by running the model twice."""
    if node.op_type not in ("Dropout", "BatchNormalization"):
        return False
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if opset < _WITHOUT_IS_TEST:
        return not attributes.get("is_test", 0)
    if node.op_type == "BatchNormalization":
        by_outputs = sum(1 for name in node.output if name) > 1
        return bool(attributes.get("training_mode", 0)) if opset >= _BATCH_NORM_BY_ATTRIBUTE else by_outputs
    if opset < _DROPOUT_BY_INPUT or len(node.input) < 3 or not _truth(node.input[2], constants):
        return False
    return _truth(node.input[1], constants) is not False  # a ratio of 0 drops nothing


def _truth(name: str, constants: Constants) -> bool | None:
    """Whether the constant's one value is not zero; None where it is not known."""
    if name not in constants or onnx.external_data_helper.uses_external_data(constants[name]):
        return None
    value = onnx.numpy_helper.to_array(constants[name])
    return bool(value.reshape(-1)[0]) if value.size == 1 else None
