"""What a model consists of, in numbers."""

from __future__ import annotations

import math
from collections import Counter

from engineworks.host.lazy import onnx
from engineworks.model.fold.node_uses import node_uses, operator_name
from engineworks.model.fold.report import Inventory
from engineworks.model.graphs import all_nodes, all_tensors
from engineworks.model.onnx_files import dtype_name, graph_inputs, graph_outputs, opset_of
from engineworks.model.tensor_storage import tensor_bytes

_NOT_PARAMETERS = frozenset({"int64", "int32", "bool", "string"})


def inventory(model: onnx.ModelProto) -> Inventory:
    """Count the model's parts. Weights need not be loaded: sizes come from shapes and dtypes."""
    operators = Counter(map(operator_name, all_nodes(model.graph)))
    sizes: Counter[str] = Counter()
    parameters = 0
    for tensor in all_tensors(model):
        dtype = dtype_name(tensor.data_type)
        sizes[dtype] += tensor_bytes(tensor)
        if dtype not in _NOT_PARAMETERS:
            parameters += math.prod(tensor.dims)
    return Inventory(
        nodes=operators.total(),
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        uses=node_uses(model),
        parameters=parameters,
        weight_bytes=sum(sizes.values()),
        bytes_by_dtype=dict(sorted(sizes.items())),
        opset=opset_of(model),
        ir_version=model.ir_version,
        inputs=graph_inputs(model),
        outputs=graph_outputs(model),
    )
