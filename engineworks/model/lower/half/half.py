"""Converts a model to fp16 or bf16 and verifies it: convert by rules, run sample inputs, compare, repair, or refuse."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from engineworks.errors import LoweringError, PrecisionError, SamplesError
from engineworks.host.lazy import onnx
from engineworks.model.lower.half.autocast import autocast_model, why_not_autocast
from engineworks.model.lower.half.convert import Halved, Prepared, convert, prepare
from engineworks.model.lower.half.graph import FLOAT, TypedGraph, complete_model, typed_graph
from engineworks.model.lower.half.observe import float_sources, observe, out_of_range, own_errors, worst_first
from engineworks.model.lower.half.overflow import Overflow, first_overflow
from engineworks.model.lower.half.prove import check_well_formed, prove, reference_outputs, run_once
from engineworks.model.lower.half.rules import asked_for
from engineworks.model.lower.half.run import Arrays, Bench
from engineworks.model.lower.report import DEFAULT_LIMITS, HalfLimits, HalfReport, HalfType, failure

_SHARES = (0.01, 0.03, 0.1, 0.3)
"""Share of the noisiest nodes that each further round keeps in fp32 (and at least 1, 2, 4, 8 of them)."""


def lower_half(
    model: onnx.ModelProto,
    dtype: HalfType,
    feeds: Iterable[Arrays],
    *,
    keep: Sequence[str] = (),
    limits: HalfLimits | None = None,
    autocast: bool | Literal["auto"] = "auto",
    references: Sequence[Arrays] | None = None,
    source: onnx.ModelProto | None = None,
) -> tuple[onnx.ModelProto, HalfReport]:
    """Convert to half precision, keep graph inputs and outputs as they are, and verify the result on sample inputs.

    1. The fp32 model runs on the samples in ONNX Runtime (CPU). Nodes stay fp32 whose inputs, outputs or inner sums
       exceed the type's largest value / headroom.
    2. `convert` converts.
    3. The result is checked, loaded and compared with the fp32 model (see `prove`, which emulates it).
    4. If an output fails, the nodes that add the most noise, with those that compute their inputs, stay fp32 too, in
       at most `limits.rounds` rounds.
    5. If that does not help and NVIDIA's AutoCast is installed, its result is verified in the same way. `autocast`:
       False never uses it, True uses nothing else.

    feeds, references: arrays by name for each sample, with the shapes and dtypes of the model's inputs and outputs;
    references are the fp32 model's outputs, if the caller has them. source: the float64 model that they come from
    if `model` was made of it. `model` stays unchanged.

    Raises `SamplesError` without samples or for ones that do not fit. Raises `LoweringError` if no result passes,
    with the worst output, its value and the limit, and the node where it stops being finite.
    """
    limits = limits or DEFAULT_LIMITS[dtype]
    reason = why_not_autocast() if autocast else "it was not asked for"
    if autocast is True and reason:
        raise LoweringError(
            f"AutoCast cannot be used: {reason}", hint="pip install torch nvidia-modelopt lief onnxslim"
        )
    prepared = prepare(model, dtype, keep)
    samples = _checked(list(islice(feeds, limits.samples)), prepared.graph)
    with tempfile.TemporaryDirectory(prefix="half-") as folder:
        bench = Bench(Path(folder))
        expected = reference_outputs(bench, source or model, samples) if references is None else references
        _check_references(expected)
        lowering = _Lowering(bench, model, prepared, limits, samples, expected)
        if autocast is True:
            return lowering.by_autocast().result(limits)
        attempt = lowering.by_rules()
        if attempt.failing and not reason:
            attempt = lowering.better(attempt)
        if attempt.failing:
            lowering.check_repeatable(source or model)
        return attempt.result(limits, lowering.overflow_of(attempt))


@dataclass(frozen=True)
class _Attempt:
    """A converted model, and the names of the outputs that fail their limits."""

    model: onnx.ModelProto
    report: HalfReport
    failing: tuple[str, ...]

    def result(self, limits: HalfLimits, overflow: Overflow | None = None) -> tuple[onnx.ModelProto, HalfReport]:
        """Return the model and its report. Raises `PrecisionError` if one fails; `overflow`: where that starts."""
        if not self.failing:
            return self.model, self.report
        report = self.report
        worst = min((p for p in report.outputs if p.name in self.failing), key=lambda p: (p.sqnr_db, p.agreement))
        raise PrecisionError(
            f"{report.dtype}: {failure(worst, limits)} on {report.samples} samples, with {len(report.kept)} of "
            f"{report.nodes} nodes kept in fp32 (converter {report.converter}, repairs {report.rounds})"
            + (f"; {overflow}" if overflow else ""),
            hint="name the sensitive nodes in `keep`, "
            + ("try bfloat16, " if report.dtype == "float16" else "try float16, ")
            + "or check that the samples are what the model was trained on",
        )


@dataclass
class _Lowering:
    """One model during conversion: the samples, the fp32 model's outputs for them, and the attempts."""

    bench: Bench
    model: onnx.ModelProto
    prepared: Prepared
    limits: HalfLimits
    samples: Sequence[Arrays]
    references: Sequence[Arrays]

    def by_rules(self) -> _Attempt:
        """Convert by rules, and repair while it fails and rounds are left.

        The first repair leaves mask constants as they are, so that what they reach is out of range and stays fp32. A
        fully masked row is uniform only where the mask absorbs the scores.
        """
        reasons = self._out_of_range()
        attempt = self._prove_rules(convert(self.prepared, reasons), 0)
        if attempt.failing and self.prepared.clamps:
            self.prepared = prepare(self.model, self.prepared.half.name, self.prepared.keep, clamps=())
            reasons = self._out_of_range()
            attempt = self._prove_rules(convert(self.prepared, reasons), 0)
        return self._repaired(attempt, reasons)

    def _repaired(self, attempt: _Attempt, reasons: Mapping[str, str]) -> _Attempt:
        """Keep more and more of the noisiest nodes, until the outputs pass or nothing changes any more."""
        if not attempt.failing or not self.limits.rounds:
            return attempt
        ranked = self._noisiest(attempt)
        for repairs in range(self.limits.rounds):
            more = self._noisy(ranked, repairs)
            if more.keys() <= reasons.keys():
                break
            reasons = {**more, **reasons}
            attempt = self._prove_rules(convert(self.prepared, reasons), repairs + 1)
            if not attempt.failing:
                break
        return attempt

    def better(self, attempt: _Attempt) -> _Attempt:
        """Return AutoCast's conversion if it passes, otherwise `attempt`."""
        try:
            second = self.by_autocast()
        except LoweringError:
            return attempt
        return attempt if second.failing else second

    def check_repeatable(self, source: onnx.ModelProto) -> None:
        """Raise `LoweringError` if `source` gives two results on one sample, because then nothing can be verified."""
        again = reference_outputs(self.bench, source, self.samples[:1])[0]
        for name, value in self.references[0].items():
            if not np.array_equal(value, again[name]):
                raise LoweringError(
                    f"the fp32 model gives another output '{name}' each time it runs on the same sample",
                    hint="export it in evaluation mode: is a Dropout in training mode, or a random number, in it?",
                )

    def overflow_of(self, attempt: _Attempt) -> Overflow | None:
        """Return the node where a failing attempt stops being finite; None if it fails for another reason."""
        if all(proof.finite for proof in attempt.report.outputs):
            return None
        source = complete_model(self.prepared.graph.shell, self.prepared.graph.weights)
        return first_overflow(self.bench, source, attempt.model, self.prepared.half, self.samples)

    def by_autocast(self) -> _Attempt:
        """Return AutoCast's conversion."""
        half = self.prepared.half
        keep = [node.name for node in self.prepared.graph.nodes if asked_for(node, self.prepared.keep)]
        made = autocast_model(self.bench.folder, self.model, half.name, self.samples[0], keep)
        check_well_formed(made, self.prepared.graph)
        graph = typed_graph(made)
        kept = {
            node.name: "kept by AutoCast"
            for node in graph.nodes
            if node.op_type != "Cast" and any(graph.types.get(n) == FLOAT for n in (*node.input, *node.output))
        }
        converted = sum(
            node.op_type != "Cast" and any(graph.types.get(n) == half.elem_type for n in (*node.input, *node.output))
            for node in graph.nodes
        )
        return self._proved(made, "autocast", len(graph.nodes), converted, kept)

    def _prove_rules(self, halved: Halved, repairs: int) -> _Attempt:
        nodes, converted = len(self.prepared.graph.nodes), len(halved.converted_nodes)
        attempt = self._proved(halved.model, "engineworks", nodes, converted, halved.kept_nodes)
        report = replace(attempt.report, clamps=halved.clamps, weights=halved.weights, rounds=repairs)
        return replace(attempt, report=report)

    def _proved(
        self,
        model: onnx.ModelProto,
        converter: Literal["engineworks", "autocast"],
        nodes: int,
        converted: int,
        kept: Mapping[str, str],
    ) -> _Attempt:
        half = self.prepared.half
        if half.name == "float16":
            run_once(self.bench, model, self.samples[0])
        proofs = prove(self.bench, model, half, self.samples, self.references)
        failing = tuple(proof.name for proof in proofs if failure(proof, self.limits))
        report = HalfReport(
            dtype=half.name, converter=converter, nodes=nodes, converted=converted, casts=_casts(model), kept=kept,
            clamps=(), weights=None, rounds=0, samples=len(self.samples), outputs=proofs,
        )  # fmt: skip
        return _Attempt(model, report, failing)

    def _out_of_range(self) -> dict[str, str]:
        graph = self.prepared.graph
        ranges = observe(self.bench, graph, self.bench.store(graph.weights), self.samples)
        return out_of_range(graph, ranges, self.prepared.half, self.limits.headroom)

    def _noisiest(self, attempt: _Attempt) -> list[tuple[int, float]]:
        graph, stored = self.prepared.graph, self.bench.store(self.prepared.graph.weights)
        kept = attempt.report.kept
        nodes = [at for at, node in enumerate(graph.nodes) if node.name not in kept and graph.float_outputs(at)]
        errors = own_errors(self.bench, graph, stored, self.prepared.half, nodes, self.samples)
        return worst_first(graph, errors, attempt.failing)

    def _noisy(self, ranked: Sequence[tuple[int, float]], repairs: int) -> dict[str, str]:
        """Return reasons to keep the first of the ranked nodes. The noise often comes from rounded inputs, so the nodes
        that make these stay fp32 too."""
        graph = self.prepared.graph
        reasons: dict[str, str] = {}
        share = _SHARES[min(repairs, len(_SHARES) - 1)]
        for at, error in ranked[: max(2**repairs, math.ceil(share * len(ranked)))]:
            noise = "overflow" if math.isinf(error) else f"noise at {10 * math.log10(error):.0f} dB of its output"
            reasons.setdefault(graph.nodes[at].name, f"half precision adds {noise}")
            for source in float_sources(graph, at):
                reasons.setdefault(graph.nodes[source].name, f"computes an input of '{graph.nodes[at].name}': {noise}")
        return reasons


def _checked(samples: Sequence[Arrays], graph: TypedGraph) -> Sequence[Arrays]:
    """Check samples, arrays by input name. Raises `SamplesError` without samples, and for one whose names are not the
    model's inputs."""
    if not samples:
        raise SamplesError(
            "no samples to prove the half-precision model on", hint="give calibration or evaluation data"
        )
    for at, sample in enumerate(samples):
        if set(sample) != set(graph.inputs):
            raise SamplesError(
                f"sample {at} holds {sorted(sample)}; the model's inputs are {sorted(graph.inputs)}",
                hint="name the arrays like the inputs",
            )
    return samples


def _check_references(references: Sequence[Arrays]) -> None:
    for at, outputs in enumerate(references):
        for name, value in outputs.items():
            if value.dtype.kind == "f" and value.size and np.isnan(value).all():
                raise LoweringError(
                    f"the fp32 model itself gives nothing but NaN in output '{name}' on sample {at}",
                    hint="check the samples and their preprocessing",
                )


def _casts(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "Cast" for node in model.graph.node)
