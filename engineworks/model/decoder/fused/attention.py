"""TensorScatter, TensorScatter and Attention under a causal mask → GroupQueryAttention, which reads only the positions
that are used and writes new keys and values in place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engineworks.host.lazy import onnx
from engineworks.model.decoder.fused.graph import CONTRIB, DecoderGraph
from engineworks.model.decoder.fused.products import joined_product
from engineworks.model.decoder.interface import CacheTensor
from engineworks.model.graphs import attribute


@dataclass(frozen=True)
class Rotation:
    """A rotary embedding (Su et al., 2021) in halves: x × cos + (−x₂, x₁) × sin. x: the tensor before it, [batch,
    heads, sequence, size]. cos, sin: names of the tensors of the new positions."""

    x: str
    cos: str
    sin: str


def rotation_of(graph: DecoderGraph, name: str, size: int) -> Rotation | None:
    """Return the rotation that makes the tensor, None where something else does. size: of a head."""
    total = graph.made_by(name, "Add")
    if total is None:
        return None
    for plain, turned in (tuple(total.input), tuple(total.input)[::-1]):
        one, other = graph.made_by(plain, "Mul"), graph.made_by(turned, "Mul")
        if one is None or other is None:
            continue
        for x, cos in (tuple(one.input), tuple(one.input)[::-1]):
            for halves, sin in (tuple(other.input), tuple(other.input)[::-1]):
                if _is_turned(graph, halves, x, size):
                    return Rotation(x, cos, sin)
    return None


def _is_turned(graph: DecoderGraph, name: str, x: str, size: int) -> bool:
    """Whether the tensor is (−x₂, x₁), of the two halves of x."""
    concat = graph.made_by(name, "Concat")
    if concat is None or len(concat.input) != 2 or attribute(concat, "axis", 0) not in (-1, 3):
        return False
    negative, first = graph.made_by(concat.input[0], "Neg"), graph.made_by(concat.input[1], "Slice")
    second = graph.made_by(negative.input[0], "Slice") if negative is not None else None
    if first is None or second is None:
        return False
    parts = [_part(graph, node, x, size) for node in (first, second)]
    return parts == [list(range(size // 2)), list(range(size // 2, size))]


def _part(graph: DecoderGraph, node: onnx.NodeProto, x: str, size: int) -> list[int]:
    """Return which of x's last axis a Slice takes, [] where it is no such Slice."""
    values = [graph.constant(name) for name in node.input[1:]]
    if node.input[0] != x or len(values) < 3 or any(v is None or v.size != 1 for v in values):
        return []
    start, end, axis, *step = (int(v.reshape(())) for v in values if v is not None)
    return list(range(size))[start : end : step[0] if step else 1] if axis in (-1, 3) else []


def tables(graph: DecoderGraph, rotation: Rotation, size: int) -> tuple[str, str] | None:
    """Return names of cosines and sines of all positions, f32 [context, size / 2]; None where the tensors follow from
    something other than positions, or the halves of a head turn differently."""
    made = []
    for kind, name in (("cos", rotation.cos), ("sin", rotation.sin)):
        key = f"{name}_{kind}_table"
        if key not in graph.weights:
            values = graph.at_positions(name, [0], graph.interface.context)
            if values is None or values.size != graph.interface.context * size or values.dtype != np.float32:
                return None
            whole = values.reshape(-1, size)
            if not np.array_equal(whole[:, : size // 2], whole[:, size // 2 :]):
                return None
            graph.add_constant(whole[:, : size // 2], key)
        made.append(key)
    return made[0], made[1]


_HEADS_FIRST = [0, 2, 1, 3]
_LENGTHS, _LONGEST, _ROWS = "gqa_last_positions", "gqa_longest", "gqa_rows"
"""Made once: each row's last position, the most positions of a row, and the shape [batch, sequence, -1]."""


@dataclass(frozen=True)
class _Layer:
    """One attention. scatters: of keys and values. heads: of queries. window: most positions back, 0 for no limit."""

    node: onnx.NodeProto
    scatters: tuple[onnx.NodeProto, onnx.NodeProto]
    keys: CacheTensor
    values: CacheTensor
    heads: int
    window: int


def fuse_attention(graph: DecoderGraph) -> int:
    """Replace every attention that can be; return their number."""
    windows: dict[str, int | None] = {}
    nodes = [node for node in graph.nodes if node.op_type == "Attention"]
    layers = [layer for node in nodes for layer in [_layer(graph, node, windows)] if layer is not None]
    for layer in layers:
        _replace(graph, layer)
    if layers:
        _add_lengths(graph)
    return len(layers)


def _layer(graph: DecoderGraph, node: onnx.NodeProto, windows: dict[str, int | None]) -> _Layer | None:
    caches = {c.output: c for c in graph.interface.caches}
    if len(node.input) != 4 or len(node.output) != 1 or not {node.input[1], node.input[2]} <= caches.keys():
        return None
    scatters = [graph.made_by(name, "TensorScatter") for name in node.input[1:3]]
    keys, values = (caches[name] for name in node.input[1:3])
    for scatter, cache in zip(scatters, (keys, values), strict=True):
        given = [cache.input, graph.interface.positions]
        if scatter is None or [scatter.input[0], *scatter.input[2:]] != given or len(graph.readers[cache.output]) != 1:
            return None
    mask = node.input[3]
    if mask not in windows:
        windows[mask] = causal_window(graph, mask)
    window, shape = windows[mask], graph.shapes.get(node.input[0]) or []
    heads = shape[1] if len(shape) == 4 else None
    if window is None or heads is None or keys.shape != values.shape or keys.dtype != "float32":
        return None
    key_scatter, value_scatter = scatters
    assert key_scatter is not None
    assert value_scatter is not None
    return _Layer(node, (key_scatter, value_scatter), keys, values, heads, window)


def causal_window(graph: DecoderGraph, mask: str) -> int | None:
    """Return how many positions back each token may read by this mask, 0 for all; None for any other mask.

    The mask is computed for rows at the beginning, in the middle and at the end of the context.
    """
    context = graph.interface.context
    count = min(5, context)
    at = sorted({0, (context - count) // 2, context - count})
    values = graph.at_positions(mask, at, count)
    if values is None or values.dtype != np.bool_ or values.shape != (len(at), 1, count, context):
        return None
    most = int(values[-1, 0, -1].sum())
    window = most if most < context else 0
    rows, columns = np.array(at)[:, None, None] + np.arange(count)[:, None], np.arange(context)
    expected = (columns <= rows) & (columns > rows - (window or context))
    return window if np.array_equal(values[:, 0], expected) else None


def _replace(graph: DecoderGraph, layer: _Layer) -> None:
    node, size = layer.node, int(layer.keys.shape[3])
    query, key, value = node.input[0], *(scatter.input[1] for scatter in layer.scatters)
    turned, key_turned = rotation_of(graph, query, size), rotation_of(graph, key, size)
    table = None
    if turned and key_turned and (turned.cos, turned.sin) == (key_turned.cos, key_turned.sin):
        table = tables(graph, turned, size)
        query, key = (turned.x, key_turned.x) if table else (query, key)
    before: list[onnx.NodeProto] = []
    rows, output = _packed(graph, (query, key, value), before), f"{node.output[0]}_rows"
    fused = onnx.helper.make_node(
        "GroupQueryAttention",
        [*rows, layer.keys.input, layer.values.input, _LENGTHS, _LONGEST, *(table or ())],
        [output, layer.keys.output, layer.values.output],
        name=f"{node.output[0]}_gqa", domain=CONTRIB, num_heads=layer.heads, kv_num_heads=int(layer.keys.shape[1]),
        scale=attribute(node, "scale", size**-0.5), softcap=attribute(node, "softcap", 0.0),
        local_window_size=layer.window or -1, do_rotary=int(table is not None), rotary_interleaved=0,
    )  # fmt: skip
    after, gone = _after(graph, node.output[0], output, layer.heads, size)
    graph.replace([*before, fused, *after], [node, *layer.scatters, *gone])


def _packed(graph: DecoderGraph, names: tuple[str, str, str], before: list[onnx.NodeProto]) -> list[str]:
    """Return queries, keys and values by rows; as one tensor and two empty names if one product can make them."""
    inner, name = [_before_heads(graph, given) for given in names], f"{names[0]}_packed"
    if all(inner) and joined_product(graph, inner, f"{name}_all", before):
        before.append(onnx.helper.make_node("Reshape", [f"{name}_all", _ROWS], [name], name=name))
        return [name, "", ""]
    return [_rows(graph, given, before) for given in names]


def _before_heads(graph: DecoderGraph, name: str) -> str:
    """Return the tensor that is cut into heads to make [batch, heads, sequence, size]; '' if it is made otherwise."""
    transpose = graph.made_by(name, "Transpose")
    if transpose is None or attribute(transpose, "perm", None) != _HEADS_FIRST:
        return ""
    shaped = graph.made_by(transpose.input[0], "Reshape")
    return str((shaped if shaped is not None else transpose).input[0])


def _rows(graph: DecoderGraph, name: str, before: list[onnx.NodeProto]) -> str:
    """Return the tensor [batch, heads, sequence, size] as [batch, sequence, heads * size]."""
    inner = _before_heads(graph, name)
    if len(graph.shapes.get(inner, ())) == 3:
        return inner
    if not inner:
        inner = f"{name}_sequence_first"
        before.append(onnx.helper.make_node("Transpose", [name], [inner], name=inner, perm=_HEADS_FIRST))
    before.append(onnx.helper.make_node("Reshape", [inner, _ROWS], [f"{name}_rows"], name=f"{name}_rows"))
    return f"{name}_rows"


def _after(
    graph: DecoderGraph, attended: str, rows: str, heads: int, size: int
) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """Return nodes that give the attention's readers what they read, and nodes that are not needed any more."""
    transpose = graph.only_reader(attended, "Transpose")
    if transpose is not None and attribute(transpose, "perm", None) == _HEADS_FIRST:
        shaped = graph.only_reader(transpose.output[0], "Reshape")
        shape = None if shaped is None else graph.at_positions(shaped.input[1], [0, 0], 3)
        if shaped is not None and shape is not None and shape.tolist() in ([2, 3, heads * size], [2, 3, -1]):
            return [onnx.helper.make_node("Identity", [rows], [shaped.output[0]])], [transpose, shaped]
    shape_name = graph.add_constant(np.array([0, 0, heads, size], np.int64), f"{attended}_shape")
    sequence_first = f"{attended}_sequence_first"
    return [
        onnx.helper.make_node("Reshape", [rows, shape_name], [sequence_first], name=sequence_first),
        onnx.helper.make_node("Transpose", [sequence_first], [attended], name=attended, perm=_HEADS_FIRST),
    ], []


def _add_lengths(graph: DecoderGraph) -> None:
    """Put the nodes of _LENGTHS (int32 [batch]), _LONGEST (int32 []) and _ROWS (int64 [3]) before all others."""
    face, constant = graph.interface, graph.add_constant
    one, zero = constant(np.array([1], np.int64), "gqa_one"), constant(np.array([0], np.int64), "gqa_zero")
    rest = constant(np.array([-1], np.int64), "gqa_rest")
    make = onnx.helper.make_node
    nodes = [
        make("Shape", [face.ids], ["gqa_shape"]),
        make("Slice", ["gqa_shape", one, constant(np.array([2], np.int64), "gqa_two"), zero], ["gqa_sequence"]),
        make("Add", [face.positions, "gqa_sequence"], ["gqa_after"]),
        make("Sub", ["gqa_after", one], ["gqa_last"]),
        make("Cast", ["gqa_last"], [_LENGTHS], to=onnx.TensorProto.INT32),
        make("ReduceMax", ["gqa_after"], ["gqa_most"], keepdims=0),
        make("Cast", ["gqa_most"], [_LONGEST], to=onnx.TensorProto.INT32),
        make("Concat", ["gqa_shape", rest], [_ROWS], axis=0),
    ]
    graph.nodes = [*nodes, *graph.nodes]
    graph.index()
