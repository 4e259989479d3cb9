"""A model with its own Q/DQ (quantization-aware training): checked, never changed.

`capabilities` lists what a target cannot do with them, because it depends on the target. For example, a CPU runs zero
points other than 0, which TensorRT refuses.
"""

from __future__ import annotations

from engineworks.errors import ModelError
from engineworks.host.lazy import onnx
from engineworks.model.fold.inventory import stored_type
from engineworks.model.graphs import all_nodes, node_label
from engineworks.model.lower.report import AsIs
from engineworks.model.onnx_files import opset_of

MIN_OPSET = 13
"""First opset whose DequantizeLinear has scales per channel."""


def check_as_is(model: onnx.ModelProto, where: str) -> AsIs:
    """Check the model. Raises `ModelError` for Q/DQ of an opset that has no scales per channel.

    A model without any passes too: it may already be in fp16, or mixed.
    """
    nodes = [n for n in all_nodes(model.graph) if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    if nodes and opset_of(model) < MIN_OPSET:
        raise ModelError(
            f"{where}: the model is of opset {opset_of(model)}, its Q/DQ need {MIN_OPSET} ({node_label(nodes[0])})",
            hint=f"export it with opset {MIN_OPSET} or later",
        )
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    return AsIs(
        sum(n.op_type == "QuantizeLinear" for n in nodes),
        sum(n.op_type == "DequantizeLinear" for n in nodes),
        tuple(sorted({stored_type(n, constants) or "computed" for n in nodes})),
    )
