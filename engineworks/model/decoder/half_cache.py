"""The cache of a half-precision decoder in half precision: half the memory, and no cast that would copy it.

Lowering leaves inputs, outputs and TensorScatter in fp32, with casts between. Here the cache's inputs, its outputs and
the TensorScatter between them become float16, and those casts go.
"""

from __future__ import annotations

from engineworks.host.lazy import onnx
from engineworks.model.decoder.interface import DecoderInterface
from engineworks.model.graphs import set_nodes
from engineworks.model.lower.half.graph import infer_types, split_model


def halve_cache(model: onnx.ModelProto, interface: DecoderInterface) -> None:
    """Change the model in place."""
    _Halving(model, interface).run()


class _Halving:
    def __init__(self, model: onnx.ModelProto, interface: DecoderInterface) -> None:
        self._graph, self._half, self._float = model.graph, onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
        self._types = infer_types(*split_model(model))
        self._outputs = {c.output for c in interface.caches}
        self._io = self._outputs | {c.input for c in interface.caches}
        self._makers = {output: node for node in self._graph.node for output in node.output}
        self._halved = self._io | {
            n.output[0] for n in self._graph.node if n.op_type == "TensorScatter" and n.input[0] in self._io
        }
        self._renamed: dict[str, str] = {}
        self._wide: set[str] = set()

    def run(self) -> None:
        nodes = [made for node in self._graph.node for made in self._rewritten(node)]
        for node in nodes:
            for field in (node.input, node.output):
                field[:] = [self._renamed.get(name, name) for name in field]
        set_nodes(self._graph, nodes)
        for value in (*self._graph.input, *self._graph.output):
            if value.name in self._io:
                value.type.tensor_type.elem_type = self._half
        del self._graph.value_info[:]

    def _rewritten(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return the nodes that take this node's place."""
        if node.op_type == "TensorScatter" and node.output[0] in self._halved:
            return [*self._narrow_update(node), node]
        if node.op_type == "Cast" and self._drops(node):
            return []
        before = [
            cast for name in dict.fromkeys(node.input) if name in self._halved for cast in self._widen(node, name)
        ]
        after = [cast for name in node.output if name in self._outputs for cast in self._narrow_output(node, name)]
        return [*before, node, *after]

    def _drops(self, cast: onnx.NodeProto) -> bool:
        """Whether a cast goes: from the cache to half precision, or from there to an output of the cache."""
        to = next(a.i for a in cast.attribute if a.name == "to")
        if cast.input[0] in self._halved and to == self._half:
            self._renamed[cast.output[0]] = cast.input[0]
            return True
        if cast.output[0] in self._outputs and self._types.get(cast.input[0]) == self._half:
            self._renamed[cast.input[0]] = cast.output[0]
            return True
        return False

    def _narrow_update(self, scatter: onnx.NodeProto) -> list[onnx.NodeProto]:
        maker = self._makers.get(scatter.input[1])
        if maker is not None and maker.op_type == "Cast" and self._types.get(maker.input[0]) == self._half:
            scatter.input[1] = maker.input[0]
            return []
        name = f"{scatter.input[1]}_half"
        cast = self._cast(scatter.input[1], name, self._half)
        scatter.input[1] = name
        return [cast]

    def _widen(self, node: onnx.NodeProto, name: str) -> list[onnx.NodeProto]:
        wide = f"{name}_float"
        node.input[:] = [wide if given == name else given for given in node.input]
        if wide in self._wide:
            return []
        self._wide.add(wide)
        return [self._cast(name, wide, self._float)]

    def _narrow_output(self, node: onnx.NodeProto, name: str) -> list[onnx.NodeProto]:
        if self._types.get(name) == self._half:
            return []
        wide = f"{name}_float"
        node.output[:] = [wide if made == name else made for made in node.output]
        return [self._cast(wide, name, self._half)]

    @staticmethod
    def _cast(given: str, made: str, to: int) -> onnx.NodeProto:
        node: onnx.NodeProto = onnx.helper.make_node("Cast", [given], [made], name=f"{made}_cast", to=to)
        return node
