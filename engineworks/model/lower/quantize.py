"""INT8 by explicit Q/DQ: QuantizeLinear and DequantizeLinear around the operands of convolutions and products.

Activations: symmetric int8, one scale for a tensor, one pair of nodes for all its quantized consumers. Weights:
symmetric int8 initializers and DequantizeLinear, one scale for each output channel. Biases and all else stay fp32;
scales are fp32 initializers called `<tensor>_scale`, so that a later pass can convert what is left to fp16.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engineworks.errors import LoweringError
from engineworks.model.calibration.ranges import INT8_MAX, SCALE_OF_ZERO, Ranges
from engineworks.model.graphs import names_read
from engineworks.model.lower.quantizable import QUANTIZABLE, Activation, KeptNode, Weight, node_label, plan_int8

if TYPE_CHECKING:
    import onnx

MIN_OPSET = 13
"""First opset whose DequantizeLinear has scales per channel."""

_BLOCK = 1 << 18
"""Weights that are rounded at a time: temporary copies of a large weight would cost more than the rounding."""


@dataclass(frozen=True)
class Quantized:
    """The lowered model and an account of it: nodes that compute in int8, those that could but do not, and the
    tensors that became int8. Nodes without a name are called by their first output."""

    model: onnx.ModelProto
    quantized_nodes: tuple[str, ...]
    kept_nodes: tuple[KeptNode, ...]
    activations: tuple[str, ...]
    weights: tuple[str, ...]


def tensors_to_calibrate(
    model: onnx.ModelProto, keep: Sequence[str] = (), *, op_types: Sequence[str] = QUANTIZABLE
) -> tuple[str, ...]:
    """Activations that `quantize` needs ranges of, in the order of the graph. Weights need not be loaded."""
    operands = (o for node in plan_int8(model, keep, op_types).operands.values() for o in node)
    return tuple(dict.fromkeys(operand.tensor for operand in operands if isinstance(operand, Activation)))


def quantize(
    model: onnx.ModelProto, ranges: Ranges, *, keep: Sequence[str] = (), op_types: Sequence[str] = QUANTIZABLE
) -> Quantized:
    """A new model in which the nodes of `op_types` compute in int8. `model` (fp32, opset ≥ 13, sorted, weights in
    memory) is left as it was, and never serialized: it may be larger than 2 GB.

    keep: nodes that stay in high precision: names or globs of names, or `op:` and a type such as `op:MatMul`.
    Raises `LoweringError` for an older opset, an entry of `keep` that matches no node, an activation without a range
    and a weight that is not finite or not loaded.
    """
    _check_opset(model)
    plan = plan_int8(model, keep, op_types)
    writer = _Writer(model, ranges)
    for at, node in enumerate(model.graph.node):
        writer.add(node, plan.operands.get(at, ()))
    return Quantized(
        model=writer.finish(),
        quantized_nodes=tuple(node_label(model.graph.node[at]) for at in plan.operands),
        kept_nodes=plan.kept,
        activations=tuple(writer.activations),
        weights=tuple(dict.fromkeys(tensor for tensor, *_ in writer.weights)),
    )


def _check_opset(model: onnx.ModelProto) -> None:
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < MIN_OPSET:
        raise LoweringError(
            f"the model is of opset {opset}; int8 needs {MIN_OPSET}, the first with scales per channel",
            hint="raise it with ONNX's version converter",
        )


class _Writer:
    """Builds the new model node by node; names are taken in the order of the graph, so that they never vary."""

    def __init__(self, model: onnx.ModelProto, ranges: Ranges) -> None:
        self._source = model
        self._ranges = ranges
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._taken = _all_names(model.graph)
        self._replaced: set[str] = set()
        self.activations: dict[str, str] = {}
        self.weights: dict[tuple[str, tuple[int, ...], int | None], str] = {}

    def add(self, node: onnx.NodeProto, operands: Iterable[Activation | Weight]) -> None:
        """Append the node, its `operands` read from int8."""
        import onnx

        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for operand in operands:
            quantized = self._activation(operand) if isinstance(operand, Activation) else self._weight(operand)
            copy.input[operand.index] = quantized
        self._nodes.append(copy)

    def _activation(self, operand: Activation) -> str:
        """Name of the tensor after Q and DQ, which stand before its first quantized consumer."""
        tensor = operand.tensor
        if tensor not in self.activations:
            found = self._ranges.tensors.get(tensor)
            if found is None:
                raise LoweringError(
                    f"activation '{tensor}' has no calibration range",
                    hint="calibrate this model again, with the same 'keep'",
                )
            parameters = self._parameters(tensor, np.float32(found.scale))
            quantized, dequantized = self._unique(f"{tensor}_quantized"), self._unique(f"{tensor}_dequantized")
            self._append_node("QuantizeLinear", tensor, [tensor, *parameters], quantized)
            self._append_node("DequantizeLinear", tensor, [quantized, *parameters], dequantized)
            self.activations[tensor] = dequantized
        return self.activations[tensor]

    def _weight(self, operand: Weight) -> str:
        """Name of the weight after DQ; nodes that see the same channels of the same weight share it."""
        import onnx

        tensor = operand.names[-1]
        key = tensor, operand.axes, operand.channels
        self._replaced.update(operand.names)
        if key not in self.weights:
            seen = np.ascontiguousarray(_values(operand.tensor, tensor).transpose(operand.axes))
            values, scale = quantize_weight(seen, operand.channels, tensor)
            quantized, dequantized = self._unique(f"{tensor}_quantized"), self._unique(f"{tensor}_dequantized")
            self._initializers.append(onnx.numpy_helper.from_array(values, quantized))
            parameters = self._parameters(tensor, scale)
            self._append_node("DequantizeLinear", tensor, [quantized, *parameters], dequantized, operand.channels)
            self.weights[key] = dequantized
        return self.weights[key]

    def _parameters(self, tensor: str, scale: NDArray[np.float32] | np.float32) -> tuple[str, str]:
        """Names of new initializers for scale (fp32) and zero point (int8 zeros of the same shape)."""
        import onnx

        names = self._unique(f"{tensor}_scale"), self._unique(f"{tensor}_zero_point")
        for name, value in zip(names, (np.asarray(scale), np.zeros(np.shape(scale), np.int8)), strict=True):
            self._initializers.append(onnx.numpy_helper.from_array(value, name))
        return names

    def _append_node(
        self, op_type: str, tensor: str, inputs: Sequence[str], output: str, axis: int | None = None
    ) -> None:
        import onnx

        node = onnx.helper.make_node(op_type, inputs, [output], name=self._unique(f"{tensor}_{op_type}"))
        if axis is not None:
            node.attribute.append(onnx.helper.make_attribute("axis", axis))
        self._nodes.append(node)

    def _unique(self, name: str) -> str:
        found, number = name, 1
        while found in self._taken:
            number += 1
            found = f"{name}_{number}"
        self._taken.add(found)
        return found

    def finish(self) -> onnx.ModelProto:
        """The new model, without the weights (and the nodes that only passed them on) that nothing reads any more."""
        import onnx

        graph = self._source.graph
        used = {output.name for output in graph.output}
        nodes = []
        for node in reversed(self._nodes):
            if used.isdisjoint(node.output) and self._replaced.issuperset(node.output):
                continue
            used.update(names_read(node))
            nodes.append(node)
        gone = self._replaced - used
        result = onnx.ModelProto()
        _copy_fields(self._source, result, but={"graph"})
        _copy_fields(graph, result.graph, but={"node", "initializer", "input", "value_info"})
        result.graph.node.extend(reversed(nodes))
        result.graph.initializer.extend(t for t in graph.initializer if t.name not in gone)
        result.graph.initializer.extend(self._initializers)
        result.graph.input.extend(value for value in graph.input if value.name not in gone)
        result.graph.value_info.extend(value for value in graph.value_info if value.name not in gone)
        return result


def quantize_weight(
    values: NDArray[np.float32], axis: int | None, name: str
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 values and their scale: fp32[n] along `axis`, a scalar where that is None.

    scale = max|w| / 127, values = round(w / scale), half to even. A channel of zeros gets scale 1.
    Raises `LoweringError` for NaN and infinity.
    """
    others = None if axis is None else tuple(i for i in range(values.ndim) if i != axis)
    amax = np.maximum(values.max(axis=others, keepdims=True), -values.min(axis=others, keepdims=True))
    if not np.isfinite(amax).all():
        raise LoweringError(f"weight '{name}' holds NaN or infinity", hint="check the model that was exported")
    scale = amax / np.float32(INT8_MAX)
    scale[scale < np.finfo(np.float32).tiny] = SCALE_OF_ZERO
    quantized = np.empty(values.shape, np.int8)
    scales = np.broadcast_to(scale, (len(values), *scale.shape[1:]))
    rows = max(1, _BLOCK * len(values) // values.size)
    for start in range(0, len(values), rows):
        block = slice(start, start + rows)
        quantized[block] = np.clip(np.rint(values[block] / scales[block]), -INT8_MAX, INT8_MAX)
    return quantized, scale.reshape(() if axis is None else -1)


def _values(tensor: onnx.TensorProto, name: str) -> NDArray[np.float32]:
    import onnx

    if onnx.external_data_helper.uses_external_data(tensor):
        raise LoweringError(f"the values of weight '{name}' are not loaded", hint="load the model with its weights")
    values: NDArray[np.float32] = onnx.numpy_helper.to_array(tensor)
    return values


def _all_names(graph: onnx.GraphProto) -> set[str]:
    """Every name of a tensor or node of the main graph, and every name that its subgraphs use."""
    names = {value.name for part in (graph.input, graph.output, graph.initializer) for value in part}
    for node in graph.node:
        names.update((node.name, *node.output, *names_read(node)))
    return names


def _copy_fields(source: Any, target: Any, *, but: set[str]) -> None:
    """Copy a protobuf message field by field, so that no large one has to be copied to be dropped."""
    for field, value in source.ListFields():
        if field.name in but:
            continue
        if hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)
