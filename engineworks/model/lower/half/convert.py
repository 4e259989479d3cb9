"""fp32 → fp16 or bf16 by rules that only read the graph; `half.py` adds what sample inputs show."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engineworks.errors import PatternError, PrecisionError
from engineworks.host.lazy import onnx
from engineworks.model.lower.half.graph import FORMATS, HalfFormat, TypedGraph, typed_graph
from engineworks.model.lower.half.prove import check_well_formed
from engineworks.model.lower.half.rewrite import rewrite
from engineworks.model.lower.half.rules import kept_in_fp32
from engineworks.model.lower.half.weights import WeightFacts, apply_clamps, clamp_sentinels
from engineworks.model.lower.quantizable import matches
from engineworks.model.lower.report import Clamp, HalfType, WeightLoss

_OPSET_OF_BFLOAT16 = 22  # Conv, pooling, sine and others take it only since then
_OPSET_OF_HALF_SCALES = 19
_OPSET = 13
_OPSET_OF_BFLOAT16_CAST = 13


@dataclass(frozen=True)
class Halved:
    """A converted model. `converted_nodes`: names of those that compute in half precision; `kept_nodes`: names of those
    that stay fp32, each with the reason; `clamps`: constants that were cut to the type's range; `weights`: the effects
    of rounding on them."""

    model: onnx.ModelProto
    converted_nodes: tuple[str, ...]
    kept_nodes: Mapping[str, str]
    clamps: tuple[Clamp, ...]
    weights: WeightLoss


@dataclass(frozen=True)
class Prepared:
    """An fp32 model ready to be converted, once or several times with other nodes kept."""

    graph: TypedGraph
    half: HalfFormat
    facts: WeightFacts
    keep: tuple[str, ...]
    clamps: tuple[Clamp, ...]


def prepare(
    model: onnx.ModelProto, dtype: HalfType, keep: Sequence[str], *, clamps: Sequence[Clamp] | None = None
) -> Prepared:
    """Take the model apart, and cut its mask constants to the range of the type; `model` stays unchanged.

    Opsets below 13 are raised, to 19 for quantized models and to 22 for bfloat16, if the version converter can. What an
    opset does not allow stays fp32, between casts. clamps: if given, cut only these, which were decided on the model
    that this one was made of. Raises `LoweringError` for a pattern of `keep` (`quantizable.matches`) that names no
    node, `ModelError` for a model that cannot be read.
    """
    half = FORMATS[dtype]
    graph = typed_graph(model, minimum_opset=_wanted_opset(model, half))
    if half.name == "bfloat16" and graph.opset() < _OPSET_OF_BFLOAT16_CAST:
        raise PrecisionError(
            f"opset {graph.opset()} has no bfloat16, and the version converter cannot raise this model",
            hint=f"export it with opset {_OPSET_OF_BFLOAT16} or later",
        )
    _check_patterns(graph, keep)
    facts = WeightFacts(graph, half)
    if clamps is None:
        clamps = clamp_sentinels(graph, half, facts)
    else:
        apply_clamps(graph, half, clamps)
    return Prepared(graph, half, facts, tuple(keep), tuple(clamps))


def convert(prepared: Prepared, observed: Mapping[str, str]) -> Halved:
    """Convert a model to strongly typed half precision; the result is deterministic.

    Every float32 tensor of the main graph becomes half, except those of nodes that stay fp32. These are nodes named by
    `keep`, operators that lack the type or lose by it (`rules`), nodes with subgraphs, and nodes with weights beyond
    the type's range. Each tensor that crosses is cast once. All float inputs of a node have one type. The graph's
    inputs and outputs keep their dtype. QuantizeLinear and DequantizeLinear get half scales. No sample is run, so
    activations may overflow; `lower_half` handles that. observed: reasons, by node name, to keep further nodes in fp32.
    """
    graph, half, facts = prepared.graph, prepared.half, prepared.facts
    kept = kept_in_fp32(graph, half, facts, prepared.keep, observed)
    made = rewrite(graph, half, kept)
    check_well_formed(made.model, graph)
    return Halved(
        model=made.model,
        converted_nodes=made.converted,
        kept_nodes={graph.nodes[at].name: kept[at] for at in sorted(kept)},
        clamps=prepared.clamps,
        weights=WeightLoss(
            elements=sum(facts[name].elements for name in made.halved_weights),
            flushed=sum(facts[name].flushed for name in made.halved_weights),
            subnormal=sum(facts[name].subnormal for name in made.halved_weights),
        ),
    )


def _wanted_opset(model: onnx.ModelProto, half: HalfFormat) -> int:
    if half.name == "bfloat16":
        return _OPSET_OF_BFLOAT16
    quantized = any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node)
    return _OPSET_OF_HALF_SCALES if quantized else _OPSET


def _check_patterns(graph: TypedGraph, keep: Sequence[str]) -> None:
    for pattern in keep:
        if not any(matches(node, pattern) for node in graph.nodes):
            close = difflib.get_close_matches(pattern, [node.name for node in graph.nodes], n=1)
            raise PatternError(
                f"'{pattern}' of keep matches no node of the model",
                hint=f"did you mean '{close[0]}'?" if close else "see its node names with `engineworks inspect`",
            )
