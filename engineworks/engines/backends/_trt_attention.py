"""Rewrites Attention that TensorRT has no kernel for as the products and softmax that the standard defines.

TensorRT fuses some (fp16, head sizes from 16, one output, no sequence lengths) and refuses all others. The build tries
the model as it is first. If an Attention was the reason, it tries again with every Attention rewritten.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engineworks.host.lazy import onnx
from engineworks.model.fold.shapes import infer_shapes
from engineworks.model.fold.tidy import drop_unused
from engineworks.model.graphs import all_graphs
from engineworks.model.onnx_files import load_model, opset_of

_DOMAIN = "engineworks.written_out"


def written_out(path: Path) -> onnx.ModelProto | None:
    """Return the model with every Attention as the standard's function of smaller operators. None where it has no
    Attention, or ONNX has no function for one of them. Weights stay in their file.

    The functions are asked for one by one: `onnx.inliner.inline_selected_functions` of onnx 1.22 and 1.23 ends where an
    optional input is omitted before a given one ("Type unknown for").
    """
    from onnx import helper, inliner

    model = infer_shapes(load_model(path, weights=False))
    functions: list[onnx.FunctionProto] = []
    types: dict[str, onnx.TypeProto] = {}  # a branch reads what the graphs around it make
    for graph in all_graphs(model.graph):
        types |= {value.name: value.type for value in (*graph.input, *graph.output, *graph.value_info)}
        for node in graph.node:
            if node.op_type == "Attention" and not node.domain:
                body = _body_of(node, types, opset_of(model))
                if body is None:
                    return None
                body.domain, body.name = node.domain, node.op_type = _DOMAIN, f"Attention_{len(functions)}"
                functions.append(body)
    if not functions:
        return None
    model.functions.extend(functions)
    model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    plain = inliner.inline_local_functions(model)
    drop_unused(plain.graph)
    return plain


def _body_of(node: onnx.NodeProto, types: dict[str, onnx.TypeProto], opset: int) -> onnx.FunctionProto | None:
    """The standard's function of this node, whose types and omitted inputs decide what it holds."""
    schema: Any = onnx.defs.get_schema(node.op_type, opset)  # onnx 1.23's types lack this method
    given = [types.get(name, onnx.TypeProto()).SerializeToString() for name in node.input]
    try:
        body = schema.get_context_dependent_function(node.SerializeToString(), given)
    except RuntimeError:  # the type of an input is not known
        return None
    function = onnx.FunctionProto.FromString(body)
    del function.output[len(node.output) :]
    function.opset_import[0].version = opset  # no inlining across versions
    return function if function.node else None
