"""Half precision for unquantized nodes. The model before quantization shows which nodes tolerate it.

Rounding in half precision moves values over the edges of int8's steps. So a quantized model in half precision differs
from itself in fp32 by about the noise of quantization. That difference shows nothing about single nodes (MiniLM: 199 of
345 nodes were kept in fp32 for it, without gain). Therefore the fp32 model is converted and verified first, with the
limits for half precision alone, and its decisions are reused. Then the result and the quantized model are compared with
the fp32 model: the result may not be much noisier.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from engineworks.errors import PrecisionError
from engineworks.host.lazy import onnx
from engineworks.model.lower.half.channel_scales import scale_channels_after_products
from engineworks.model.lower.half.convert import convert, prepare
from engineworks.model.lower.half.half import lower_half
from engineworks.model.lower.half.limits import DEFAULT_LIMITS
from engineworks.model.lower.half.overflow import first_overflow
from engineworks.model.lower.half.prove import compare_outputs, prove, reference_outputs
from engineworks.model.lower.half.run import Arrays, Bench
from engineworks.model.lower.report import HalfReport, HalfType, OutputProof
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
    bench: Bench,
    quantized: onnx.ModelProto,
    samples: Sequence[Arrays],
    references: Sequence[Mapping[str, NDArray[Any]]],
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
