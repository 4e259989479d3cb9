"""What a model consists of, in numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engineworks.model.fold.node_uses import node_uses, operator_name
from engineworks.model.graphs import all_nodes, all_tensors
from engineworks.model.onnx_files import dtype_name, graph_inputs, graph_outputs, opset_of
from engineworks.model.tensor_storage import tensor_bytes
from engineworks.tensors import TensorSpec

if TYPE_CHECKING:
    import onnx

_NOT_PARAMETERS = frozenset({"int64", "int32", "bool", "string"})


@dataclass(frozen=True)
class Inventory:
    """operators: how often each operator occurs, branches and bodies included, as 'Conv' or 'com.microsoft.Gelu'.

    uses: names of nodes, of every operator and of every use of one that a target may not have (`node_uses`).
    parameters: elements of all stored tensors but those of int64, int32, bool and string, which hold shapes, indices
    and switches. bytes_by_dtype: bytes of all stored tensors; weight_bytes is their sum.
    """

    operators: Mapping[str, int]
    uses: Mapping[str, tuple[str, ...]]
    parameters: int
    weight_bytes: int
    bytes_by_dtype: Mapping[str, int]
    opset: int
    ir_version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def nodes(self) -> int:
        return sum(self.operators.values())

    def to_json(self) -> dict[str, object]:
        return {
            "nodes": self.nodes,
            **vars(self),
            "operators": dict(self.operators),
            "uses": {use: list(nodes) for use, nodes in self.uses.items()},
            "bytes_by_dtype": dict(self.bytes_by_dtype),
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
        }


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
