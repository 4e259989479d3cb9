"""Takes a model apart for conversion: functions inlined, nodes sorted and named, opset raised, constants set aside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from engineworks.errors import ModelError
from engineworks.host.lazy import onnx
from engineworks.model.graphs import constant_tensor, fresh_name, set_nodes, sort_nodes, subgraphs
from engineworks.model.lower.half.graph import TypedGraph, drop_inputs, infer_types, shown_model, split_model
from engineworks.model.onnx_files import opset_of
from engineworks.model.tensor_storage import is_external

_OPSET_OF_CASTS = 13  # for a model that has only other domains' operators


def typed_graph(model: onnx.ModelProto, *, minimum_opset: int = 0) -> TypedGraph:
    """Take a model apart; it stays unchanged. Local functions are inlined, nodes sorted and named.

    Below `minimum_opset` the version converter is tried. If it fails, or there are subgraphs (which it does not
    convert), the model keeps its opset. Raises `ModelError` for weights that were not loaded and for cycles.
    """
    import onnx.inliner

    shell, weights = split_model(model)
    _check_loaded(weights.values())
    shell.ir_version = max(shell.ir_version, 4)  # before it, weights had to be inputs as well
    if not opset_of(shell):
        shell.opset_import.add(domain="", version=max(minimum_opset, _OPSET_OF_CASTS))
    if shell.functions:
        shell = _without_shown(onnx.inliner.inline_local_functions(shown_model(shell, weights)), weights)
    sort_nodes(shell.graph)
    if opset_of(shell) < minimum_opset and not any(True for node in shell.graph.node for _ in subgraphs(node)):
        shell = _raise_opset(shell, weights, minimum_opset)
    _detach_constants(shell, weights)
    _name_nodes(shell.graph)
    shell.ir_version = max(shell.ir_version, onnx.helper.find_min_ir_version_for(shell.opset_import, True))
    return TypedGraph(shell, weights, infer_types(shell, weights))


def _without_shown(model: onnx.ModelProto, weights: dict[str, onnx.TensorProto]) -> onnx.ModelProto:
    """Undo `shown_model` on a pass's result; initializers that the pass added become weights."""
    for tensor in model.graph.initializer:
        weights.setdefault(tensor.name, tensor)
    shell, _ = split_model(model)
    drop_inputs(shell.graph, set(weights))
    return shell


def _check_loaded(tensors: Iterable[onnx.TensorProto]) -> None:
    for tensor in tensors:
        if is_external(tensor) and not any(
            e.key == "location" and e.value.startswith("/") for e in tensor.external_data
        ):
            raise ModelError(
                f"weight '{tensor.name}' refers to external data that was not loaded",
                hint="load the model with its weights",
            )


def _raise_opset(shell: onnx.ModelProto, weights: dict[str, onnx.TensorProto], minimum: int) -> onnx.ModelProto:
    from onnx import version_converter

    try:
        raised = version_converter.convert_version(shown_model(shell, weights), minimum)
    except (RuntimeError, ValueError, IndexError, version_converter.ConvertError):
        return shell
    return _without_shown(raised, weights)


def _detach_constants(shell: onnx.ModelProto, weights: dict[str, onnx.TensorProto]) -> None:
    """Move the main graph's floating Constants to the weights, except one that is itself a graph output."""
    outputs = {value.name for value in shell.graph.output}
    rest = []
    for node in shell.graph.node:
        tensor = constant_tensor(node) if outputs.isdisjoint(node.output) else None
        if tensor is None or tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
            rest.append(node)
            continue
        weights[tensor.name] = tensor
    set_nodes(shell.graph, rest)


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a unique name: its own, its first output's, or one with a number."""
    counts = Counter(node.name for node in graph.node)
    taken = {name for name, count in counts.items() if name and count == 1}
    for at, node in enumerate(graph.node):
        if node.name in taken and counts[node.name] == 1:
            continue
        node.name = fresh_name(node.name or f"{node.op_type}_{at}", taken)
