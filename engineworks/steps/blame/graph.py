"""A model as nodes in order, from which any set of them can be cut out as a model of its own.

What a cut-out part reads from outside becomes an input, fed with the reference's value. Its shape is fixed, or dynamic
where the reference has the same tensor in another shape. Nodes that depend on constants alone (a weight's
DequantizeLinear) go with the nodes that read them, so that a builder still sees a weight.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from engineworks.host.lazy import Array, onnx
from engineworks.model.graphs import all_graphs, constant_tensor, names_read, set_nodes, sort_nodes, subgraphs
from engineworks.model.onnx_files import detach_weights, load_model
from engineworks.model.tensor_storage import tensor_values

Values = Mapping[str, Array]
Nodes = frozenset[int]

FETCHABLE = frozenset({1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13})
"""ONNX element types that NumPy has (TensorProto.DataType: float, integers, bool, float16, double): only at tensors of
these can a model be cut."""

FLOAT = 1

MOST_LENGTHS = 16
"""More numbers than this are data, not the lengths of a tensor."""

MEASURES = ("Shape", "Size")
"""Operators whose results depend on shapes alone."""

QUANTIZED = ("QuantizeLinear", "DynamicQuantizeLinear")


def read_graph(path: Path, spill: Path) -> Graph:
    """The model's graph, whose weights stay on disk: in its own data file, or in `spill`, which is written."""
    return Graph(detach_weights(load_model(path, weights=False), path, spill))


class Graph:
    """The main graph of a model. Its local functions are inlined, its Constant nodes are initializers.

    nodes: those that depend on an input, in topological order.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx.inliner

        self.model = onnx.inliner.inline_local_functions(model) if model.functions else model
        graph = self.model.graph
        sort_nodes(graph)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = [value.name for value in graph.input if value.name not in self.constants]
        self.outputs = [value.name for value in graph.output]
        self.nodes: list[onnx.NodeProto] = []
        self._constant_makers: dict[str, onnx.NodeProto] = {}
        self._split(set(self.inputs))
        self.makers = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.uses = [self._known(node) for node in self.nodes]
        self.readers: dict[str, list[int]] = {}
        for index, names in enumerate(self.uses):
            for name in names:
                self.readers.setdefault(name, []).append(index)

    def _split(self, moving: set[str]) -> None:
        for node in self.model.graph.node:
            if (tensor := constant_tensor(node)) is not None:
                self.constants[tensor.name] = tensor
            elif moving.intersection(names_read(node)):
                self.nodes.append(node)
                moving.update(name for name in node.output if name)
            else:
                self._constant_makers |= {name: node for name in node.output if name}

    def _known(self, node: onnx.NodeProto) -> tuple[str, ...]:
        """The outer tensors that the node reads, without those of its own branches and bodies."""
        outer = self.makers.keys() | self.constants.keys() | self._constant_makers.keys() | set(self.inputs)
        return tuple(dict.fromkeys(name for name in names_read(node) if name in outer))

    @property
    def count(self) -> int:
        """Nodes of the model, in branches and bodies too."""
        return sum(len(inner.node) for inner in all_graphs(self.model.graph))

    def tensors(self) -> list[str]:
        """Every tensor that a node makes and something reads, in order."""
        return [n for n in self.makers if n in self.readers or n in self.outputs]

    @cached_property
    def types(self) -> dict[str, int]:
        """Tensor → ONNX element type, as far as it can be inferred."""
        from engineworks.model.lower.half.graph import infer_types, split_model

        return infer_types(*split_model(self.model))

    def marked(self) -> onnx.ModelProto:
        """The model with every inner tensor that NumPy can hold as an output, and the constants that nodes make for an
        If, a Loop or a Scan: it is searched with them."""
        marked = onnx.ModelProto()
        marked.CopyFrom(self.model)
        del marked.graph.output[:]
        given = dict.fromkeys(n for node in self.nodes if is_controlled(node) for n in node.input)
        made = [n for n in given if n in self._constant_makers]
        names = [n for n in (*made, *self.tensors()) if self.types.get(n, FLOAT) in FETCHABLE]
        marked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        return marked

    def units(self, values: Values) -> list[Nodes]:
        """The nodes in order, those joined that no cut may part.

        A cut may lie only where the reference has a value, and not between a QuantizeLinear and what reads it: builders
        take no quantized input.
        """
        joined = {i: i for i in range(len(self.nodes))}

        def root(i: int) -> int:
            while joined[i] != i:
                i = joined[i]
            return i

        for name, maker in self.makers.items():
            if name not in values or self.nodes[maker].op_type in QUANTIZED:
                for reader in self.readers.get(name, ()):
                    joined[root(maker)] = root(reader)
        groups: dict[int, set[int]] = {}
        for i in range(len(self.nodes)):
            groups.setdefault(root(i), set()).add(i)
        return [frozenset(group) for group in sorted(groups.values(), key=max)]

    def value_of(self, name: str, values: Values) -> Array:
        """The reference's value of a tensor, or a constant's own. Raises `KeyError` for one that is neither."""
        return tensor_values(self.constants[name]) if name in self.constants else values[name]

    def frontier(self, chosen: Collection[int]) -> list[str]:
        """Tensors that these nodes make and that others read, or the model gives; what nothing reads, too."""
        inside = set(chosen)
        return [
            name
            for name, maker in self.makers.items()
            if maker in inside
            and (name in self.outputs or any(reader not in inside for reader in self.readers.get(name, ())))
        ]

    def ancestors(self, names: Iterable[str]) -> list[int]:
        """Nodes that these tensors depend on, the nearest first (breadth first; of equally near ones the last)."""
        order: dict[int, None] = {}
        level = sorted({self.makers[n] for n in names if n in self.makers}, reverse=True)
        while level:
            order |= dict.fromkeys(level)
            before = {self.makers[n] for i in level for n in self.uses[i] if n in self.makers}
            level = sorted(before - order.keys(), reverse=True)
        return list(order)

    def descendants(self, name: str) -> set[int]:
        """Nodes that depend on this tensor."""
        found: set[int] = set()
        pending = list(self.readers.get(name, ()))
        while pending:
            index = pending.pop()
            if index not in found:
                found.add(index)
                pending += [r for n in self.nodes[index].output for r in self.readers.get(n, ())]
        return found

    def inputs_of(self, chosen: Collection[int]) -> list[str]:
        """What these nodes read that neither they nor constants make."""
        inside = set(chosen)
        read = dict.fromkeys(name for i in sorted(inside) for name in self.uses[i])
        fixed = self.constants.keys() | self._constant_makers.keys()
        return [n for n in read if n not in fixed and self.makers.get(n, -1) not in inside]

    def fed(self, chosen: Collection[int], values: Values, other: Values | None = None) -> list[str]:
        """What these nodes are fed with, without lengths that the graph computes: those become constants of the part.

        A builder takes no shape that is only known when it runs. other: values at another shape; lengths that differ
        there are computed within the part, so that the tensors they are the lengths of are fed.
        """
        return self._sources(chosen, values, other)[0]

    @cached_property
    def measured(self) -> frozenset[str]:
        """Tensors that depend on the shapes of others alone."""
        found: set[str] = set()
        for node, names in zip(self.nodes, self.uses, strict=True):
            moving = [n for n in names if n in self.makers or n in self.inputs]
            if node.op_type in MEASURES or all(n in found for n in moving):
                found.update(node.output)
        return frozenset(found)

    def _sources(
        self, chosen: Collection[int], values: Values, other: Values | None
    ) -> tuple[list[str], list[str], set[int]]:
        """What the nodes are fed with, the lengths that are constants, and the nodes that compute other lengths."""
        fed, fixed, makers, inside = list[str](), list[str](), set[int](), set(chosen)
        pending = self.inputs_of(chosen)
        while pending:
            name = pending.pop(0)
            if self.makers.get(name, -1) in inside:
                continue
            if name in self.inputs or not self._is_lengths(name, values[name]):
                fed.append(name)
            elif other is None or np.array_equal(values[name], other[name]):
                fixed.append(name)
            elif name not in self.measured:
                fed.append(name)
            elif (maker := self.makers[name]) not in makers:
                makers.add(maker)
                pending += self.inputs_of([maker])
        return list(dict.fromkeys(fed)), list(dict.fromkeys(fixed)), makers

    def _is_lengths(self, name: str, value: Array) -> bool:
        """Whether an inner tensor may be a shape, an axis or an index: few numbers in one dimension at most."""
        whole = value.dtype.kind in "iu" and value.dtype.itemsize >= 4
        return (whole or name in self.measured) and value.ndim <= 1 and value.size <= MOST_LENGTHS

    def extract(
        self, chosen: Collection[int], outputs: Iterable[str], values: Values, other: Values | None = None
    ) -> onnx.ModelProto:
        """These nodes as a model with these outputs. values: the reference, which has the inputs' types and shapes.
        other: the reference at another shape: what differs there is dynamic."""
        part = onnx.ModelProto(ir_version=self.model.ir_version, opset_import=self.model.opset_import)
        fed, lengths, makers = self._sources(chosen, values, other)
        nodes = [self.nodes[i] for i in sorted({*chosen, *makers})]
        fixed, weights = self.closure(nodes)
        set_nodes(part.graph, [*fixed, *nodes])
        part.graph.initializer.extend(weights)
        part.graph.name = "part"
        part.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(values[n]), n) for n in lengths)
        part.graph.input.extend(value_info(name, values[name], other) for name in fed)
        part.graph.output.extend(value_info(name, values[name], other) for name in outputs)
        return part

    def closure(self, nodes: Iterable[onnx.NodeProto]) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """The nodes of constants that these nodes need, in order, and the weights of both."""
        needed: dict[str, onnx.NodeProto] = {}
        weights: dict[str, onnx.TensorProto] = {}
        pending = [name for node in nodes for name in names_read(node)]
        while pending:
            name = pending.pop()
            if name in self.constants:
                weights[name] = self.constants[name]
            elif name in self._constant_makers and name not in needed:
                needed[name] = self._constant_makers[name]
                pending.extend(names_read(needed[name]))
        wanted = {id(node) for node in needed.values()}
        return [node for node in self.model.graph.node if id(node) in wanted], list(weights.values())


def value_info(name: str, value: Array, other: Values | None = None) -> onnx.ValueInfoProto:
    """The tensor's type and shape. other: values at another shape."""
    shape = named_shape(value.shape, None if other is None else other[name].shape)
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def named_shape(shape: Sequence[int], other: Sequence[int] | None) -> list[int | str]:
    """The shape, with a name for each length that differs in the other one."""
    return [n if n == m else f"d{n}_{m}" for n, m in zip(shape, other or shape, strict=True)]


def label(node: onnx.NodeProto) -> str:
    """A node's name, or what it makes: 'encoder/MatMul (MatMul)'."""
    return f"{node.name or next((n for n in node.output if n), '?')} ({node.op_type})"


def is_controlled(node: onnx.NodeProto) -> bool:
    """Whether the node holds graphs of its own: If, Loop, Scan."""
    return any(True for _ in subgraphs(node))
