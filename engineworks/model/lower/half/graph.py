"""The main graph of a model for the half-precision converter: sorted, named, typed, without weights.

Weights are looked up by name and never copied with the graph. Shape inference, the opset converter and the checker read
large ones as inputs. So they do not limit the size of a model, and detached weights stay on disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engineworks.errors import ModelError
from engineworks.host.lazy import onnx
from engineworks.model.graphs import (
    constant_tensor,
    fresh_name,
    keep_named,
    names_read,
    set_nodes,
    sort_nodes,
    subgraphs,
)
from engineworks.model.lower.report import HalfType
from engineworks.model.onnx_files import opset_of, without_initializers
from engineworks.model.tensor_storage import is_external, tensor_bytes, tensor_values

FLOAT, DOUBLE = 1, 11
"""`onnx.TensorProto.FLOAT` and `DOUBLE`, so that this module's users need not import onnx for a comparison."""

_SHOWN_BYTES = 4096  # smaller tensors may be shapes, axes or scalars, which shape inference needs


@dataclass(frozen=True)
class FloatFormat:
    """A floating type: ONNX element type, largest finite value, smallest normal and smallest positive value."""

    name: str
    elem_type: int
    suffix: str
    max: float
    min_normal: float
    min_positive: float

    @property
    def numpy(self) -> np.dtype[Any]:
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16 if self.name == "bfloat16" else self.name)


@dataclass(frozen=True)
class HalfFormat(FloatFormat):
    """A 16-bit floating type."""

    name: HalfType


SINGLE = FloatFormat("float32", FLOAT, "fp32", (2 - 2.0**-23) * 2.0**127, 2.0**-126, 2.0**-149)
"""The type that float64 becomes; every other model starts in it."""

FORMATS: Mapping[HalfType, HalfFormat] = {
    "float16": HalfFormat("float16", 10, "fp16", 65504.0, 2.0**-14, 2.0**-24),
    "bfloat16": HalfFormat("bfloat16", 16, "bf16", (2 - 2.0**-7) * 2.0**127, 2.0**-126, 2.0**-133),
}


@dataclass
class TypedGraph:
    """A model taken apart.

    `shell` is the model without the main graph's initializers, which are in `weights` together with its floating
    Constant nodes. `types` maps each tensor of the main graph whose type is known to its ONNX element type. Nodes are
    in topological order and have unique names. `wide`: the type that is converted, float32, or float64 on its way to
    float32; "float" tensors here are tensors of that type.
    """

    shell: onnx.ModelProto
    weights: dict[str, onnx.TensorProto]
    types: dict[str, int] = field(default_factory=dict)
    wide: int = FLOAT

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        nodes: Sequence[onnx.NodeProto] = self.shell.graph.node
        return nodes

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        return tuple(value.name for value in self.shell.graph.input)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        return tuple(value.name for value in self.shell.graph.output)

    def opset(self) -> int:
        return opset_of(self.shell)

    @cached_property
    def producers(self) -> Mapping[str, int]:
        """Tensor → index of the node that makes it."""
        return {name: at for at, node in enumerate(self.nodes) for name in node.output if name}

    @cached_property
    def consumers(self) -> Mapping[str, Sequence[tuple[int, int]]]:
        """Tensor → (node, input position) of each use as a node's input; see `captured` for uses in subgraphs."""
        uses: dict[str, list[tuple[int, int]]] = {}
        for at, node in enumerate(self.nodes):
            for position, name in enumerate(node.input):
                if name:
                    uses.setdefault(name, []).append((at, position))
        return uses

    @cached_property
    def captured(self) -> Mapping[int, tuple[str, ...]]:
        """Index of a node with subgraphs → the main graph's tensors that these read, sorted."""
        captured = {}
        for at, node in enumerate(self.nodes):
            inner = {name for graph in subgraphs(node) for name in _outer_names(graph)}
            if any(True for _ in subgraphs(node)):
                captured[at] = tuple(
                    sorted(n for n in inner if n in self.producers or n in self.weights or n in self.inputs)
                )
        return captured

    @cached_property
    def captured_names(self) -> frozenset[str]:
        return frozenset(name for names in self.captured.values() for name in names)

    def is_float(self, name: str) -> bool:
        """Return whether the tensor has the type that is converted."""
        return bool(name) and self.types.get(name) == self.wide

    def float_inputs(self, at: int) -> list[tuple[int, str]]:
        return [(i, name) for i, name in enumerate(self.nodes[at].input) if self.is_float(name)]

    def float_outputs(self, at: int) -> list[tuple[int, str]]:
        return [(i, name) for i, name in enumerate(self.nodes[at].output) if self.is_float(name)]

    def values(self, name: str) -> NDArray[Any]:
        """Return the weight as an array of its stored shape and dtype."""
        return tensor_values(self.weights[name])

    def forget_uses(self) -> None:
        """Clear cached uses; call it after changing names of inputs."""
        for name in ("producers", "consumers", "captured", "captured_names"):
            self.__dict__.pop(name, None)


def split_model(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, onnx.TensorProto]]:
    """Return the model without the main graph's initializers, and these by name. Only the former is a copy."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    shell = without_initializers(model)
    keep_named(shell.graph.input, lambda name: name not in weights)  # an old exporter lists weights among the inputs
    return shell, weights


def infer_types(shell: onnx.ModelProto, weights: Mapping[str, onnx.TensorProto]) -> dict[str, int]:
    """Return tensor → ONNX element type, for every tensor of the main graph whose type can be inferred."""
    shown = shown_model(shell, weights)
    try:
        typed = onnx.shape_inference.infer_shapes(shown, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError):
        # A wrong shape somewhere (e.g. stale value_info) must not hide the types of all the rest.
        typed = onnx.shape_inference.infer_shapes(shown, strict_mode=False, data_prop=False)
    types = {name: int(tensor.data_type) for name, tensor in weights.items()}
    for value in (*typed.graph.value_info, *typed.graph.output, *typed.graph.input):
        if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type:
            types[value.name] = value.type.tensor_type.elem_type
    return types


def shown_model(shell: onnx.ModelProto, weights: Mapping[str, onnx.TensorProto]) -> onnx.ModelProto:
    """Return the model with its small weights, and with inputs of the right type and shape in place of large ones."""
    shown = deepcopy(shell)
    for name, tensor in weights.items():
        if tensor_bytes(tensor) < _SHOWN_BYTES and not is_external(tensor):
            shown.graph.initializer.append(tensor)
        else:
            shown.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
    return shown


def complete_model(shell: onnx.ModelProto, weights: Mapping[str, onnx.TensorProto]) -> onnx.ModelProto:
    """Reassemble a model from its shell and those of the weights that something uses, in their order."""

    model = deepcopy(shell)
    used = {name for node in model.graph.node for name in names_read(node)} | {v.name for v in model.graph.output}
    model.graph.initializer.extend(tensor for name, tensor in weights.items() if name in used)
    return model


def _outer_names(graph: onnx.GraphProto) -> set[str]:
    """Return tensors that a subgraph reads and does not make."""
    own = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    own |= {name for node in graph.node for name in node.output}
    read = {name for node in graph.node for name in node.input if name} | {v.name for v in graph.output}
    for node in graph.node:
        for inner in subgraphs(node):
            read |= _outer_names(inner)
    return read - own


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
    keep_named(shell.graph.input, lambda name: name not in weights)
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
