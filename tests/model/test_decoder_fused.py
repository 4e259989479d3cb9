"""A decoder in ONNX Runtime's own operators gives the logits of the one in standard operators."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from engineworks.model.decoder.fused import fuse_decoder
from engineworks.model.decoder.fused.attention import causal_window
from engineworks.model.decoder.fused.graph import DecoderGraph
from engineworks.model.decoder.interface import read_interface
from engineworks.model.lower.quantize import name_nodes, quantize, raise_opset_for
from engineworks.model.onnx_files import graph_inputs, graph_outputs, load_model, save_model
from engineworks.steps.decoder.fused_model import SourceModel, difference_of, fused_model

MODEL = Path("recipes/models/tiny-decoder/model.onnx")
CONTEXT, MASK = 96, "le_1"


def decoder(path=MODEL):
    model = load_model(path)
    return model, read_interface(graph_inputs(model), graph_outputs(model), CONTEXT, {})


def operators(model):
    return [node.op_type for node in model.graph.node]


def windowed(most, path):
    """The tiny decoder with a mask that lets each token read only so many positions back."""
    model, face = decoder()
    rows = next(node.input[1] for node in model.graph.node if node.output[0] == MASK)
    columns = next(node.input[0] for node in model.graph.node if node.output[0] == MASK)
    for node in model.graph.node:
        if node.op_type == "Attention":
            node.input[3] = "windowed"
    at = next(i for i, node in enumerate(model.graph.node) if node.op_type == "Attention")
    model.graph.initializer.append(numpy_helper.from_array(np.array(most, np.int64), "most"))
    made = [
        helper.make_node("Sub", [rows, "most"], ["oldest"]),
        helper.make_node("Greater", [columns, "oldest"], ["recent"]),
        helper.make_node("And", [MASK, "recent"], ["windowed"]),
    ]
    nodes = [*model.graph.node[:at], *made, *model.graph.node[at:]]
    copies = onnx.GraphProto(node=nodes)
    del model.graph.node[:]
    model.graph.node.extend(copies.node)
    save_model(model, path)
    return path, face


def test_norms_rotations_attention_and_projections_are_fused():
    model, face = decoder()
    made = fuse_decoder(model, face)
    names = operators(model)
    assert made == replace(face, lone_appends=True)
    assert names.count("GroupQueryAttention") == 2
    assert names.count("SkipSimplifiedLayerNormalization") + names.count("SimplifiedLayerNormalization") == 5
    assert not {"TensorScatter", "Attention", "Transpose", "Pow", "Neg"} & set(names)


@pytest.mark.parametrize("most", [0, 8])
def test_the_logits_stay_the_same(most, tmp_path):
    path, face = windowed(most, tmp_path / "windowed.onnx") if most else (MODEL, decoder()[1])
    plain = SourceModel(path, face)
    fused = fused_model(plain, tmp_path / "fused.onnx")
    assert difference_of(plain, fused, "fp32") == ""
    attention = next(n for n in load_model(fused.path).graph.node if n.op_type == "GroupQueryAttention")
    assert next(a.i for a in attention.attribute if a.name == "local_window_size") == (most or -1)


def test_int4_weights_are_joined_and_give_the_same(tmp_path):
    globs = {"int4_weights": ("worthwhile:*",)}
    model, face = decoder()
    quantized = quantize(name_nodes(raise_opset_for(name_nodes(model), globs)), None, globs=globs).model
    save_model(quantized, tmp_path / "int4.onnx")
    plain = SourceModel(tmp_path / "int4.onnx", face)
    fused = fused_model(plain, tmp_path / "fused.onnx")
    assert difference_of(plain, fused, "fp32") == ""
    joined = 2 * 2  # queries, keys and values of each layer are one product
    for operator in ("DequantizeLinear", "MatMul"):
        assert operators(load_model(fused.path)).count(operator) == operators(quantized).count(operator) - joined


def test_another_mask_is_no_causal_one(tmp_path):
    model, face = decoder()
    assert causal_window(DecoderGraph(model, face), MASK) == 0
    columns = next(node.input[0] for node in model.graph.node if node.output[0] == MASK)
    held = next(tensor for tensor in model.graph.initializer if tensor.name == columns)
    shifted = numpy_helper.to_array(held).copy()
    shifted[..., 5] = CONTEXT  # nothing reads position 5
    held.CopyFrom(numpy_helper.from_array(shifted, columns))
    assert causal_window(DecoderGraph(model, face), MASK) is None
    made = fuse_decoder(model, face)
    assert "GroupQueryAttention" not in operators(model)
    assert not made.lone_appends


def test_a_fused_graph_with_other_logits_is_not_used(tmp_path):
    plain = SourceModel(MODEL, decoder()[1])
    fused = fused_model(plain, tmp_path / "fused.onnx")
    model = load_model(fused.path)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "scale":
                attribute.f *= 1.01
    save_model(model, fused.path)
    assert "its logits would differ by" in difference_of(plain, fused, "fp32")
