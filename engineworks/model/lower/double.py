"""float64 → float32, the type in which every precision below starts.

Graph inputs and outputs keep their type. These stay float64, because float32 would give other numbers: what ONNX
computes only from integers (positions, counts, ticks of a clock), nodes with subgraphs, and nodes with constants that
float32 cannot hold.
"""

from __future__ import annotations

from collections.abc import Mapping

from engineworks.host.lazy import onnx
from engineworks.model.graphs import all_tensors, model_nodes
from engineworks.model.lower.half.graph import DOUBLE, SINGLE, TypedGraph, typed_graph
from engineworks.model.lower.half.patterns import integer_arithmetic
from engineworks.model.lower.half.prove import check_well_formed
from engineworks.model.lower.half.rewrite import rewrite
from engineworks.model.lower.half.rules import BETWEEN, schema_refuses, weights_unfit, with_neighbours
from engineworks.model.lower.half.weights import WeightFacts, clamp_sentinels


def double_to_float(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Mapping[str, str]]:
    """Return the model with its float64 tensors in float32, and the nodes that stay float64 → the reason.

    A model without float64 in its main graph is returned as it is; any other stays unchanged.
    """
    if not holds_double(model):
        return model, {}
    graph = typed_graph(model)
    graph.wide = DOUBLE
    facts = WeightFacts(graph, SINGLE)
    clamp_sentinels(graph, SINGLE, facts)
    kept = _kept(graph, facts)
    made = rewrite(graph, SINGLE, kept).model
    check_well_formed(made, graph)
    return made, {graph.nodes[at].name: reason for at, reason in sorted(kept.items())}


def holds_double(model: onnx.ModelProto) -> bool:
    """Return whether a tensor of the model may be float64: an input, a weight, or a node's output."""
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    if any(v.type.tensor_type.elem_type == DOUBLE for v in values):
        return True
    return any(t.data_type == DOUBLE for t in all_tensors(model)) or any(
        a.name in ("to", "dtype", "output_dtype") and a.i == DOUBLE
        for node in model_nodes(model)
        for a in node.attribute
    )


def _kept(graph: TypedGraph, facts: WeightFacts) -> dict[int, str]:
    exact = integer_arithmetic(graph)
    kept = {}
    for at, node in enumerate(graph.nodes):
        involved = [*graph.float_inputs(at), *graph.float_outputs(at)]
        holds = any(graph.is_float(name) for name in graph.captured.get(at, ()))
        if not involved and not holds:
            continue
        dynamic = any(name not in graph.weights for _, name in graph.float_inputs(at))
        reason = "holds a subgraph, which stays as it is" if at in graph.captured else None
        if not reason and any(n and n not in graph.types for n in (*node.input, *node.output)):
            reason = "the type of a tensor is unknown"
        reason = reason or schema_refuses(graph, at, SINGLE) or weights_unfit(graph, at, SINGLE, facts)
        if not reason and at in exact and dynamic:
            reason = "computed from integers, which float32 would round"
        if reason:
            kept[at] = reason
    reasons = with_neighbours(graph, kept)
    return {at: "lies between nodes that stay double" if why == BETWEEN else why for at, why in reasons.items()}
