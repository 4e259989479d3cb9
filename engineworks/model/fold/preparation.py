"""What every way of folding starts from, and what is done to its result: names, order, domains, opset, dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engineworks.host.lazy import np, onnx
from engineworks.model.fold.dims import Symbols, apply_inputs, forget_inner_shapes
from engineworks.model.fold.shapes import infer_shapes
from engineworks.model.fold.tidy import (
    constants_to_initializers,
    copy_constant_outputs,
    drop_inputs_with_values,
    drop_unused,
    hoist_initializers,
    name_nodes,
    name_tensors,
)
from engineworks.model.graphs import all_graphs, attribute, set_nodes, sort_nodes
from engineworks.model.onnx_files import ir_version_for, known_dim, opset_of
from engineworks.model.opset import inline_functions, raise_opset, tidy_domains
from engineworks.tensors import Dim, TensorSpec

NORM = "SimplifiedLayerNormalization"
"""x / sqrt(mean(x²) + ε) × weight: known to ONNX Runtime alone (docs/ContribOperators.md has its like with a skip), and
named as if it were ONNX's. Exporters of language models write it."""


def spell_out_norms(model: onnx.ModelProto) -> int:
    """Replace every norm over the last axis whose second output nothing asks for; return how many there were."""
    axes_are_input, done = opset_of(model) >= 18, 0
    for graph in all_graphs(model.graph):
        types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            spelled = _is_norm(node) and node.input[1] in types
            nodes += _spelled_out(graph, node, types[node.input[1]], axes_are_input) if spelled else [node]
            done += spelled
        set_nodes(graph, nodes)
    return done


def _is_norm(node: onnx.NodeProto) -> bool:
    return node.op_type == NORM and not node.domain and attribute(node, "axis", -1) == -1 and not any(node.output[1:])


def _spelled_out(
    graph: onnx.GraphProto, node: onnx.NodeProto, of_weight: int, axes_are_input: bool
) -> list[onnx.NodeProto]:
    """Return the nodes that compute it: in float32, as its `stash_type` asks, where the tensor is narrower."""
    (x, weight), output = node.input[:2], node.output[0]
    nodes: list[onnx.NodeProto] = []

    def add(operator: str, *inputs: str, **attributes: Any) -> str:
        made = f"{output}_norm_{len(nodes)}"
        nodes.append(onnx.helper.make_node(operator, inputs, [made], name=made, **attributes))
        return made

    def constant(name: str, values: object) -> str:
        made = f"{output}_norm_{name}"
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), made))
        return made

    wide = add("Cast", x, to=onnx.TensorProto.FLOAT) if of_weight != onnx.TensorProto.FLOAT else x
    square = add("Pow", wide, constant("two", np.float32(2)))
    mean = (
        add("ReduceMean", square, constant("axes", np.array([-1])), keepdims=1)
        if axes_are_input
        else add("ReduceMean", square, axes=[-1], keepdims=1)
    )
    total = add("Add", mean, constant("epsilon", np.float32(attribute(node, "epsilon", 1e-5))))
    scaled = add("Mul", wide, add("Reciprocal", add("Sqrt", total)))
    own = add("Cast", scaled, to=of_weight) if wide != x else scaled
    nodes.append(onnx.helper.make_node("Mul", [own, weight], [output], name=node.name))
    return nodes


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
