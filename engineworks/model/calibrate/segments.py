"""A model cut into consecutive pieces, so that only a few of the wanted tensors are in memory at a time.

ONNX Runtime keeps every graph output until the end of a run: with all activations as outputs, a batch needs them all at
once. With segments, each batch still runs every node once, and a segment's tensors are counted and freed before the
next one runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from engineworks.host.lazy import onnx
from engineworks.model.graphs import names_read
from engineworks.model.lower.half.graph import shown_model, split_model

TENSORS_PER_SEGMENT = 8
"""Wanted tensors of one segment. Fewer save little memory and cost fusions and calls."""

MAX_SEGMENTS = 16
"""More would only add sessions, each with its own threads."""


@dataclass(frozen=True)
class Segment:
    """Nodes `start` to `stop` of the graph. `inputs` and `outputs` are the tensors shared with other segments."""

    start: int
    stop: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def plan_segments(
    model: onnx.ModelProto,
    wanted: Sequence[str],
    types: Mapping[str, int],
    *,
    tensors_per_segment: int = TENSORS_PER_SEGMENT,
) -> tuple[Segment, ...]:
    """Plan segments that together hold every node that a wanted tensor needs, cut where the fewest tensors cross.

    `wanted` are outputs of nodes of the main graph, `types` as from `tensor_types`. No cut is made where a tensor of
    unknown type would cross; a graph whose nodes are not sorted stays whole.
    """
    graph = model.graph
    uses = [list(names_read(node)) for node in graph.node]
    made_at = {name: at for at, node in enumerate(graph.node) for name in node.output if name}
    if not all(made_at.get(name, -1) < at for at, names in enumerate(uses) for name in names):
        return (_segment(model, uses, made_at, (0, len(uses), len(uses)), wanted),)
    stop = max((made_at[name] for name in wanted), default=-1) + 1
    wanted_up_to = list(accumulate(len(set(wanted).intersection(node.output)) for node in graph.node[:stop]))
    cuts = _choose_cuts(wanted_up_to, _crossing_costs(uses[:stop], made_at, types), tensors_per_segment)
    bounds = [0, *cuts, stop] if stop else []
    return tuple(_segment(model, uses, made_at, (start, end, stop), wanted) for start, end in pairwise(bounds))


def _segment(
    model: onnx.ModelProto,
    uses: Sequence[Sequence[str]],
    made_at: Mapping[str, int],
    bounds: tuple[int, int, int],
    wanted: Sequence[str],
) -> Segment:
    """Return the segment from the first to the second of `bounds`; the third is where the last segment ends."""
    start, end, stop = bounds
    given = {value.name for value in model.graph.input} - {t.name for t in model.graph.initializer}
    used = dict.fromkeys(name for names in uses[start:end] for name in names)
    leaving = {name for names in uses[end:stop] for name in names}.union(wanted)
    made = [name for node in model.graph.node[start:end] for name in node.output if name]
    inputs = tuple(name for name in used if name in given or made_at.get(name, end) < start)
    return Segment(start, end, inputs, tuple(name for name in made if name in leaving))


def segment_model(model: onnx.ModelProto, segment: Segment, types: Mapping[str, int]) -> onnx.ModelProto:
    """Return the ONNX model of one segment: its nodes, the weights that they use, its inputs (typed, of any shape)."""
    part = onnx.ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    graph = part.graph
    graph.name = f"{model.graph.name}[{segment.start}:{segment.stop}]"
    graph.node.extend(model.graph.node[segment.start : segment.stop])
    used = {name for node in graph.node for name in names_read(node)}
    graph.initializer.extend(t for t in model.graph.initializer if t.name in used)
    graph.sparse_initializer.extend(t for t in model.graph.sparse_initializer if t.values.name in used)
    given = {value.name: value for value in model.graph.input}
    for name in segment.inputs:
        graph.input.append(given.get(name) or onnx.helper.make_tensor_value_info(name, types[name], None))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in segment.outputs)
    return part


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return ONNX element types by tensor name: those written in the model, and those that shape inference finds."""
    return {name: tensor.elem_type for name, tensor in inferred_tensors(model).items()}


def inferred_tensors(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """Return types, and known shapes, by tensor name, without tensors of unknown element type."""
    inferred = onnx.shape_inference.infer_shapes(shown_model(*split_model(model)))
    values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    return {value.name: value.type.tensor_type for value in values if value.type.tensor_type.elem_type}


def _crossing_costs(
    uses: Sequence[Sequence[str]], made_at: Mapping[str, int], types: Mapping[str, int]
) -> list[int | None]:
    """Return, for each position before a node, how many tensors a cut there would carry over; None where a cut is not
    allowed."""
    last_use = {name: at for at, names in enumerate(uses) for name in names if name in made_at}
    starts = Counter(made_at[name] + 1 for name in last_use)
    ends = Counter(at + 1 for at in last_use.values())
    bad_starts = Counter(made_at[name] + 1 for name in last_use if name not in types)
    bad_ends = Counter(at + 1 for name, at in last_use.items() if name not in types)
    costs: list[int | None] = []
    crossing = untyped = 0
    for at in range(len(uses)):
        crossing += starts[at] - ends[at]
        untyped += bad_starts[at] - bad_ends[at]
        costs.append(None if untyped else crossing)
    return costs


def _choose_cuts(wanted_up_to: Sequence[int], costs: Sequence[int | None], tensors_per_segment: int) -> list[int]:
    """Return positions to cut at: one per about `tensors_per_segment` wanted tensors, within a quarter of that
    distance."""
    total = wanted_up_to[-1] if wanted_up_to else 0
    size = max(tensors_per_segment, -(-total // MAX_SEGMENTS))
    slack = size // 4
    cuts = []
    for goal in range(size, total - slack, size):
        places = [
            (cost, abs(wanted_up_to[at - 1] - goal), at)
            for at, cost in enumerate(costs)
            if at and cost is not None and abs(wanted_up_to[at - 1] - goal) <= slack
        ]
        if places:
            cuts.append(min(places)[2])
    return cuts
