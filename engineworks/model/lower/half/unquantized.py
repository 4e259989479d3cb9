"""Half precision for unquantized nodes. The model before quantization shows which nodes tolerate it.

Rounding in half precision moves values over the edges of int8's steps. So a quantized model in half precision differs
from itself in fp32 by about the noise of quantization. That difference shows nothing about single nodes (MiniLM: 199 of
345 nodes were kept in fp32 for it, without gain). Therefore the fp32 model is converted and verified first, with the
limits for half precision alone, and its decisions are reused. Then the result and the quantized model are compared with
the fp32 model: the result may not be much noisier.

Int8 products get one scale in Q/DQ, and the ratios of the channels' scales are multiplied after the product. With
scales per channel TensorRT-RTX 1.6 gives infinities for large sums. After a layer norm or tanh the outputs are
plausible and wrong. With one scale, fp32 for unquantized nodes, or small inputs it is right (seen on an NVIDIA H100;
tests/engines/test_gpu_int8_products.py). So it seems to round int32 sums to fp16 first: fp16 cannot hold 127² × 768.
Weights and their steps stay those of scales per channel: w[k, n] = q[k, n] s[n] = q[k, n] s₀ (s[n] / s₀). BERT-base was
not slower (0.74 ms, before 0.83 ms, at batch 1).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engineworks.errors import PrecisionError
from engineworks.host.lazy import onnx
from engineworks.model.graphs import set_nodes
from engineworks.model.lower.half.convert import convert, prepare
from engineworks.model.lower.half.half import lower_half
from engineworks.model.lower.half.overflow import first_overflow
from engineworks.model.lower.half.prove import compare_outputs, prove, reference_outputs
from engineworks.model.lower.half.run import Arrays, Bench
from engineworks.model.lower.report import DEFAULT_LIMITS, HalfReport, HalfType, OutputProof
from engineworks.settings import uses_workarounds

MORE_NOISE_DB = 6.0
"""How much half precision for unquantized nodes may add to the noise of quantization: four times its power. A sound
conversion adds a few percent."""

LESS_AGREEMENT = 0.05
"""Share of the elements of integer outputs (e.g. ArgMax) that it may change beyond those that quantization changes."""


def halve_unquantized(
    quantized: onnx.ModelProto,
    fp32: onnx.ModelProto,
    dtype: HalfType,
    feeds: Iterable[Arrays],
    *,
    keep: Sequence[str] = (),
    source: onnx.ModelProto | None = None,
) -> tuple[onnx.ModelProto, HalfReport]:
    """Convert `quantized`, made of `fp32` with its nodes' names, to half precision wherever it is not quantized.

    `quantized` is consumed: for fp16, its int8 products get one scale each (`scale_channels_after_products`). feeds:
    arrays by input name, with the shapes and dtypes of the model's inputs. keep: names or globs of nodes that stay
    fp32. source: the float64 model that `fp32` was made of. Raises what `lower_half` does for `fp32`, and
    `LoweringError` if the result is not finite, with the node, or noisier than the quantized model by more than
    `MORE_NOISE_DB`.
    """
    if dtype == "float16" and uses_workarounds():
        scale_channels_after_products(quantized)
    limits = DEFAULT_LIMITS[dtype]
    samples = list(islice(feeds, limits.samples))
    with tempfile.TemporaryDirectory(prefix="around-") as folder:
        bench = Bench(Path(folder))
        references = reference_outputs(bench, source or fp32, samples)
        _, plain = lower_half(fp32, dtype, samples, keep=keep, autocast=False, references=references, source=source)
        prepared = prepare(quantized, dtype, keep, clamps=plain.clamps)
        halved = convert(prepared, plain.kept)
        proofs = prove(bench, halved.model, prepared.half, samples, references)
        before = _noise_of(bench, quantized, samples, references)
        for proof in proofs:
            reason = _too_noisy(proof, before[proof.name], limits.min_sqnr_db)
            overflow = None if proof.finite else first_overflow(bench, fp32, halved.model, prepared.half, samples)
            if reason:
                raise PrecisionError(
                    f"{dtype} around quantized nodes: {reason}" + (f"; {overflow}" if overflow else ""),
                    hint="set calibration: {unquantized: fp32}, or bf16, or name the node under fp32 of a mixture",
                )
    report = replace(
        plain, nodes=len(prepared.graph.nodes), converted=len(halved.converted_nodes), kept=halved.kept_nodes,
        casts=sum(node.op_type == "Cast" for node in halved.model.graph.node), outputs=proofs, weights=halved.weights,
    )  # fmt: skip
    return halved.model, report


def _noise_of(
    bench: Bench, quantized: onnx.ModelProto, samples: Sequence[Arrays], references: Sequence[Arrays]
) -> Mapping[str, OutputProof]:
    """Compare the quantized model with the fp32 one. No results if the CPU cannot run it (fp8)."""
    return {proof.name: proof for proof in compare_outputs(references, reference_outputs(bench, quantized, samples))}


def _too_noisy(proof: OutputProof, before: OutputProof, enough_db: float) -> str:
    """Return what is wrong with an output; empty if nothing is."""
    if not proof.finite:
        return f"output '{proof.name}' is infinite or NaN where fp32 is not"
    if proof.floating and proof.sqnr_db < min(enough_db, before.sqnr_db - MORE_NOISE_DB):
        return (
            f"output '{proof.name}' has a signal to noise ratio of {proof.sqnr_db:.1f} dB, "
            f"{before.sqnr_db:.1f} dB with fp32 around them"
        )
    if not proof.floating and proof.agreement < before.agreement - LESS_AGREEMENT:
        return (
            f"output '{proof.name}' agrees with fp32 in {proof.agreement:.2%} of its elements, "
            f"{before.agreement:.2%} with fp32 around them"
        )
    return ""


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
