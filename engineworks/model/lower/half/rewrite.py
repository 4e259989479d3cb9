"""Applies a decision: the graph with its nodes in two precisions and one Cast per tensor that crosses the border."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass

from engineworks.host.lazy import onnx
from engineworks.model.graphs import fresh_name, set_nodes, subgraphs
from engineworks.model.lower.half.graph import DOUBLE, FloatFormat, TypedGraph, complete_model
from engineworks.model.lower.half.rules import FLOAT_PORTS, takes_any_type
from engineworks.model.lower.half.weights import half_tensor


@dataclass(frozen=True)
class Rewritten:
    """The new model, the names of the nodes that compute in half precision, and those of the weights stored in it."""

    model: onnx.ModelProto
    converted: tuple[str, ...]
    halved_weights: tuple[str, ...]


def rewrite(graph: TypedGraph, half: FloatFormat, kept: Mapping[int, str]) -> Rewritten:
    """Return the model with every node that is not in `kept` computing in `half`.

    This is half precision, or float32 if the graph's wide type is float64. The graph's inputs and outputs
    keep their dtype. Weights are converted; both versions are stored if both are used. `graph` stays unchanged.
    """
    return _Rewriter(graph, half, kept).run()


class _Rewriter:
    def __init__(self, graph: TypedGraph, half: FloatFormat, kept: Mapping[int, str]) -> None:
        self._graph = graph
        self._half = half
        self._wide = graph.wide
        self._wide_suffix = "fp64" if graph.wide == DOUBLE else "fp32"
        self._kept = kept
        self._taken = set(graph.types) | {n for node in graph.nodes for n in (*node.input, *node.output)}
        self._taken |= {n for names in graph.captured.values() for n in names} | {node.name for node in graph.nodes}
        self._native: dict[str, int] = {}  # element type in which a float32 tensor is made
        self._names: dict[tuple[str, int], str] = {}  # (tensor, element type) → its name in the new graph
        self._aliases: dict[str, str] = {}  # tensor of another type → its new name
        self._weights: dict[str, onnx.TensorProto] = {}
        self._float_weights: set[str] = set()  # those whose fp32 version is used too
        self._halved: list[str] = []
        self._nodes: list[onnx.NodeProto] = []

    def run(self) -> Rewritten:
        shell = deepcopy(self._graph.shell)
        self._start()
        for at, node in enumerate(shell.graph.node):
            self._emit(at, node)
        for value in shell.graph.output:
            if self._graph.is_float(value.name):
                self._name(value.name, self._wide)
        set_nodes(shell.graph, self._nodes)
        self._retype_values(shell.graph)
        return Rewritten(complete_model(shell, self._weights), self._converted(), tuple(self._halved))

    def _converted(self) -> tuple[str, ...]:
        graph = self._graph
        return tuple(
            node.name
            for at, node in enumerate(graph.nodes)
            if at not in self._kept
            and (graph.float_inputs(at) or graph.float_outputs(at))
            and not takes_any_type(graph, at)
        )

    def _start(self) -> None:
        """Add types and names that exist before any node: inputs, and weights as they are."""
        for name in filter(self._graph.is_float, self._graph.inputs):
            self._native[name] = self._wide
            self._names[name, self._wide] = name
        for name, tensor in self._graph.weights.items():
            if tensor.data_type != self._wide:
                self._weights[name] = tensor
        self._float_weights = {
            n for n in self._graph.weights if n in self._graph.outputs or n in self._graph.captured_names
        }
        for at, node in enumerate(self._graph.nodes):
            for position, name in enumerate(node.input):
                if name in self._graph.weights and self._wanted_type(at, position) == self._wide:
                    self._float_weights.add(name)

    def _emit(self, at: int, node: onnx.NodeProto) -> None:
        """Append the node, with inputs of the types it needs and outputs named after their type."""
        half = at not in self._kept
        for position, name in enumerate(node.input):
            if self._graph.is_float(name):
                node.input[position] = self._name(name, self._wanted_type(at, position) or self._native[name])
            else:
                node.input[position] = self._aliases.get(name, name)
        for name in self._graph.captured.get(at, ()):
            new = self._name(name, self._wide) if self._graph.is_float(name) else name
            for inner in subgraphs(node):
                rename_reads(inner, name, {name: new}.__getitem__)
        if self._is_void_cast(at, node, half):
            return
        if half and self._graph.float_outputs(at):
            self._set_types(node)
        for position, name in self._graph.float_outputs(at):
            self._native[name] = self._half.elem_type if half else self._wide
            node.output[position] = self._native_name(name)
        self._nodes.append(node)

    def _wanted_type(self, at: int, position: int) -> int | None:
        """Return the element type in which a node takes a float32 input; None if it takes either."""
        node = self._graph.nodes[at]
        if at in self._kept or (node.op_type, position) in FLOAT_PORTS:
            return self._wide
        if takes_any_type(self._graph, at):
            return self._wide if node.input[position] in self._graph.weights else None
        return self._half.elem_type

    def _is_void_cast(self, at: int, node: onnx.NodeProto, half: bool) -> bool:
        """Drop a Cast of the model that now casts to its input's type; its users read the input."""
        original = self._graph.nodes[at]
        if original.op_type != "Cast" or not half or original.output[0] in self._graph.outputs:
            return False
        source, made = original.input[0], original.output[0]
        given = self._graph.types.get(source)
        if self._graph.is_float(source):
            given = self._wanted_type(at, 0) or self._native[source]
        if self._graph.is_float(made):
            if given == self._half.elem_type:
                self._native[made] = given
                self._names[made, given] = node.input[0]
            return given == self._half.elem_type
        if given != self._graph.types.get(made) or made in self._graph.captured_names:
            return False
        self._aliases[made] = node.input[0]
        return True

    def _set_types(self, node: onnx.NodeProto) -> None:
        """Set attributes that state an output's type."""
        if node.op_type == "ConstantOfShape":
            value = node.attribute[0].t if node.attribute else onnx.helper.make_tensor("value", self._wide, [1], [0.0])
            made = half_tensor(value, self._half, value.name)
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("value", made))
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "output_dtype") and attribute.i == self._wide:
                attribute.i = self._half.elem_type

    def _name(self, name: str, elem_type: int) -> str:
        """Return the name of the float32 tensor `name` in this element type; the first use makes a Cast or weight."""
        known = self._names.get((name, elem_type))
        if known is not None:
            return known
        if name in self._graph.weights:
            return self._weight(name, elem_type)
        source = self._names[name, self._native[name]]
        suffix = self._half.suffix if elem_type == self._half.elem_type else self._wide_suffix
        made = name if self._is_outer(name, elem_type) else fresh_name(f"{name}_{suffix}", self._taken)
        cast = onnx.helper.make_node(
            "Cast", [source], [made], name=fresh_name(f"{name}_to_{suffix}", self._taken), to=elem_type
        )
        self._nodes.append(cast)
        self._names[name, elem_type] = made
        return made

    def _weight(self, name: str, elem_type: int) -> str:
        tensor = self._graph.weights[name]
        if elem_type == self._wide:
            made, self._weights[name] = name, tensor
        else:
            made = fresh_name(f"{name}_{self._half.suffix}", self._taken) if name in self._float_weights else name
            self._weights[made] = half_tensor(tensor, self._half, made)
            self._halved.append(name)
        self._names[name, elem_type] = made
        return made

    def _native_name(self, name: str) -> str:
        """Return the name of a node's output: as before, except for a graph output made in the other type."""
        elem_type = self._native[name]
        suffix = self._half.suffix if elem_type == self._half.elem_type else self._wide_suffix
        renamed = name in self._graph.outputs and not self._is_outer(name, elem_type)
        made = fresh_name(f"{name}_{suffix}", self._taken) if renamed else name
        self._names[name, elem_type] = made
        return made

    def _is_outer(self, name: str, elem_type: int) -> bool:
        """Return whether the graph output of this name has this type in the result."""
        return name in self._graph.outputs and name not in self._graph.inputs and elem_type == self._wide

    def _retype_values(self, graph: onnx.GraphProto) -> None:
        """Update value_info; entries of removed tensors are dropped."""
        made = {name for node in graph.node for name in node.output}
        kept: list[onnx.ValueInfoProto] = []
        for value in graph.value_info:
            if self._graph.is_float(value.name) and value.name in self._native:
                elem_type = self._native[value.name]
                value.name = self._names[value.name, elem_type]
                value.type.tensor_type.elem_type = elem_type
            if value.name in made:
                kept.append(value)
        del graph.value_info[:]
        graph.value_info.extend(kept)


def rename_reads(graph: onnx.GraphProto, old: str, renamed: Callable[[str], str]) -> None:
    """Make a subgraph, and those inside it, read `renamed(old)` of the outer graph instead of `old`."""
    if old in {v.name for v in graph.input} or old in {t.name for t in graph.initializer}:
        return
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name == old:
                node.input[position] = renamed(old)
        for inner in subgraphs(node):
            rename_reads(inner, old, renamed)
    for value in graph.output:
        if value.name == old:
            value.name = renamed(old)
