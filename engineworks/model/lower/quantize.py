"""Explicit Q/DQ: QuantizeLinear and DequantizeLinear around the operands of convolutions and products.

Activations (int8, fp8): one scale for a tensor, one pair of nodes for all its consumers of that format. Weights:
quantized initializers and DequantizeLinear, with one scale for each output channel (int8), for all (fp8) or for each
block of a channel (int4). Biases and everything else stay fp32. Scales are fp32 initializers called `<tensor>_scale`,
so that a later pass can convert the unquantized rest to fp16.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engineworks.errors import LoweringError, PrecisionError
from engineworks.host.lazy import onnx
from engineworks.model.calibrate.ranges import Ranges
from engineworks.model.graphs import copy_fields, fresh_name, names_read
from engineworks.model.lower.formats import (
    FORMATS,
    Format,
    QuantizedWeight,
    quantize_weight,
    quantize_weight_fp8,
    quantize_weight_int4,
)
from engineworks.model.lower.quantizable import (
    ALL_WORTHWHILE_INT8,
    QUANTIZABLE,
    Activation,
    Globs,
    KeptNode,
    Weight,
    node_label,
    plan_quantization,
)
from engineworks.model.onnx_files import opset_of


@dataclass(frozen=True)
class Quantized:
    """The converted model and an account of it.

    formats: quantized nodes → format. Also the nodes that could be quantized but are not, and the tensors that became
    smaller. Nodes without a name are called by their first output.
    """

    model: onnx.ModelProto
    quantized_nodes: tuple[str, ...]
    kept_nodes: tuple[KeptNode, ...]
    activations: tuple[str, ...]
    weights: tuple[str, ...]
    formats: Mapping[str, str]


def tensors_to_calibrate(
    model: onnx.ModelProto, keep: Sequence[str] = (), *, op_types: Sequence[str] = QUANTIZABLE
) -> tuple[str, ...]:
    """Return activations whose ranges `quantize` may need for any choice of nodes, in the order of the graph. Weights
    need not be loaded."""
    named = {"int8": ("op:*",)}
    operands = (o for n in plan_quantization(model, named, keep, op_types).nodes.values() for o in n.operands)
    return tuple(dict.fromkeys(operand.tensor for operand in operands if isinstance(operand, Activation)))


def quantize(
    model: onnx.ModelProto,
    ranges: Ranges | None,
    *,
    globs: Globs = ALL_WORTHWHILE_INT8,
    keep: Sequence[str] = (),
    fp32: Sequence[str] = (),
    op_types: Sequence[str] = QUANTIZABLE,
    blocks: tuple[int, ...] | None = None,
) -> Quantized:
    """Make a new model in which the nodes that `globs` names have quantized operands.

    `model` (fp32, sorted, weights in memory) stays unchanged, and is never serialized, because it may be larger than 2
    GB. `ranges` may be None if only weights are quantized. globs: format → nodes. keep, fp32: nodes that stay in high
    precision, for formats with activations and for all. They are names or globs of names, or `op:` and a type such as
    `op:MatMul`. blocks: instead of those of the formats that have any.

    Raises `LoweringError` for an older opset than the formats need (`raise_opset_for`), an entry that matches no node,
    a node that two formats name, an activation without a range, and a weight that is not finite or not loaded.
    """
    plan = plan_quantization(model, globs, keep, op_types, fp32, blocks).without(ranges.empty if ranges else (), model)
    _check_opset(model, {node.format.name: node.format for node in plan.nodes.values()}.values())
    writer = _Writer(model, ranges)
    for at, node in enumerate(model.graph.node):
        writer.add(node, plan.nodes[at].operands, plan.nodes[at].format) if at in plan.nodes else writer.add(node)
    return Quantized(
        model=writer.finish(),
        quantized_nodes=tuple(node_label(model.graph.node[at]) for at in plan.nodes),
        kept_nodes=plan.kept,
        activations=tuple(dict.fromkeys(tensor for tensor, _ in writer.activations)),
        weights=tuple(dict.fromkeys(tensor for tensor, *_ in writer.weights)),
        formats={node_label(model.graph.node[at]): node.format.name for at, node in plan.nodes.items()},
    )


def raise_opset_for(model: onnx.ModelProto, globs: Globs) -> onnx.ModelProto:
    """Return the model, raised if necessary to the first opset that has all formats of `globs`.

    Raises `LoweringError` if ONNX's version converter cannot do it.
    """

    from engineworks.model.lower.half.graph import complete_model, typed_graph

    needed = max((FORMATS[name].opset for name in globs), default=0)
    if opset_of(model) >= needed:
        return model
    named = deepcopy(model)
    graph = typed_graph(name_nodes(named), minimum_opset=needed)
    raised = complete_model(graph.shell, graph.weights)
    _check_opset(raised, [FORMATS[name] for name in globs])
    return raised


def name_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Name unnamed nodes, in place, as messages and globs call them; returns the model."""
    for node in model.graph.node:
        node.name = node_label(node)
    return model


def _check_opset(model: onnx.ModelProto, formats: Iterable[Format]) -> None:
    opset = opset_of(model)
    for format_ in formats:
        if opset < format_.opset:
            raise PrecisionError(
                f"the model is of opset {opset}; {format_.name} needs {format_.opset}, and it could not be raised",
                hint=f"export it with opset {format_.opset} or later",
            )


class _Writer:
    """Builds the new model node by node. Names are assigned in the order of the graph, so that they never vary."""

    def __init__(self, model: onnx.ModelProto, ranges: Ranges | None) -> None:
        self._source = model
        self._ranges = ranges
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._taken = _all_names(model.graph)
        self._replaced: set[str] = set()
        self.activations: dict[tuple[str, str], str] = {}
        self.weights: dict[tuple[str, tuple[int, ...], int | None, str], str] = {}

    def add(
        self, node: onnx.NodeProto, operands: Iterable[Activation | Weight] = (), chosen: Format = FORMATS["int8"]
    ) -> None:
        """Append the node, its `operands` read from the format."""

        copy = deepcopy(node)
        for operand in operands:
            made = self._weight(operand, chosen) if isinstance(operand, Weight) else self._activation(operand, chosen)
            copy.input[operand.index] = made
        self._nodes.append(copy)

    def _activation(self, operand: Activation, chosen: Format) -> str:
        """Return the name of the tensor after Q and DQ, which precede its first consumer of this format."""
        tensor = operand.tensor
        key = tensor, chosen.name
        if key not in self.activations:
            observed = self._ranges.tensors.get(tensor) if self._ranges else None
            if observed is None:
                raise LoweringError(
                    f"activation '{tensor}' has no calibration range",
                    hint="calibrate this model again, with the same 'keep'",
                )
            parameters = self._parameters(tensor, np.asarray(chosen.scale_of(observed)), chosen)
            quantized, dequantized = self._unique(f"{tensor}_quantized"), self._unique(f"{tensor}_dequantized")
            self._append_node("QuantizeLinear", tensor, [tensor, *parameters], quantized)
            self._append_node("DequantizeLinear", tensor, [quantized, *parameters], dequantized)
            self.activations[key] = dequantized
        return self.activations[key]

    def _weight(self, operand: Weight, chosen: Format) -> str:
        """Return the name of the weight after DQ; nodes that use the same channels of the same weight share it."""
        tensor = operand.names[-1]
        stored = "int8" if chosen.name == "int8_weights" else chosen.name
        key = tensor, operand.axes, operand.channels, stored
        self._replaced.update(operand.names)
        if key not in self.weights:
            weight = np.ascontiguousarray(_values(operand.tensor, tensor).transpose(operand.axes))
            made = _quantized_weight(weight, operand, chosen, tensor)
            quantized, dequantized = self._unique(f"{tensor}_quantized"), self._unique(f"{tensor}_dequantized")
            self._initializers.append(chosen.tensor(made.values, quantized))
            parameters = self._parameters(tensor, made.scale, chosen)
            layout = {"axis": made.axis, "block_size": made.block or None}
            self._append_node("DequantizeLinear", tensor, [quantized, *parameters], dequantized, **layout)
            self.weights[key] = dequantized
        return self.weights[key]

    def _parameters(self, tensor: str, scale: NDArray[np.float32], chosen: Format) -> tuple[str, str]:
        """Return names of new initializers for scale (fp32, [] or [channels]) and zero point (zeros alike)."""
        names = self._unique(f"{tensor}_scale"), self._unique(f"{tensor}_zero_point")
        self._initializers.append(onnx.numpy_helper.from_array(scale, names[0]))
        self._initializers.append(chosen.zero_point(scale.shape, names[1]))
        return names

    def _append_node(self, op_type: str, tensor: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        name = self._unique(f"{tensor}_{op_type}")
        self._nodes.append(onnx.helper.make_node(op_type, inputs, [output], name=name, **attributes))

    def _unique(self, name: str) -> str:
        return fresh_name(name, self._taken, first=2)

    def finish(self) -> onnx.ModelProto:
        """Return the new model, without unused weights and nodes that only passed them on."""
        graph = self._source.graph
        used = {output.name for output in graph.output}
        nodes = []
        for node in reversed(self._nodes):
            if used.isdisjoint(node.output) and self._replaced.issuperset(node.output):
                continue
            used.update(names_read(node))
            nodes.append(node)
        gone = self._replaced - used
        result = onnx.ModelProto()
        copy_fields(self._source, result, but={"graph"})
        copy_fields(graph, result.graph, but={"node", "initializer", "input", "value_info"})
        result.graph.node.extend(reversed(nodes))
        result.graph.initializer.extend(t for t in graph.initializer if t.name not in gone)
        result.graph.initializer.extend(self._initializers)
        result.graph.input.extend(value for value in graph.input if value.name not in gone)
        result.graph.value_info.extend(value for value in graph.value_info if value.name not in gone)
        return result


def _quantized_weight(weight: NDArray[np.float32], operand: Weight, chosen: Format, name: str) -> QuantizedWeight:
    if chosen.name == "fp8":
        return QuantizedWeight(*quantize_weight_fp8(weight, name), axis=None)
    if chosen.blocks:
        assert operand.channels is not None  # the plan leaves others unquantized
        axis = 1 - operand.channels
        return QuantizedWeight(*quantize_weight_int4(weight, axis, operand.block, name), axis, operand.block)
    return QuantizedWeight(*quantize_weight(weight, operand.channels, name), axis=operand.channels)


def _values(tensor: onnx.TensorProto, name: str) -> NDArray[np.float32]:
    if onnx.external_data_helper.uses_external_data(tensor):
        raise LoweringError(f"the values of weight '{name}' are not loaded", hint="load the model with its weights")
    values: NDArray[np.float32] = onnx.numpy_helper.to_array(tensor)
    return values


def _all_names(graph: onnx.GraphProto) -> set[str]:
    """Return every name of a tensor or node of the main graph, and every name that its subgraphs use."""
    names = {value.name for part in (graph.input, graph.output, graph.initializer) for value in part}
    for node in graph.node:
        names.update((node.name, *node.output, *names_read(node)))
    return names
