"""Which nodes of a model can compute in int8, and where each of their operands comes from."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from engineworks.errors import LoweringError
from engineworks.model.graphs import names_read

if TYPE_CHECKING:
    import onnx

QUANTIZABLE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators with int8 kernels worth the name in TensorRT. The first two inputs are quantized."""

_PASSING = ("Identity", "Transpose")
"""Operators that change no value: a weight is looked for behind them."""


@dataclass(frozen=True)
class KeptNode:
    """A node of a quantizable type that stays in high precision, and why, as half a sentence."""

    name: str
    op_type: str
    reason: str


@dataclass(frozen=True)
class Activation:
    """An operand that is computed at run time: the input's index and the tensor's name."""

    index: int
    tensor: str


@dataclass(frozen=True)
class Weight:
    """A constant operand: the input's index, its values, and how the node sees them.

    axes: order of the values' axes as the node sees them, as in `np.transpose`. channels: which of the node's axes has
    a scale of its own per index, None where one scale has to do. names: those that the tensor goes by on its way from
    the initializer (last) to the node (first), through Identity and Transpose.
    """

    index: int
    tensor: onnx.TensorProto
    axes: tuple[int, ...]
    channels: int | None
    names: tuple[str, ...]


@dataclass(frozen=True)
class Int8Plan:
    """What becomes int8: the operands of each node by its position, and the nodes that do not."""

    operands: Mapping[int, tuple[Activation | Weight, ...]]
    kept: tuple[KeptNode, ...]


class _NotQuantized(Exception):
    """Why a node stays as it is."""


def plan_int8(model: onnx.ModelProto, keep: Sequence[str], op_types: Sequence[str]) -> Int8Plan:
    kept_by = _match_kept(model, keep)
    sources = _Sources(model)
    operands: dict[int, tuple[Activation | Weight, ...]] = {}
    kept: list[KeptNode] = []
    for at, node in enumerate(model.graph.node):
        if node.op_type not in op_types or node.domain not in ("", "ai.onnx"):
            continue
        try:
            if at in kept_by:
                raise _NotQuantized(f"kept by '{kept_by[at]}'")
            operands[at] = sources.operands(node)
        except _NotQuantized as reason:
            kept.append(KeptNode(node_label(node), node.op_type, str(reason)))
    return Int8Plan(operands, tuple(kept))


def _match_kept(model: onnx.ModelProto, keep: Sequence[str]) -> dict[int, str]:
    """Position of each node that stays in high precision → the entry of `keep` that says so."""
    found: dict[int, str] = {}
    for pattern in keep:
        matched = [at for at, node in enumerate(model.graph.node) if _matches(node, pattern)]
        if not matched:
            known = [n for node in model.graph.node for n in (node_label(node), f"op:{node.op_type}")]
            close = difflib.get_close_matches(pattern, dict.fromkeys(known), n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'?" if close else "run inspect to see the names of its nodes"
            raise LoweringError(f"keep: '{pattern}' matches no node of the model", hint=hint)
        found |= {at: pattern for at in matched if at not in found}
    return found


def _matches(node: onnx.NodeProto, pattern: str) -> bool:
    if pattern.startswith("op:"):
        return fnmatchcase(node.op_type, pattern[3:])
    return node_label(node) == pattern or fnmatchcase(node_label(node), pattern)


def node_label(node: onnx.NodeProto) -> str:
    return str(node.name or next(filter(None, node.output), node.op_type))


class _Sources:
    """Where tensors come from: initializers, Constant nodes, other nodes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self._initializers = {t.name: t for t in graph.initializer}
        self._producers = {name: node for node in graph.node for name in node.output if name}
        values = (*graph.input, *graph.value_info, *graph.output)
        self._types = {v.name: v.type.tensor_type.elem_type for v in values}
        self._fixed = _fixed_tensors(graph)

    def operands(self, node: onnx.NodeProto) -> tuple[Activation | Weight, ...]:
        """The first two inputs of the node. Raises `_NotQuantized` where they can not or should not be int8."""
        found = tuple(self._operand(node, index) for index in (0, 1))
        weights = [o for o in found if isinstance(o, Weight)]
        if len(weights) == 2:
            raise _NotQuantized("both its operands are constant: it should have been folded")
        if node.op_type.startswith("Conv") and not isinstance(found[1], Weight):
            raise _NotQuantized("its weights are computed at run time")
        return found

    def _operand(self, node: onnx.NodeProto, index: int) -> Activation | Weight:
        import onnx

        name = node.input[index]
        found = self._constant(name)
        kind = found[0].data_type if found else self._types.get(name, onnx.TensorProto.FLOAT)
        if kind not in (onnx.TensorProto.FLOAT, onnx.TensorProto.UNDEFINED):
            raise _NotQuantized(f"'{name}' is {onnx.TensorProto.DataType.Name(kind).lower()}, not float32")
        if found is None:
            return Activation(index, name)
        tensor, axes, names = found
        if not math.prod(tensor.dims):
            raise _NotQuantized(f"its weight '{name}' is empty")
        return Weight(index, tensor, axes, _channel_axis(node, index, len(axes)), names)

    def _constant(self, name: str) -> tuple[onnx.TensorProto, tuple[int, ...], tuple[str, ...]] | None:
        """Tensor, axes and names as in `Weight` of what lies behind a name; None for an activation."""
        names, transposes = [name], []
        while (producer := self._producers.get(names[-1])) is not None and producer.op_type in _PASSING:
            names.append(producer.input[0])
            if producer.op_type == "Transpose":
                transposes.append(next((tuple(a.ints) for a in producer.attribute if a.name == "perm"), None))
        tensor = self._initializers.get(names[-1])
        if producer is not None and producer.op_type == "Constant":
            tensor = next((a.t for a in producer.attribute if a.name == "value"), None)
        if tensor is not None:
            axes = tuple(range(len(tensor.dims)))
            for perm in reversed(transposes):
                axes = tuple(axes[i] for i in perm) if perm else axes[::-1]
            return tensor, axes, tuple(names)
        if producer is not None and producer.op_type == "DequantizeLinear":
            raise _NotQuantized(f"'{name}' is quantized already")
        if names[-1] in self._fixed:
            raise _NotQuantized(f"'{name}' is a constant that was not folded")
        return None


def _fixed_tensors(graph: onnx.GraphProto) -> set[str]:
    """Tensors that depend on weights alone: weights in all but form. Nodes must be sorted."""
    fixed = {t.name for t in graph.initializer}.union(t.values.name for t in graph.sparse_initializer)
    for node in graph.node:
        used = list(names_read(node))
        if node.op_type == "Constant" or (used and fixed.issuperset(used)):
            fixed.update(node.output)
    return fixed


def _channel_axis(node: onnx.NodeProto, index: int, rank: int) -> int | None:
    """Axis of a weight along which the output's channels lie; None where one scale has to do for all of it.

    The scale must not vary along an axis that is summed over. A ConvTranspose of several groups has no axis for its
    channels; products of more than two axes have one scale, because ONNX Runtime refuses several.
    """
    attributes = {a.name: a.i for a in node.attribute}
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if attributes.get("group", 1) == 1 else None
    if rank != 2:
        return None
    if index == 0:
        return 1 if attributes.get("transA") else 0
    return 0 if attributes.get("transB") else 1
