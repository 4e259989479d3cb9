"""What every way of folding starts from, and what is done to its result: names, order, domains, opset, dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engineworks.host.lazy import onnx
from engineworks.model.fold.dims import Symbols, apply_inputs, forget_inner_shapes
from engineworks.model.fold.names import name_nodes, name_tensors
from engineworks.model.fold.shapes import infer_shapes
from engineworks.model.fold.spelled_out import NORM, spell_out_norms
from engineworks.model.fold.tidy import (
    constants_to_initializers,
    copy_constant_outputs,
    drop_inputs_with_values,
    drop_unused,
    hoist_initializers,
)
from engineworks.model.graphs import sort_nodes
from engineworks.model.onnx_files import ir_version_for, known_dim
from engineworks.model.opset import inline_functions, raise_opset, tidy_domains
from engineworks.tensors import Dim, TensorSpec

_KEPT_FIELDS = ("producer_name", "producer_version", "domain", "model_version", "doc_string")


@dataclass(frozen=True)
class Prepared:
    """The graph that every strategy starts from.

    claims, symbols: what the model declared of its outputs' dimensions, and the recipe's names for the model's own.
    notes: what was changed, one sentence each.
    """

    model: onnx.ModelProto
    claims: Mapping[str, Sequence[Dim | None]]
    symbols: Symbols
    notes: tuple[str, ...]


def prepare(model: onnx.ModelProto, inputs: Sequence[TensorSpec], minimum_opset: int) -> Prepared:
    """The recipe's dimensions, functions in place, the opset, unique names, sorted nodes. `model` is used up.

    Raises `FoldError` if the opset cannot be raised, `ModelError` for a graph with a cycle.
    """
    notes = []
    if model.functions:
        notes.append(f"{len(model.functions)} local functions put in place of their calls")
        model = inline_functions(model)
    if norms := spell_out_norms(model):
        notes.append(f"{norms} {NORM} of ONNX Runtime written in ONNX's own operators")
    drop_inputs_with_values(model.graph)
    changes, symbols = apply_inputs(model, inputs)
    claims = {value.name: [known_dim(dim) for dim in value.type.tensor_type.shape.dim] for value in model.graph.output}
    model = raise_opset(_standardized(model), minimum_opset)
    return Prepared(_standardized(model), claims, symbols, (*notes, *changes))


def finish(folded: onnx.ModelProto, prepared: Prepared) -> onnx.ModelProto:
    """The folded graph as it is written: the interface and metadata of the prepared one, everything else rebuilt."""
    for field in ("input", "output"):
        folded.graph.ClearField(field)
        getattr(folded.graph, field).extend(getattr(prepared.model.graph, field))
    for field in _KEPT_FIELDS:
        if prepared.model.HasField(field):
            setattr(folded, field, getattr(prepared.model, field))
    del folded.metadata_props[:]
    folded.metadata_props.extend(prepared.model.metadata_props)
    hoist_initializers(folded.graph)  # before names: graphsurgeon's copies still have the one name
    copy_constant_outputs(folded.graph)
    return _standardized(folded)


def _standardized(model: onnx.ModelProto) -> onnx.ModelProto:
    """Unique names, sorted and needed nodes only, clean domains, and shapes as inferred from the inputs."""
    constants_to_initializers(model.graph)
    tidy_domains(model)
    model.ir_version = ir_version_for(model)
    forget_inner_shapes(model)
    name_tensors(model.graph)
    hoist_initializers(model.graph)
    name_nodes(model.graph)
    sort_nodes(model.graph)
    drop_unused(model.graph)
    return infer_shapes(model)
