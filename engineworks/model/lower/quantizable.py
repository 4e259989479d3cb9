"""The nodes of a model that can be quantized, to which format, and the origin of their operands."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from engineworks.errors import PatternError
from engineworks.host.lazy import onnx
from engineworks.model.graphs import names_read
from engineworks.model.lower.formats import FORMATS, Format, block_size

QUANTIZABLE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators with useful quantized kernels in TensorRT. The first two inputs are quantized."""

_PASSING = ("Identity", "Transpose")
"""Operators that change no value: a weight may lie behind them."""


@dataclass(frozen=True)
class KeptNode:
    """A node of a quantizable type that stays in high precision, and why, as half a sentence. named: the format that
    the recipe requests for it without effect; '' if it requests none, or excludes the node."""

    name: str
    op_type: str
    reason: str
    named: str = ""


@dataclass(frozen=True)
class Activation:
    """An operand computed at run time: the input's index and the tensor's name."""

    index: int
    tensor: str


@dataclass(frozen=True)
class Weight:
    """A constant operand: the input's index, its values, and how the node reads them.

    axes: order of the values' axes as the node reads them, as in `np.transpose`. channels: the node's axis with one
    scale per index, None for a single scale. names: those of the tensor on its way from the initializer (last) to the
    node (first), through Identity and Transpose. block: how many weights along the other axis share a scale, 0 for all
    of a channel.
    """

    index: int
    tensor: onnx.TensorProto
    axes: tuple[int, ...]
    channels: int | None
    names: tuple[str, ...]
    block: int = 0


@dataclass(frozen=True)
class NodePlan:
    """The quantization of one node: the format, and the operands stored in it."""

    format: Format
    operands: tuple[Activation | Weight, ...]


@dataclass(frozen=True)
class QuantizationPlan:
    """Quantized nodes by their position, and nodes of such operators that are not quantized."""

    nodes: Mapping[int, NodePlan]
    kept: tuple[KeptNode, ...]

    def without(self, tensors: Collection[str], model: onnx.ModelProto) -> QuantizationPlan:
        """Drop the nodes with activations among `tensors`, which were empty in every calibration sample."""
        nodes, kept = dict(self.nodes), list(self.kept)
        for at, plan in self.nodes.items():
            empty = next((o.tensor for o in plan.operands if isinstance(o, Activation) and o.tensor in tensors), None)
            if empty is not None:
                node = model.graph.node[at]
                reason = f"'{empty}' was empty in every calibration sample"
                kept.append(KeptNode(node_label(node), node.op_type, reason))
                del nodes[at]
        return QuantizationPlan(nodes, tuple(kept))


KEPT_BY = "kept by"
"""Start of the reason for nodes that the recipe excludes."""


class _NotQuantized(Exception):
    """Why a node stays as it is."""


Globs = Mapping[str, Sequence[str]]
"""Format → names or globs of nodes, or `op:` and a type such as `op:MatMul`."""

WORTHWHILE = "worthwhile:*"
"""What a plain precision quantizes: every node that benefits. Patterns of a recipe, '*' too, mean every node that they
name.

Depthwise convolutions do not benefit. Their few multiplications wait for memory whatever the type, and one scale for
all channels of the input costs each of them most of its steps (PP-OCRv4 recognition: 9.4 dB with them, 13.7 dB without,
for 6% more bytes). Nor do products of two activations, those of attention, because both operands must be rounded at run
time (BERT-base on an H100: 4.52 ms without them in int8, 5.24 ms with, and more noise).
"""

THIN_CHANNELS = 16
"""Convolutions with at most this many channels on one side stay out of fp8, as in NVIDIA's ModelOpt
(`_MIN_CHANNELS_FP8` of its ONNX graph_utils: their fp8 kernels are slower than fp16's). They hold little arithmetic,
and much of the noise: Fashion's two and its classifier, 22.4 dB with them in fp8, 33.6 dB without."""

ALL_WORTHWHILE_INT8: Globs = {"int8": (WORTHWHILE,)}


def plan_quantization(
    model: onnx.ModelProto, globs: Globs, keep: Sequence[str], op_types: Sequence[str], fp32: Sequence[str] = (),
    blocks: tuple[int, ...] | None = None,
) -> QuantizationPlan:  # fmt: skip
    """Plan the format of each node. Formats that quantize activations exclude `keep`, all formats exclude `fp32`.

    Raises `PatternError` for a pattern that matches no node, and for a node that two formats name.
    """
    kept_by, never = _match(model, keep, "keep"), _match(model, fp32, "fp32")
    wanted = {name: _match(model, patterns, name) for name, patterns in globs.items()}
    sources = _Sources(model)
    nodes: dict[int, NodePlan] = {}
    kept: list[KeptNode] = []
    for at, node in enumerate(model.graph.node):
        if node.op_type not in op_types or node.domain not in ("", "ai.onnx"):
            continue
        chosen, pattern = _chosen_format(node, {name: matched[at] for name, matched in wanted.items() if at in matched})
        stays = never.get(at) or (kept_by.get(at) if chosen and chosen.activations else None)
        if chosen is None or stays is not None:
            kept.append(
                KeptNode(node_label(node), node.op_type, f"{KEPT_BY} '{stays}'" if chosen else "nothing names it")
            )
            continue
        try:
            if chosen.blocks and blocks:
                chosen = replace(chosen, blocks=blocks)
            nodes[at] = NodePlan(chosen, _operands(sources, node, chosen, worthwhile=pattern == WORTHWHILE))
        except _NotQuantized as reason:
            named = "" if pattern == WORTHWHILE else chosen.name
            kept.append(KeptNode(node_label(node), node.op_type, str(reason), named))
    return QuantizationPlan(nodes, tuple(kept))


def _operands(
    sources: _Sources, node: onnx.NodeProto, chosen: Format, *, worthwhile: bool
) -> tuple[Activation | Weight, ...]:
    """Return the node's operands that the format stores. Raises `_NotQuantized`; with `worthwhile` also if it gains
    nothing."""
    if node.op_type not in chosen.operators:
        raise _NotQuantized(f"{node.op_type} has no {chosen.name}")
    if worthwhile and chosen.activations and sources.is_depthwise(node):
        raise _NotQuantized("a depthwise convolution loses more by it than it gains; name it to have it anyway")
    if worthwhile and chosen.name == "fp8" and sources.is_thin(node):
        raise _NotQuantized(f"a convolution of at most {THIN_CHANNELS} channels; name it to have it anyway")
    operands = sources.operands(node, chosen)
    if worthwhile and not any(isinstance(operand, Weight) for operand in operands):
        raise _NotQuantized("a product of two activations is slower for it; name it to have it anyway")
    return operands


def _chosen_format(node: onnx.NodeProto, matched: Mapping[str, str]) -> tuple[Format | None, str]:
    """Return the one format that names the node, if any, and its pattern; `matched`: format → pattern."""
    if not matched:
        return None, ""
    if len(matched) > 1:
        (chosen, first), (other, second) = list(matched.items())[:2]
        raise PatternError(
            f"node '{node_label(node)}' is to be {chosen} by '{first}' and {other} by '{second}'",
            hint="let one of the two globs name fewer nodes",
        )
    name, pattern = next(iter(matched.items()))
    return FORMATS[name], pattern


def _match(model: onnx.ModelProto, patterns: Sequence[str], what: str) -> dict[int, str]:
    """Return the position of each node that a pattern matches → the first such pattern."""
    first_pattern: dict[int, str] = {}
    for pattern in patterns:
        matched = [at for at, node in enumerate(model.graph.node) if matches(node, pattern)]
        if not matched:
            known = [n for node in model.graph.node for n in (node_label(node), f"op:{node.op_type}")]
            close = difflib.get_close_matches(pattern, dict.fromkeys(known), n=3, cutoff=0.5)
            names = " or ".join(f"'{name}'" for name in close)
            hint = f"did you mean {names}?" if close else "run inspect to see the names of its nodes"
            raise PatternError(f"{what}: '{pattern}' matches no node of the model", hint=hint)
        first_pattern |= {at: pattern for at in matched if at not in first_pattern}
    return first_pattern


def matches(node: onnx.NodeProto, pattern: str) -> bool:
    """Return whether a pattern of a recipe names the node: by its name, a glob, or `op:` and an operator."""
    if pattern == WORTHWHILE:
        return True
    if pattern.startswith("op:"):
        return fnmatchcase(node.op_type, pattern[3:])
    return node_label(node) == pattern or fnmatchcase(node_label(node), pattern)


def node_label(node: onnx.NodeProto) -> str:
    return str(node.name or next(filter(None, node.output), node.op_type))


class _Sources:
    """The origins of tensors: initializers, Constant nodes, other nodes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self._initializers = {t.name: t for t in graph.initializer}
        self._producers = {name: node for node in graph.node for name in node.output if name}
        values = (*graph.input, *graph.value_info, *graph.output)
        self._types = {v.name: v.type.tensor_type.elem_type for v in values}
        self._fixed = _fixed_tensors(graph)

    def operands(self, node: onnx.NodeProto, chosen: Format) -> tuple[Activation | Weight, ...]:
        """Return those of the first two inputs that the format stores. Raises `_NotQuantized` if they cannot or should
        not be."""
        operands = tuple(self._operand(node, index) for index in (0, 1))
        weights = [o for o in operands if isinstance(o, Weight)]
        if len(weights) == 2:
            raise _NotQuantized("both its operands are constant: it should have been folded")
        if node.op_type.startswith("Conv") and not isinstance(operands[1], Weight):
            raise _NotQuantized("its weights are computed at run time")
        if chosen.activations:
            return operands
        if not weights:
            raise _NotQuantized("none of its operands is a weight")
        return tuple(_in_blocks(weights[0], chosen.blocks) if chosen.blocks else weight for weight in weights)

    def is_depthwise(self, node: onnx.NodeProto) -> bool:
        """Return whether each channel of the input is convolved separately."""
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        constant = self._constant(node.input[1]) if node.op_type == "Conv" and groups > 1 else None
        return constant is not None and constant[0].dims[constant[1][1]] == 1

    def is_thin(self, node: onnx.NodeProto) -> bool:
        """Return whether it is a convolution with few input or output channels."""
        constant = self._constant(node.input[1]) if node.op_type.startswith("Conv") else None
        return constant is not None and min(constant[0].dims[axis] for axis in constant[1][:2]) <= THIN_CHANNELS

    def _operand(self, node: onnx.NodeProto, index: int) -> Activation | Weight:
        name = node.input[index]
        constant = self._constant(name)
        kind = constant[0].data_type if constant else self._types.get(name, onnx.TensorProto.FLOAT)
        if kind not in (onnx.TensorProto.FLOAT, onnx.TensorProto.UNDEFINED):
            raise _NotQuantized(f"'{name}' is {onnx.TensorProto.DataType.Name(kind).lower()}, not float32")
        if constant is None:
            return Activation(index, name)
        tensor, axes, names = constant
        if not math.prod(tensor.dims):
            raise _NotQuantized(f"its weight '{name}' is empty")
        return Weight(index, tensor, axes, _channel_axis(node, index, len(axes)), names)

    def _constant(self, name: str) -> tuple[onnx.TensorProto, tuple[int, ...], tuple[str, ...]] | None:
        """Return tensor, axes and names as in `Weight` of the constant behind a name; None for an activation."""
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


def _in_blocks(weight: Weight, sizes: Sequence[int]) -> Weight:
    """Return the weight with a scale for each block along the axis that is summed over."""
    if weight.channels is None:
        raise _NotQuantized(f"its weight '{weight.names[-1]}' is no matrix")
    shape = [weight.tensor.dims[axis] for axis in weight.axes]
    length = shape[1 - weight.channels]
    size = block_size(length, sizes)
    if size is None:
        raise _NotQuantized(f"its weight '{weight.names[-1]}' has {length} rows, no multiple of {sizes[-1]}")
    return replace(weight, block=size)


def _fixed_tensors(graph: onnx.GraphProto) -> set[str]:
    """Return tensors that depend only on weights. Nodes must be sorted."""
    fixed = {t.name for t in graph.initializer}.union(t.values.name for t in graph.sparse_initializer)
    for node in graph.node:
        used = list(names_read(node))
        if node.op_type == "Constant" or (used and fixed.issuperset(used)):
            fixed.update(node.output)
    return fixed


def _channel_axis(node: onnx.NodeProto, index: int, rank: int) -> int | None:
    """Return the axis of a weight along which the output's channels lie; None for one scale.

    The scale must not vary along an axis that is summed over. A ConvTranspose of several groups has no axis for its
    channels. Products of more than two axes have one scale, because ONNX Runtime refuses several.
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
