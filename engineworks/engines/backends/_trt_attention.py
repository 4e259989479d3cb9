"""Rewrites Attention that TensorRT has no kernel for as the products and softmax that the standard defines.

TensorRT fuses some (fp16, head sizes from 16, one output, no sequence lengths) and refuses all others. The build tries
the model as it is first. If an Attention was the reason, it tries again with every Attention rewritten.
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
    """Return the model with every Attention as the standard's function of smaller operators. None where it has no
    Attention, or ONNX cannot rewrite it. Weights stay in their file."""
    from onnx.inliner import inline_selected_functions

    model = load_model(path, weights=False)
    if not any(node.op_type == "Attention" and not node.domain for node in model.graph.node):
        return None
    try:
        plain = inline_selected_functions(infer_shapes(model), [("", "Attention")], inline_schema_functions=True)
    except RuntimeError:  # onnx 1.22 and 1.23 cannot omit an optional input before a given one
        return None
    drop_unused(plain.graph)
    return plain
