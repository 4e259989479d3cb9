"""The ladder of `precisions: auto`: which precision each target gets, and why not the others. Pure.

The fastest candidate that passes its gate wins, by the median latency at the first named shape. Candidates within `TIE`
are equally fast, and the more faithful one wins: an int8 no faster than fp16 is not chosen. Where no engine ran, an
estimate orders the candidates, and the ladder states that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from dataclasses import fields as dataclass_fields
from typing import Any, Literal

from engineworks.measure.ladder import estimate as ladder_estimate
from engineworks.recipe.recipe import CALIBRATED

CandidateVerdict = Literal["pass", "fail", "failed", "inconclusive", "unmeasured", "refused", "not tried"]
Basis = Literal["measured", "estimated", "nothing"]

TIE = 0.02
"""Candidates whose times differ by less are equally fast."""

FIDELITY = ("fp32", "fp16", "bf16", "int8_weights", "int8", "fp8", "int4_weights", "w4a8")
"""Most faithful first; mixtures and models' own precisions follow, in the recipe's order."""


@dataclass(frozen=True)
class Candidate:
    """One precision on one target.

    latency_ms: median at the first named shape, None if not measured. doubt: what disturbed the device meanwhile.
    bytes: size of the engine. model_bytes: size of the lowered model. quality: the task metric relative to fp32, else
    the smallest cosine to it.

    estimate: time relative to fp16 (on the CPU to fp32), set if it orders the candidates. why: the reason from its gate
    or failed step. inaccurate: an accuracy check failed. forgiven: its failure fails no build while another candidate
    remains. dropped: why it is not chosen, '' for the chosen one. passed_on: another target where the chosen one
    passed. pareto: no other passing candidate is at least as good in quality, latency and size, and better in one.
    """

    precision: str
    verdict: CandidateVerdict
    engine: str = ""
    computes: tuple[str, ...] = ()
    latency_ms: float | None = None
    bytes: int | None = None
    model_bytes: int | None = None
    metric: float | None = None
    cosine: float | None = None
    quality: float | None = None
    estimate: float | None = None
    why: str = ""
    doubt: str = ""
    inaccurate: bool = False
    forgiven: bool = False
    built_in_limits: bool = False
    chosen: bool = False
    passed_on: str = ""
    pareto: bool = False
    dropped: str = ""

    @property
    def calibrated(self) -> bool:
        return self.precision in CALIBRATED or any(part in CALIBRATED for part in self.computes)

    def to_json(self) -> dict[str, Any]:
        hidden = ("latency_ms", "inaccurate")
        shown = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items() if k not in hidden}
        return {**shown, "latency_ms_p50": self.latency_ms}


@dataclass(frozen=True)
class LadderTarget:
    """What the ladder needs of a target. capabilities: its compute capabilities. relative_times: its backend's."""

    name: str
    capabilities: Sequence[str] = ()
    relative_times: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TargetLadder:
    """The candidates of one target: the chosen one, other possible ones, fastest first, then the impossible ones.

    basis: what the order depends on. shape: the named shape of the latencies, '' if there is none.
    """

    target: str
    candidates: tuple[Candidate, ...]
    basis: Basis
    shape: str = ""

    @property
    def chosen(self) -> Candidate | None:
        return next((r for r in self.candidates if r.chosen), None)

    @property
    def message(self) -> str:
        """The choice and its reason; then the outcome of int8, the most requested precision."""
        chosen = self.chosen
        if chosen is None:
            first = next((r for r in self.candidates if r.verdict not in ("refused", "not tried")), self.candidates[0])
            return f"{self.target}: no precision passes; {first.precision} {first.dropped}"
        int8 = next(
            (f" int8 {r.dropped.removesuffix('.')}." for r in self.candidates if r.precision == "int8" and r.dropped),
            "",
        )
        if self.basis == "estimated":
            reason = "its latency was not measured" if chosen.verdict == "pass" else "no engine of it ran here"
            if chosen.verdict == "unmeasured" and chosen.passed_on:
                reason += f" (on {chosen.passed_on} it passed)"
            return f"{self.target}: {chosen.precision} by estimate ({_time(chosen)}); {reason}.{int8}"
        count = sum(1 for r in self.candidates if r.verdict == "pass")
        return f"{self.target}: {chosen.precision}, {_time(chosen)} at {self.shape}, of {count} that passed.{int8}"

    @property
    def forgiven(self) -> frozenset[str]:
        """Engines whose failure fails no build: dropped candidates, if another candidate can be chosen."""
        return frozenset(r.engine for r in self.candidates if r.engine and r.forgiven) if self.chosen else frozenset()

    def to_json(self) -> dict[str, Any]:
        chosen = self.chosen
        return {
            "target": self.target,
            "chosen": chosen.precision if chosen else None,
            "engine": chosen.engine if chosen else None,
            "basis": self.basis,
            "estimate": ladder_estimate.LABEL if self.basis == "estimated" else None,
            "shape": self.shape or None,
            "message": self.message,
            "candidates": [r.to_json() for r in self.candidates],
        }


def ladder_from_json(value: Mapping[str, Any]) -> TargetLadder:
    """The inverse of `TargetLadder.to_json`; also reads older documents without `forgiven`."""
    fields = {f.name for f in dataclass_fields(Candidate)}
    candidates = []
    for document in value["candidates"]:
        known = {k: tuple(v) if isinstance(v, list) else v for k, v in document.items() if k in fields}
        candidates.append(Candidate(**{**known, "latency_ms": document["latency_ms_p50"]}))
    return TargetLadder(value["target"], tuple(candidates), value["basis"], value["shape"] or "")


def ladder_statements(ladders: Sequence[TargetLadder]) -> dict[str, str]:
    """By engine: 'chosen', 'chosen by estimate' or 'dropped: reason'."""
    return {
        r.engine: f"dropped: {r.dropped}" if r.dropped
        else "chosen by estimate" if ladder.basis == "estimated" else "chosen"
        for ladder in ladders for r in ladder.candidates if r.engine
    }  # fmt: skip


def choose(
    target: LadderTarget,
    candidates: Sequence[Candidate],
    *,
    shape: str = "",
    recipe: str = "RECIPE",
    inaccurate: Mapping[str, str] | None = None,
    passed_on: Mapping[str, str] | None = None,
) -> TargetLadder:
    """Order the candidates, choose one and explain why not the others.

    recipe: the recipe's file, for commands in messages. inaccurate: by precision, how it failed on another target; such
    a candidate is not chosen unmeasured. passed_on: by precision, a target where it passed.
    """
    failed_elsewhere, right_elsewhere = inaccurate or {}, passed_on or {}
    passed = [r for r in candidates if r.verdict == "pass"]
    unmeasured = [r for r in candidates if r.verdict == "unmeasured" and r.precision not in failed_elsewhere]
    standing = passed or unmeasured
    measured = bool(passed) and all(r.latency_ms for r in passed)
    if standing and not measured:
        standing = _estimated(target, standing, candidates)
    rank = _ranks(candidates)
    ordered = _ordered(standing, rank)
    best = ordered[:1]
    kept = [replace(r, chosen=True, passed_on=right_elsewhere.get(r.precision, "")) for r in best] + [
        replace(r, dropped=_why_slower(r, best[0], ordered, rank)) for r in ordered[1:]
    ]
    stand = {r.precision for r in standing}
    others = [
        replace(r, dropped=_why_dropped(r, recipe, failed_elsewhere, bool(passed)))
        for r in candidates if r.precision not in stand
    ]  # fmt: skip
    basis: Basis = "nothing" if not standing else "measured" if measured else "estimated"
    return TargetLadder(target.name, _with_pareto([*kept, *others]), basis, shape if measured else "")


def _estimated(target: LadderTarget, standing: Sequence[Candidate], candidates: Sequence[Candidate]) -> list[Candidate]:
    half = next((r.model_bytes for r in candidates if r.precision == "fp16"), None)

    def estimate(candidate: Candidate) -> float:
        parts = candidate.computes or (candidate.precision,)
        size = candidate.model_bytes
        return ladder_estimate.estimate_time(target.relative_times, target.capabilities, parts, size, half)

    return [replace(r, latency_ms=None, estimate=estimate(r)) for r in standing]


def _ordered(standing: Sequence[Candidate], rank: Mapping[str, int]) -> list[Candidate]:
    """Fastest first, but the most faithful of those that tie with the fastest leads."""
    by_time = sorted(standing, key=lambda r: (_seconds(r), rank[r.precision]))
    if not by_time:
        return []
    as_fast = [r for r in by_time if _seconds(r) <= _seconds(by_time[0]) * (1 + TIE)]
    first = min(as_fast, key=lambda r: rank[r.precision])
    return [first, *(r for r in by_time if r is not first)]


def _why_slower(candidate: Candidate, chosen: Candidate, ordered: Sequence[Candidate], rank: Mapping[str, int]) -> str:
    """Why a candidate lost: a more faithful one is as fast, or the chosen one is faster."""
    rivals = [
        r for r in ordered
        if rank[r.precision] < rank[candidate.precision] and _seconds(candidate) * (1 + TIE) >= _seconds(r)
    ]  # fmt: skip
    half = next((r for r in rivals if r.precision == "fp16"), None)
    rival = half or next(iter(rivals), chosen)
    how = "is not faster than" if rivals else "is slower than"
    same = f"; less than {TIE:.0%} is no difference" if abs(_seconds(candidate) / _seconds(rival) - 1) <= TIE else ""
    if candidate.estimate is not None:
        return f"{how} {rival.precision} by estimate ({_time(candidate)}, {rival.precision} {rival.estimate:.2f}{same})"
    return f"{how} {rival.precision}: {_time(candidate)} against {_time(rival)}{same}"


def _why_dropped(candidate: Candidate, recipe: str, inaccurate: Mapping[str, str], some_passed: bool) -> str:
    if candidate.verdict == "fail":
        return f"fails its gate: {candidate.why}{_what_next(candidate, recipe)}"
    if candidate.verdict == "unmeasured" and not some_passed:
        return f"is not chosen unseen, for it {inaccurate.get(candidate.precision, '')}{_what_next(candidate, recipe)}"
    outcomes = {"refused": "cannot be built", "not tried": "was not tried", "failed": "failed"}
    return f"{outcomes.get(candidate.verdict, f'is {candidate.verdict}')}: {candidate.why}"


def _what_next(candidate: Candidate, recipe: str) -> str:
    """The next command to try: excluding the nodes to blame may still fix a candidate that falls back."""
    if not (candidate.calibrated and (candidate.inaccurate or candidate.verdict == "unmeasured")):
        return ""
    return f" Which nodes to keep out of it: engineworks sensitivity {recipe} --precision {candidate.precision}"


def _with_pareto(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    points = {
        r.precision: (-r.quality, r.latency_ms, r.bytes)
        for r in candidates
        if r.verdict == "pass" and r.quality is not None and r.latency_ms is not None and r.bytes is not None
    }

    def beaten(point: tuple[float, float, int]) -> bool:
        return any(o != point and all(a <= b for a, b in zip(o, point, strict=True)) for o in points.values())

    return tuple(
        replace(r, pareto=r.precision in points and not beaten(points[r.precision])) for r in candidates
    )  # fmt: skip


def _ranks(candidates: Sequence[Candidate]) -> dict[str, int]:
    names = [r.precision for r in candidates]
    return {name: i for i, name in enumerate(dict.fromkeys([*(f for f in FIDELITY if f in names), *names]))}


def _seconds(candidate: Candidate) -> float:
    """The sort key: the latency in ms, or the estimate."""
    return candidate.estimate if candidate.estimate is not None else candidate.latency_ms or 0.0


def _time(candidate: Candidate) -> str:
    if candidate.estimate is not None:
        return f"estimated time {candidate.estimate:.2f}"
    return f"{candidate.latency_ms:.3g} ms"
