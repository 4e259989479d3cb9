"""Effects of sample inputs on a model's activations: their size, and the error of half precision in each node.

Reductions next to the node measure both inside the graph, so that memory stays that of a plain run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np

from engineworks.host.lazy import onnx
from engineworks.model.graphs import set_nodes
from engineworks.model.lower.half.graph import FLOAT, HalfFormat, TypedGraph
from engineworks.model.lower.half.patterns import LAYOUT
from engineworks.model.lower.half.rules import FLOAT_PORTS
from engineworks.model.lower.half.run import Arrays, Bench, run

_DIGITS_LEFT = 128  # a number this many times the smallest one of fp16 has the precision of bf16
_AVERAGES = frozenset({"GlobalAveragePool", "ReduceMean"})
_SQUARING = frozenset({
    "GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization", "LRN", "RMSNormalization",
})  # fmt: skip
"""Operators that square their input internally: such a kernel in fp16 overflows long before the input does."""


@dataclass(frozen=True)
class Ranges:
    """Largest finite magnitude of every float32 activation, by tensor name, and of the sum behind a mean, by the mean's
    name."""

    max_abs: Mapping[str, float]
    sums: Mapping[str, float]


def observe(bench: Bench, graph: TypedGraph, stored: Mapping[str, onnx.TensorProto], feeds: Iterable[Arrays]) -> Ranges:
    """Run the fp32 graph on the samples and reduce every activation to its largest finite magnitude.

    feeds: arrays by input name, with the shapes and dtypes of the model's inputs.
    """
    watch = _Watch(graph)
    if not watch.tensors:
        return Ranges({}, {})
    session = bench.open(watch.shell, stored)
    largest = dict.fromkeys(watch.tensors, 0.0)
    sums = dict.fromkeys(watch.counts, 0.0)
    names = [*watch.tensors.values(), *(n for pair in watch.counts.values() for n in pair)]
    for sample in feeds:
        values = dict(zip(names, run(session, sample, names), strict=True))
        now = {tensor: max(float(values[stat]), 0.0) for tensor, stat in watch.tensors.items()}
        for tensor, size in now.items():
            largest[tensor] = max(largest[tensor], size)
        for tensor, (given, made) in watch.counts.items():
            sums[tensor] = max(sums[tensor], now[tensor] * float(values[given]) / max(float(values[made]), 1.0))
    return Ranges(largest, sums)


def out_of_range(graph: TypedGraph, ranges: Ranges, half: HalfFormat, headroom: float) -> dict[str, str]:
    """Return node name → why its values do not fit.

    The reason is a tensor, an inner sum or square beyond the largest value / headroom, or a tensor whose values all lie
    near the smallest one.
    """
    limit = half.max / headroom
    reasons: dict[str, str] = {}
    for at, node in enumerate(graph.nodes):
        given = [name for _, name in graph.float_inputs(at) if name in ranges.max_abs]
        made = [name for _, name in graph.float_outputs(at) if name in ranges.max_abs]
        for name in (*given, *made):
            size = ranges.max_abs[name]
            if size > limit:
                reasons.setdefault(
                    node.name, f"'{name}' reaches {size:.4g} on the samples; {half.name} ends at {half.max:.4g}"
                )
            elif 0 < size < half.min_positive * _DIGITS_LEFT:
                reasons.setdefault(node.name, f"'{name}' stays below {size:.2g}, where {half.name} loses digits")
        if node.op_type in _SQUARING and given and ranges.max_abs[given[0]] ** 2 > limit:
            reasons.setdefault(node.name, f"'{given[0]}' squared reaches {ranges.max_abs[given[0]] ** 2:.4g} inside")
        for name in made:
            if ranges.sums.get(name, 0.0) > limit:
                reasons.setdefault(node.name, f"the sum behind mean '{name}' reaches {ranges.sums[name]:.4g}")
    return reasons


class _Watch:
    """The graph with reductions next to its nodes. `tensors`: tensor → output with its magnitude; `counts`: mean →
    outputs with the number of elements before and after it."""

    def __init__(self, graph: TypedGraph) -> None:

        self.tensors: dict[str, str] = {}
        self.counts: dict[str, tuple[str, str]] = {}
        self.shell = deepcopy(graph.shell)
        nodes = [_scalar("watch:zero", 0.0), _scalar("watch:inf", float("inf"))]
        for name in graph.inputs:
            if graph.is_float(name):
                nodes += self._magnitude(name)
        for at, node in enumerate(graph.nodes):
            nodes.append(node)
            for _, name in graph.float_outputs(at):
                nodes += self._magnitude(name)
                if node.op_type in _AVERAGES:
                    nodes += self._elements(node.input[0], name)
        replace_nodes(self.shell, nodes, self._outputs())

    def _magnitude(self, name: str) -> Iterator[onnx.NodeProto]:
        """Make nodes for max |x| over the finite elements. Infinities are intended (masks) and stay."""
        a, finite, b, stat = (f"watch:{kind}:{name}" for kind in ("abs", "finite", "cut", "max"))
        self.tensors[name] = stat
        yield onnx.helper.make_node("Abs", [name], [a])
        yield onnx.helper.make_node("Less", [a, "watch:inf"], [finite])
        yield onnx.helper.make_node("Where", [finite, a, "watch:zero"], [b])
        yield onnx.helper.make_node("ReduceMax", [b], [stat], keepdims=0)

    def _elements(self, given: str, made: str) -> Iterator[onnx.NodeProto]:
        self.counts[made] = (f"watch:given:{made}", f"watch:made:{made}")
        yield onnx.helper.make_node("Size", [given], [self.counts[made][0]])
        yield onnx.helper.make_node("Size", [made], [self.counts[made][1]])

    def _outputs(self) -> Iterator[onnx.ValueInfoProto]:
        for stat in self.tensors.values():
            yield onnx.helper.make_tensor_value_info(stat, FLOAT, [])
        for pair in self.counts.values():
            yield from (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.INT64, []) for n in pair)


def own_errors(
    bench: Bench,
    graph: TypedGraph,
    stored: Mapping[str, onnx.TensorProto],
    half: HalfFormat,
    nodes: Sequence[int],
    feeds: Iterable[Arrays],
) -> dict[int, float]:
    """Return node index → the noise that half precision adds in this node alone, relative to its output: Σe² / Σy².

    Every node runs a second time on inputs and weights rounded to half precision, and its output is rounded too.
    Infinite if it overflows. Errors of earlier nodes are excluded. feeds: arrays by input name, with the shapes and
    dtypes of the model's inputs.
    """
    shell, pairs_at = _shadowed(graph, half, nodes)
    session = bench.open(shell, stored)
    totals = {at: np.zeros(2) for at in pairs_at}
    names = [name for pairs in pairs_at.values() for pair in pairs for name in pair]
    for sample in feeds:
        values = dict(zip(names, run(session, sample, names), strict=True))
        for at, pairs in pairs_at.items():
            for error, power in pairs:
                totals[at] += np.nan_to_num([float(values[error]), float(values[power])], nan=0.0, posinf=np.inf)
    return {at: _ratio(*total) for at, total in totals.items()}


def _ratio(error: float, power: float) -> float:
    if not np.isfinite(error):
        return float("inf")
    return error / power if power > 0 else (float("inf") if error else 0.0)


def _shadowed(
    graph: TypedGraph, half: HalfFormat, wanted: Sequence[int]
) -> tuple[onnx.ModelProto, dict[int, list[tuple[str, str]]]]:
    """Return the graph with a rounded copy of each of the nodes, and the outputs with error and power of each."""
    shell = deepcopy(graph.shell)
    pairs_at: dict[int, list[tuple[str, str]]] = {at: [] for at in wanted}
    nodes: list[onnx.NodeProto] = []
    rounded: set[str] = set()

    def round_once(name: str, made: str) -> str:
        if made not in rounded:
            rounded.add(made)
            nodes.append(onnx.helper.make_node("Cast", [name], [f"{made}:16"], to=half.elem_type))
            nodes.append(onnx.helper.make_node("Cast", [f"{made}:16"], [made], to=FLOAT))
        return made

    for at, node in enumerate(graph.nodes):
        nodes.append(node)
        if at not in pairs_at:
            continue
        copy = deepcopy(node)
        copy.name = f"shadow:{node.name}"
        for position, name in graph.float_inputs(at):
            if (node.op_type, position) not in FLOAT_PORTS:
                copy.input[position] = round_once(name, f"round:{name}")
        copy.output[:] = [f"shadow:{name}" if name else "" for name in node.output]
        nodes.append(copy)
        for _, name in graph.float_outputs(at):
            result = round_once(f"shadow:{name}", f"round:shadow:{name}")
            error, power = f"error:{name}", f"power:{name}"
            nodes.append(onnx.helper.make_node("Sub", [name, result], [f"diff:{name}"]))
            nodes.append(onnx.helper.make_node("ReduceSumSquare", [f"diff:{name}"], [error], keepdims=0))
            nodes.append(onnx.helper.make_node("ReduceSumSquare", [name], [power], keepdims=0))
            pairs_at[at].append((error, power))
    names = [name for pairs in pairs_at.values() for pair in pairs for name in pair]
    replace_nodes(shell, nodes, (onnx.helper.make_tensor_value_info(n, FLOAT, []) for n in names))
    return shell, pairs_at


def worst_first(graph: TypedGraph, errors: Mapping[int, float], failing: Sequence[str]) -> list[tuple[int, float]]:
    """Return nodes that the failing outputs depend on, the noisiest first."""
    needed, waiting = set(), [graph.producers[name] for name in failing if name in graph.producers]
    while waiting:
        at = waiting.pop()
        if at not in needed:
            needed.add(at)
            waiting += [graph.producers[n] for n in graph.nodes[at].input if n in graph.producers]
    ranked = [(at, error) for at, error in errors.items() if at in needed and error > 0]
    return sorted(ranked, key=lambda pair: (-pair[1], pair[0]))


def float_sources(graph: TypedGraph, at: int) -> Iterator[int]:
    """Yield the nodes that compute a node's float32 inputs, skipping those that only move values."""
    for _, name in graph.float_inputs(at):
        source = graph.producers.get(name)
        if source is not None:
            yield source
            if graph.nodes[source].op_type in LAYOUT:
                yield from float_sources(graph, source)


def _scalar(name: str, value: float) -> onnx.NodeProto:
    tensor = onnx.numpy_helper.from_array(np.asarray(value, dtype=np.float32))
    return onnx.helper.make_node("Constant", [], [name], value=tensor)


def replace_nodes(
    shell: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], outputs: Iterable[onnx.ValueInfoProto]
) -> None:
    """Replace the nodes and outputs of the model's graph, and drop inferred shapes."""
    set_nodes(shell.graph, nodes)
    del shell.graph.output[:], shell.graph.value_info[:]
    shell.graph.output.extend(outputs)
