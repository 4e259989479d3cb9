"""Int8 products for fp16: one scale in Q/DQ, and the ratios of the channels' scales multiplied after the product.

With scales per channel TensorRT-RTX 1.6 gives infinities for large sums. After a layer norm or tanh the outputs are
plausible and wrong. With one scale, fp32 for unquantized nodes, or small inputs it is right (seen on an NVIDIA H100;
tests/engines/test_gpu_int8_products.py). So it seems to round int32 sums to fp16 first: fp16 cannot hold 127² × 768.

Weights and their steps stay those of scales per channel: w[k, n] = q[k, n] s[n] = q[k, n] s₀ (s[n] / s₀). BERT-base was
not slower (0.74 ms, before 0.83 ms, at batch 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engineworks.host.lazy import onnx
from engineworks.model.graphs import set_nodes

_PRODUCTS = ("Gemm", "MatMul")


def scale_channels_after_products(model: onnx.ModelProto) -> tuple[str, ...]:
    """Rewrite, in place, the products whose operands are both int8, one a weight with scales per channel; returns their
    names.

    model: fp32 with Q/DQ, as `quantize` makes it. Products of int8 weights and float activations multiply dequantized
    values, and are rewritten only if they share a weight with others.
    """
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = {w.dequantized: w for w in _weights(model, initializers)}
    nodes: list[onnx.NodeProto] = []
    changed = []
    for node in model.graph.node:
        at = next((at for at, name in enumerate(node.input) if name in weights), None)
        if at is None:
            nodes.append(node)
            continue
        changed.append(node.name)
        nodes.extend(_multiplied(node, weights[node.input[at]].ratios_for(at)))
    for weight in weights.values():
        model.graph.initializer.extend(weight.use_one_scale(initializers))
    set_nodes(model.graph, nodes)
    return tuple(changed)


@dataclass
class _Weight:
    """A DequantizeLinear of a weight with scales per channel; `read_as`: the operands as which products read it."""

    node: onnx.NodeProto
    scales: NDArray[np.float32]
    read_as: set[int]

    @property
    def dequantized(self) -> str:
        return str(self.node.output[0])

    def ratios_for(self, operand: int) -> str:
        """Return the name of the factors for products that read it as their first operand (a column: channels are rows
        there) or their second."""
        self.read_as.add(operand)
        return f"{self.node.input[1]}_of_{'rows' if operand == 0 else 'columns'}"

    def use_one_scale(self, initializers: dict[str, onnx.TensorProto]) -> Iterator[onnx.TensorProto]:
        """Give the node the median of its scales; yields the factors, f32[rows, 1] or f32[columns].

        A channel of zeros gets 1: its own scale means nothing, and fp16 could not hold its ratio to a small median.
        """
        values, scale, zero_point = self.node.input
        quantized = onnx.numpy_helper.to_array(initializers[values])
        axis = next((a.i for a in self.node.attribute if a.name == "axis"), 1) % quantized.ndim
        used = quantized.any(axis=tuple(i for i in range(quantized.ndim) if i != axis))
        common = np.median(self.scales[used]).astype(np.float32) if used.any() else np.float32(1)
        ratios = np.where(used, self.scales / common, 1).astype(np.float32)
        initializers[scale].CopyFrom(onnx.numpy_helper.from_array(np.asarray(common), scale))
        initializers[zero_point].CopyFrom(onnx.numpy_helper.from_array(np.asarray(0, np.int8), zero_point))
        del self.node.attribute[:]
        for operand in sorted(self.read_as):
            shaped = ratios[:, None] if operand == 0 else ratios
            yield onnx.numpy_helper.from_array(shaped, self.ratios_for(operand))


def _weights(model: onnx.ModelProto, initializers: dict[str, onnx.TensorProto]) -> Iterator[_Weight]:
    """Yield the weights to rewrite: int8, scales per channel, read only by products, one with int8 activations."""
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in initializers:
            continue
        if initializers[node.input[0]].data_type != onnx.TensorProto.INT8:
            continue
        scales = onnx.numpy_helper.to_array(initializers[node.input[1]])
        products = readers.get(node.output[0], [])
        if scales.ndim != 1 or any(reader.op_type not in _PRODUCTS for reader in products):
            continue
        if any(dequantized.issuperset(reader.input[:2]) for reader in products):
            yield _Weight(node, scales, set())


def _multiplied(node: onnx.NodeProto, ratios: str) -> Iterator[onnx.NodeProto]:
    """Yield the product without its bias, times `ratios`, plus the bias; new names start with the product's."""
    make = onnx.helper.make_node
    output, raw, name = node.output[0], f"{node.output[0]}_one_scale", node.name or node.output[0]
    bias = node.input[2] if len(node.input) > 2 else ""
    beta = next((a.f for a in node.attribute if a.name == "beta"), 1.0)
    node.output[0] = raw
    yield node
    if not bias:
        yield make("Mul", [raw, ratios], [output], name=f"{name}_channels")
        return
    del node.input[2:]
    yield make("Mul", [raw, ratios], [f"{output}_channels"], name=f"{name}_channels")
    if beta != 1.0:
        factor = f"{output}_beta"
        constant = onnx.numpy_helper.from_array(np.asarray(beta, np.float32), factor)
        yield make("Constant", [], [factor], name=f"{name}_beta", value=constant)
        yield make("Mul", [bias, factor], [f"{output}_bias"], name=f"{name}_times_beta")
        bias = f"{output}_bias"
    yield make("Add", [f"{output}_channels", bias], [output], name=f"{name}_bias")
