"""Attention that TensorRT has no kernel for, written out as the products and the softmax that the standard defines.

It fuses what it can (fp16, head sizes from 16, one output, no sequence lengths); the rest it refuses, whole. So the
model is given as it is first, and once more with every Attention written out if that was the reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engineworks.model.fold.shapes import infer_shapes
from engineworks.model.fold.tidy import drop_unused
from engineworks.model.onnx_files import load_model

if TYPE_CHECKING:
    import onnx


def written_out(path: Path) -> onnx.ModelProto | None:
    """The model with every Attention as the standard's own function of smaller operators; None where it has none, or
    ONNX cannot write it out. Weights stay in their file."""
    from onnx.inliner import inline_selected_functions

    model = load_model(path, weights=False)
    if not any(node.op_type == "Attention" and not node.domain for node in model.graph.node):
        return None
    try:
        plain = inline_selected_functions(infer_shapes(model), [("", "Attention")], inline_schema_functions=True)
    except RuntimeError:  # an optional input is left out before one that is given: onnx 1.22 and 1.23 cannot
        return None
    drop_unused(plain.graph)
    return plain
