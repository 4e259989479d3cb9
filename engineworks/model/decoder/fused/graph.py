"""A graph to match patterns in: who makes and reads each tensor, constants, and tensors that follow from positions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engineworks.host.lazy import onnx, ort
from engineworks.model.decoder.interface import DecoderInterface
from engineworks.model.graphs import keep_named, set_nodes, sort_nodes
from engineworks.model.lower.half.graph import shown_model, split_model
from engineworks.model.ort import exact_options
from engineworks.model.tensor_storage import tensor_values

CONTRIB = "com.microsoft"


class DecoderGraph:
    """The main graph of a decoder with a cache in place; `finish` writes the changed one into the model."""

    def __init__(self, model: onnx.ModelProto, interface: DecoderInterface) -> None:
        self.model, self.interface = model, interface
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = frozenset(value.name for value in model.graph.output)
        self.shapes = _shapes(model)
        self.nodes = list(model.graph.node)
        self.index()

    def index(self) -> None:
        """Call it after changing `nodes`."""
        self.makers: dict[str, onnx.NodeProto] = {}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            self.makers |= dict.fromkeys(node.output, node)
            for name in node.input:
                self.readers[name].append(node)

    def made_by(self, name: str, operator: str) -> onnx.NodeProto | None:
        """Return the node that makes the tensor if it is such an operator."""
        node = self.makers.get(name)
        return node if node is not None and node.op_type == operator else None

    def only_reader(self, name: str, operator: str) -> onnx.NodeProto | None:
        """Return the one node that reads the tensor, if it is such an operator."""
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 and readers[0].op_type == operator and name not in self.outputs else None

    def constant(self, name: str) -> NDArray[Any] | None:
        """Return the values of an initializer, None for other tensors."""
        tensor = self.weights.get(name)
        return None if tensor is None else tensor_values(tensor)

    def add_constant(self, values: NDArray[Any], name: str) -> str:
        if name not in self.weights:
            self.weights[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def replace(self, made: Sequence[onnx.NodeProto], instead_of: Iterable[onnx.NodeProto]) -> None:
        """Put the new nodes at the place of the last of the old ones, which go."""
        old = {id(node) for node in instead_of}
        last = max(at for at, node in enumerate(self.nodes) if id(node) in old)
        before, after = self.nodes[:last], self.nodes[last + 1 :]
        self.nodes = [*(node for node in before if id(node) not in old), *made, *after]
        self.index()

    def finish(self) -> None:
        """Write nodes and weights that something reads into the model."""
        needed: set[str] = set(self.outputs)
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        graph = self.model.graph
        weights = {t.name for t in graph.initializer}
        graph.initializer.extend(t for name, t in self.weights.items() if name not in weights)
        keep_named(graph.initializer, needed.__contains__)
        del graph.value_info[:]
        set_nodes(graph, reversed(kept))
        sort_nodes(graph)
        if all(opset.domain != CONTRIB for opset in self.model.opset_import):
            self.model.opset_import.add(domain=CONTRIB, version=1)

    def at_positions(self, name: str, at: Sequence[int], count: int) -> NDArray[Any] | None:
        """Return the tensor's values if rows begin at positions `at` and have `count` tokens each; None where it
        follows from anything else, such as the tokens."""
        nodes = self._positional(name)
        if not nodes:
            return self.constant(name) if nodes is not None else None
        face, made = self.interface, onnx.ModelProto()
        read = {given for node in nodes for given in node.input}
        made.ir_version, made.graph.name = self.model.ir_version, "positions"
        made.opset_import.extend(self.model.opset_import)
        made.graph.input.extend(value for value in self.model.graph.input if value.name in read)
        made.graph.node.extend(nodes)
        made.graph.initializer.extend(t for n, t in self.weights.items() if n in read)
        made.graph.output.add().name = name
        options = exact_options()
        options.log_severity_level = 3
        session = ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
        feeds = {face.ids: np.zeros((len(at), count), np.int64), face.positions: np.array(at, np.int64)}
        feeds |= {c.input: np.zeros(c.concrete(len(at), face.context), c.dtype) for c in face.caches if c.input in read}
        (values,) = session.run([name], {n: value for n, value in feeds.items() if n in read})
        return values  # type: ignore[no-any-return]

    def _positional(self, name: str) -> list[onnx.NodeProto] | None:
        """Return the nodes that make the tensor, sorted; None where they read tokens or cache, other than their
        shapes."""
        wanted, seen = [name], set[str]()
        refused = {self.interface.ids, *(c.input for c in self.interface.caches)}
        while wanted:
            node = self.makers.get(wanted.pop())
            if node is None or node.output[0] in seen:
                continue
            seen.add(node.output[0])
            if node.op_type == "Shape":
                if self.makers.get(node.input[0]) is not None:
                    return None  # the shape of something that was computed
                continue
            if refused.intersection(node.input) or len(seen) > _MOST_NODES:
                return None
            wanted += node.input
        return [node for node in self.nodes if node.output[0] in seen]


_MOST_NODES = 64
"""A mask or a table of positions takes fewer nodes."""


def _shapes(model: onnx.ModelProto) -> dict[str, list[int | None]]:
    """Return the dimensions of each tensor whose rank can be inferred, None for one that is not a number."""
    shown = shown_model(*split_model(model))
    typed = onnx.shape_inference.infer_shapes(shown, strict_mode=False, data_prop=True)
    return {
        v.name: [d.dim_value if d.HasField("dim_value") else None for d in v.type.tensor_type.shape.dim]
        for v in (*typed.graph.value_info, *typed.graph.input)
        if v.type.tensor_type.HasField("shape")
    }
