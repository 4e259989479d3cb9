"""A decoder in ONNX as onnxruntime-genai's builder writes it: operators of ONNX Runtime's own, and a cache whose last
dimension has only a name. One layer, two heads over one head of keys and values, random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

VOCABULARY, SIZE, HEAD = 24, 16, 8

GRAPH = """
<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
genai (int64[batch, sequence] input_ids, int64[batch, total] attention_mask,
       float[batch, 1, past, kv_cache_dim] past_key, float[batch, 1, past, kv_cache_dim] past_value)
  => (float[batch, sequence, 24] logits,
      float[batch, 1, total, kv_cache_dim] present_key, float[batch, 1, total, kv_cache_dim] present_value)
{
  one = Constant <value = int64 {1}> ()
  one_axis = Constant <value = int64[1] {1}> ()
  counts = ReduceSum (attention_mask, one_axis)
  counts1 = Sub (counts, one)
  lengths = Cast <to = 6> (counts1)
  mask_shape = Shape <start = 1, end = 2> (attention_mask)
  total64 = Squeeze (mask_shape)
  total32 = Cast <to = 6> (total64)
  x = Gather (embedding, input_ids)
  normed = SimplifiedLayerNormalization <axis = -1, epsilon = 1e-05, stash_type = 1> (x, norm_1)
  qkv = MatMul (normed, w_qkv)
  mixed, present_key, present_value = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1>
    (qkv, "", "", past_key, past_value, lengths, total32)
  out = MatMul (mixed, w_out)
  last = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 1e-05> (x, out, norm_2)
  logits = MatMul (last, head)
}
"""


def write_genai_decoder(path: Path) -> Path:
    model = parser.parse_model(GRAPH)
    rng = np.random.default_rng(5)
    shapes = {"embedding": (VOCABULARY, SIZE), "w_qkv": (SIZE, 4 * HEAD), "w_out": (2 * HEAD, SIZE)}
    shapes |= {"norm_1": (SIZE,), "norm_2": (SIZE,), "head": (SIZE, VOCABULARY)}
    for name, shape in shapes.items():
        values = rng.normal(size=shape).astype(np.float32) * (SIZE**-0.5 if name.startswith("w_") else 1.0)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.save(model, str(path))
    return path
