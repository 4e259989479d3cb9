"""Lengths of a cache that the file leaves open, such as onnxruntime-genai's `kv_cache_dim`: the attention that reads
the cache says them.

Inputs and attributes are those of GroupQueryAttention and MultiHeadAttention (onnxruntime, docs/ContribOperators.md)
and of ONNX's Attention (Operators.md, opset 23).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from engineworks.model.fold.shapes import infer_shapes
from engineworks.model.onnx_files import known_dim

if TYPE_CHECKING:
    import onnx

_PAST_KEY: Mapping[str, int] = {"GroupQueryAttention": 3, "MultiHeadAttention": 6, "Attention": 4}
"""Index of the input that is the cache of keys; the cache of values follows it."""

_QUERY_HEADS, _CACHE_HEADS = ("num_heads", "q_num_heads"), ("kv_num_heads", "num_heads")

_SAME_WIDTH = frozenset({"Add", "Cast", "Identity", "RotaryEmbedding", "RMSNormalization"})
"""Operators whose output is as wide as their first input."""


def open_lengths(model: onnx.ModelProto) -> dict[str, int]:
    """Return length by name of each last dimension of a cache that an attention determines. Weights are not read."""
    tensors, found = _Tensors(model), dict[str, set[int]]()
    for node in model.graph.node:
        for name, length in _lengths(node, tensors):
            found.setdefault(name, set()).add(length)
    return {name: min(lengths) for name, lengths in found.items() if len(lengths) == 1}


class _Tensors:
    """What is known of a graph's tensors without running it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = infer_shapes(model).graph
        values = (*graph.input, *graph.value_info)
        self._shapes = {v.name: [known_dim(dim) for dim in v.type.tensor_type.shape.dim] for v in values}
        self._shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        self._makers = {output: node for node in graph.node for output in node.output}

    def shape(self, name: str) -> list[int | str | None]:
        return self._shapes.get(name, [])

    def width(self, name: str) -> int | None:
        """Return the length of the last dimension: known, or that of the weights that make it."""
        while name not in self._shapes and (node := self._makers.get(name)) is not None:
            if node.op_type == "MatMulNBits":
                return next((attribute.i for attribute in node.attribute if attribute.name == "N"), None)
            if node.op_type not in {"MatMul", *_SAME_WIDTH}:
                return None
            name = node.input[1 if node.op_type == "MatMul" else 0]
        width = (self.shape(name) or [None])[-1]
        return width if isinstance(width, int) else None


def _lengths(node: onnx.NodeProto, tensors: _Tensors) -> Iterator[tuple[str, int]]:
    first = _PAST_KEY.get(node.op_type)
    if first is None:
        return
    heads = {a.name: a.i for a in node.attribute}
    given = [node.input[i] if i < len(node.input) else "" for i in range(first + 2)]
    for cache, source in ((given[first], given[1]), (given[first + 1], given[2])):
        size = _head_size(tensors, given[0], source, heads)
        name = (tensors.shape(cache) or [None])[-1]
        if size and isinstance(name, str):
            yield name, size


def _head_size(tensors: _Tensors, query: str, source: str, heads: Mapping[str, int]) -> int | None:
    """Return the length of one head. source: keys or values, '' where the query holds all three."""
    of_query, of_cache = (next((heads[n] for n in names if n in heads), 0) for names in (_QUERY_HEADS, _CACHE_HEADS))
    width = tensors.width(source or query)
    if len(tensors.shape(source or query)) == 4:  # already [batch, heads, sequence, size]
        return width
    count = of_cache if source else of_query + 2 * of_cache
    return width // count if width and count and width % count == 0 else None
