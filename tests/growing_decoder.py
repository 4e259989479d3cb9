"""A decoder in ONNX whose cache grows by concatenation: one layer, one head, random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

VOCABULARY, SIZE = 24, 16

GRAPH = """
<ir_version: 9, opset_import: ["" : 18]>
growing (int64[batch, sequence] input_ids, float[batch, 1, past, 16] past_k, float[batch, 1, past, 16] past_v)
  => (float[batch, sequence, 24] logits, float[batch, 1, total, 16] present_k, float[batch, 1, total, 16] present_v)
{
  zero = Constant <value = int64 {0}> ()
  one = Constant <value = int64 {1}> ()
  one_axis = Constant <value = int64[1] {1}> ()
  x = Gather (embedding, input_ids)
  q = MatMul (x, wq)
  k = MatMul (x, wk)
  v = MatMul (x, wv)
  k4 = Unsqueeze (k, one_axis)
  v4 = Unsqueeze (v, one_axis)
  q4 = Unsqueeze (q, one_axis)
  present_k = Concat <axis = 2> (past_k, k4)
  present_v = Concat <axis = 2> (past_v, v4)
  past_shape = Shape <start = 2, end = 3> (past_k)
  all_shape = Shape <start = 2, end = 3> (present_k)
  past_n = Squeeze (past_shape)
  all_n = Squeeze (all_shape)
  rows = Range (past_n, all_n, one)
  columns = Range (zero, all_n, one)
  rows2 = Unsqueeze (rows, one_axis)
  mask = LessOrEqual (columns, rows2)
  kt = Transpose <perm = [0, 1, 3, 2]> (present_k)
  scores = MatMul (q4, kt)
  least = Constant <value = float {-1e30}> ()
  masked = Where (mask, scores, least)
  weights = Softmax <axis = -1> (masked)
  mixed = MatMul (weights, present_v)
  flat = Squeeze (mixed, one_axis)
  sum = Add (flat, x)
  logits = MatMul (sum, head)
}
"""


def write_growing_decoder(path: Path) -> Path:
    model = parser.parse_model(GRAPH)
    rng = np.random.default_rng(3)
    shapes = {"embedding": (VOCABULARY, SIZE), "head": (SIZE, VOCABULARY)}
    shapes |= dict.fromkeys(("wq", "wk", "wv"), (SIZE, SIZE))
    for name, shape in shapes.items():
        values = rng.normal(size=shape).astype(np.float32) * (1.0 if name == "embedding" else SIZE**-0.5)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.save(model, str(path))
    return path
