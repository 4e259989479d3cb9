"""Weights in half precision: effects of rounding, and masks that mean minus infinity."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engineworks.host.lazy import onnx
from engineworks.model.lower.half.graph import FloatFormat, TypedGraph
from engineworks.model.lower.half.patterns import integer_arithmetic
from engineworks.model.lower.report import Clamp
from engineworks.model.tensor_storage import tensor_values

_CHUNK = 1 << 18
_SENTINEL_SHARE = 8  # two masks and the scores stay below the headroom that `HalfLimits` requires
_BOUNDS = frozenset({("Clip", 1), ("Clip", 2), ("Max", 0), ("Max", 1), ("Min", 0), ("Min", 1)})
_SQUASHES = frozenset({"Softmax", "Hardmax", "Exp", "Sigmoid", "ArgMax"})
"""Operators that give the same for any very negative number."""

_CARRIES = frozenset({
    "Add", "Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "LogSoftmax", "Max", "Min", "Mul", "Neg", "Pad",
    "ReduceMax", "Reshape", "ScatterElements", "ScatterND", "Slice", "Split", "Squeeze", "Sub", "Tile", "Transpose",
    "Trilu", "Unsqueeze", "Where",
})  # fmt: skip


@dataclass(frozen=True)
class WeightFact:
    """One weight: largest finite magnitude; counts of elements, of nonzero ones, of those that become 0 and of those
    that become subnormal in half precision."""

    max_abs: float
    elements: int
    nonzero: int
    flushed: int
    subnormal: int


FILLED = -1


class WeightFacts(Mapping[str, WeightFact]):
    """The facts of every float weight of a graph. Each weight is read once, when needed."""

    def __init__(self, graph: TypedGraph, half: FloatFormat) -> None:
        self._graph = graph
        self._half = half
        self._known: dict[str, tuple[onnx.TensorProto, WeightFact]] = {}

    def __getitem__(self, name: str) -> WeightFact:
        tensor = self._graph.weights[name]
        known = self._known.get(name)
        if known is None or known[0] is not tensor:
            known = self._known[name] = (tensor, weight_fact(tensor_values(tensor), self._half))
        return known[1]

    def __iter__(self) -> Iterator[str]:
        return (name for name, tensor in self._graph.weights.items() if tensor.data_type == self._graph.wide)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def weight_fact(values: NDArray[Any], half: FloatFormat) -> WeightFact:
    """Count effects of half rounding on values of any shape and float dtype; non-finite ones are only elements."""
    flat = (values if values.dtype == np.float64 else np.asarray(values, dtype=np.float32)).ravel()
    largest, nonzero, flushed, small = 0.0, 0, 0, 0
    for start in range(0, flat.size, _CHUNK):  # chunks stay in the cache: twenty times faster than whole arrays
        size = np.abs(flat[start : start + _CHUNK])
        if not np.isfinite(size.max()):
            size = size[np.isfinite(size)]
        zeros = size.size - int(np.count_nonzero(size))
        below = int(np.count_nonzero(size < half.min_normal)) - zeros
        largest = max(largest, float(size.max(initial=0.0)))
        nonzero += size.size - zeros
        small += below
        flushed += int(np.count_nonzero(size <= half.min_positive / 2)) - zeros if below else 0
    return WeightFact(largest, flat.size, nonzero, flushed, small - flushed)


def scale_error(scale: NDArray[Any], half: FloatFormat) -> float:
    """Return the largest relative change of a quantization scale (any shape, any float dtype) by rounding, 0 … 1.

    Infinite if a value overflows or becomes 0.
    """
    exact = np.asarray(scale, dtype=np.float64).ravel()
    exact = exact[exact != 0]
    with np.errstate(over="ignore"):
        rounded = exact.astype(np.float32).astype(half.numpy).astype(np.float64)
    if not exact.size:
        return 0.0
    if not np.all(np.isfinite(rounded)) or np.any(rounded == 0):
        return math.inf
    return float(np.max(np.abs(rounded - exact) / np.abs(exact)))


def half_tensor(tensor: onnx.TensorProto, half: FloatFormat, name: str) -> onnx.TensorProto:
    """Return the weight rounded to the nearest half-precision value (ties to even), under another name."""
    with np.errstate(over="ignore", under="ignore"):
        rounded = tensor_values(tensor).astype(half.numpy)
    made = onnx.TensorProto(name=name, data_type=half.elem_type, dims=tensor.dims)
    made.raw_data = rounded.tobytes()
    return made


def clamp_sentinels(graph: TypedGraph, half: FloatFormat, facts: WeightFacts) -> tuple[Clamp, ...]:
    """Replace, in `graph`, constants that only mean "very far away" by ones that half precision holds.

    Bounds of Clip, Max and Min are cut to the largest finite value. Constants such as -3.4028e38 that reach a softmax
    only by additions, masks and layout become an eighth of it. The sum of several of them and scores stays finite,
    where -inf would turn a fully masked row into NaN. Infinities stay. Returns the changes, for `apply_clamps` to
    repeat them on a model made of this one.
    """
    clamps = [*_far_constants(graph, half, facts), *_far_fillings(graph, half)]
    apply_clamps(graph, half, clamps)
    return tuple(clamps)


def apply_clamps(graph: TypedGraph, half: FloatFormat, clamps: Sequence[Clamp]) -> None:
    """Apply to `graph` the clamps of another with the same nodes; uses that are no constants stay."""
    nodes = {node.name: at for at, node in enumerate(graph.nodes)}
    for clamp in clamps:
        node = graph.nodes[nodes[clamp.node]] if clamp.node in nodes else None
        if node is None:
            continue
        if clamp.position == FILLED:
            _cut_filling(node, clamp.limit)
        elif clamp.position < len(node.input) and graph.is_float(node.input[clamp.position]):
            _use_clamped(graph, node, clamp, f"{clamp.tensor}_{half.suffix}_{clamp.limit:.4g}")
    graph.forget_uses()


def _far_constants(graph: TypedGraph, half: FloatFormat, facts: WeightFacts) -> Iterator[Clamp]:
    for name in [n for n in facts if facts[n].max_abs >= half.max / 2]:
        for at, position in graph.consumers.get(name, ()):
            limit = _limit(graph, half, at, position, facts[name].max_abs)
            if limit is not None:
                yield Clamp(graph.nodes[at].name, position, name, limit)


def _limit(graph: TypedGraph, half: FloatFormat, at: int, position: int, size: float) -> float | None:
    """Return where to cut a large constant at this use, None if its value may matter."""
    node = graph.nodes[at]
    if (node.op_type, position) in _BOUNDS:
        return half.max if size > half.max else None
    if node.op_type not in _CARRIES:
        return None
    if node.op_type == "Mul" and size <= half.max:  # for activations it may be the scale, for a mask it is not
        others = [name for name in node.input if name not in graph.weights]
        if not {graph.producers.get(name) for name in others} <= integer_arithmetic(graph):
            return None
    return half.max / _SENTINEL_SHARE if all(_ends_squashed(graph, out, set()) for out in node.output) else None


def _ends_squashed(graph: TypedGraph, name: str, visited: set[str]) -> bool:
    """Return whether every path from the tensor ends in an operator that treats all very negative numbers alike."""
    if name in visited:
        return True
    visited.add(name)
    users = graph.consumers.get(name, ())
    if not users or name in graph.outputs or name in graph.captured_names:
        return False
    for at, _ in users:
        node = graph.nodes[at]
        if node.op_type in _SQUASHES or node.op_type in ("Shape", "Size"):
            continue
        if node.op_type not in _CARRIES or not all(_ends_squashed(graph, out, visited) for out in node.output if out):
            return False
    return True


def _use_clamped(graph: TypedGraph, node: onnx.NodeProto, clamp: Clamp, name: str) -> None:
    source = node.input[clamp.position]
    if source not in graph.weights:
        return
    if name not in graph.weights:
        values = graph.values(source)
        bounded = np.where(np.isfinite(values), np.clip(values, -clamp.limit, clamp.limit), values).astype(values.dtype)
        graph.weights[name] = onnx.numpy_helper.from_array(bounded, name)
        graph.types[name] = graph.wide
    node.input[clamp.position] = name


def _far_fillings(graph: TypedGraph, half: FloatFormat) -> Iterator[Clamp]:
    """Yield the same for ConstantOfShape, whose value is an attribute."""
    for node in graph.nodes:
        if node.op_type != "ConstantOfShape" or not node.attribute or node.attribute[0].t.data_type != graph.wide:
            continue
        value = float(tensor_values(node.attribute[0].t).item())
        if half.max / 2 <= abs(value) < math.inf and _ends_squashed(graph, node.output[0], set()):
            yield Clamp(node.name, FILLED, node.output[0], half.max / _SENTINEL_SHARE)


def _cut_filling(node: onnx.NodeProto, limit: float) -> None:
    tensor = node.attribute[0].t
    value = tensor_values(tensor)
    bounded = np.clip(value, -limit, limit).astype(value.dtype)
    tensor.CopyFrom(onnx.numpy_helper.from_array(bounded, tensor.name))
