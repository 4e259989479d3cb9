"""Two builds of the same recipes with other versions → what changed for each engine, with intervals. Pure.

Both are results of `engineworks build --json`. Engines that ran on both sides are also measured interleaved
(`measure.interleave`): that interval decides. Else each was measured in a process of its own, one after the other, and
the intervals of their medians are compared. A difference below 5% is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from engineworks.measure.check import message_of
from engineworks.measure.regression import Comparison
from engineworks.typed_json import Record

CLOSE = 0.05
"""Relative difference of latencies that two processes may have without any reason."""

LARGER = 0.02
"""Relative difference of sizes that counts."""

FURTHER = 1.5
"""Ratio of the relative errors of two engines' outputs from which they count as changed."""

Tone = Literal["worse", "changed", "better", "same"]

SEVERITY = ("failed", "fail", "inconclusive", "unmeasured", "pass")


@dataclass(frozen=True)
class Speed:
    """Latency at one shape. ratio: rehearsed / present; low, high: its bounds. busy: the host was, on either side.

    rounds: of both versions interleaved, 0 where they were measured one after the other. why: why they decide nothing,
    '' if they do.
    """

    shape: str
    present_ms: float
    rehearsed_ms: float
    ratio: float
    low: float
    high: float
    busy: bool = False
    rounds: int = 0
    why: str = ""

    @property
    def direction(self) -> str:
        """slower, faster or undecided; '' for neither."""
        if self.low > 1 + CLOSE:
            return "slower"
        if self.high < 1 / (1 + CLOSE):
            return "faster"
        return "undecided" if self.why and self.high > 1 + CLOSE else ""


@dataclass(frozen=True)
class Change(Record):
    """One engine. present, rehearsed: verdicts, 'refused' or 'failed'. notes: what changed, () for nothing."""

    engine: str
    present: str
    rehearsed: str
    notes: tuple[str, ...]
    tone: Tone
    speeds: tuple[Speed, ...] = ()


Interleaved = Mapping[str, Mapping[str, Comparison]]
"""Engine → shape → the rehearsed version over the present one, measured interleaved."""


def compare_builds(
    present: Sequence[Mapping[str, Any]],
    rehearsed: Sequence[Mapping[str, Any]],
    interleaved: Interleaved = MappingProxyType({}),
) -> list[Change]:
    """One change per engine of either side, the worst first. Both: one build result (JSON) per recipe."""
    before, after = (_by_engine(results) for results in (present, rehearsed))
    names = dict.fromkeys((*before, *after))
    changes = [_change(name, before.get(name), after.get(name), interleaved.get(name, {})) for name in names]
    order: tuple[Tone, ...] = ("worse", "changed", "better", "same")
    return sorted(changes, key=lambda change: order.index(change.tone))


def _by_engine(results: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Engine → its result; a refused one has the verdict 'refused' and the reason as its error."""
    engines = {e["id"]: e for result in results for e in result["engines"]}
    refused = {
        r["id"]: {"id": r["id"], "verdict": "refused", "error": message_of(r)} for x in results for r in x["refused"]
    }
    return {**engines, **refused}


def _change(
    name: str,
    present: Mapping[str, Any] | None,
    rehearsed: Mapping[str, Any] | None,
    interleaved: Mapping[str, Comparison],
) -> Change:
    if present is None or rehearsed is None:
        side = "only with the other versions" if present is None else "only with the present versions"
        return Change(name, _verdict(present), _verdict(rehearsed), (side,), "changed")
    speeds = tuple(_interleaved(speed, interleaved.get(speed.shape)) for speed in _speeds(present, rehearsed))
    notes = [
        *_verdicts(present, rehearsed),
        *_speed_notes(speeds),
        *_size(present, rehearsed),
        *_outputs(present, rehearsed),
    ]
    return Change(
        name, _verdict(present), _verdict(rehearsed), tuple(w for w, _ in notes), _tone([t for _, t in notes]), speeds
    )


def _tone(tones: Sequence[Tone]) -> Tone:
    order: tuple[Tone, ...] = ("worse", "changed", "better")
    return next((tone for tone in order if tone in tones), "same")


def _verdict(engine: Mapping[str, Any] | None) -> str:
    return "" if engine is None else str(engine["verdict"])


Note = tuple[str, Tone]


def _verdicts(present: Mapping[str, Any], rehearsed: Mapping[str, Any]) -> Iterator[Note]:
    before, after = present["verdict"], rehearsed["verdict"]
    if before == after:
        return
    order = ("refused", *SEVERITY)
    tone: Tone = "worse" if order.index(after) < order.index(before) else "better"
    why = rehearsed.get("error") or "; ".join(
        message_of(c) for c in rehearsed.get("checks", ()) if c["verdict"] != "pass"
    )
    yield f"{before} → {after}" + (f": {why}" if why and tone == "worse" else ""), tone


def _speeds(present: Mapping[str, Any], rehearsed: Mapping[str, Any]) -> Iterator[Speed]:
    after = rehearsed.get("latency") or {}
    for shape, latency in (present.get("latency") or {}).items():
        a, b = _interval(latency), _interval(after.get(shape) or {})
        if a and b:
            p50, new = latency["latency_ms_p50"], after[shape]["latency_ms_p50"]
            busy = bool(latency.get("complaints") or after[shape].get("complaints"))
            yield Speed(shape, p50, new, new / p50, b[0] / a[1], b[1] / a[0], busy)


def _interleaved(speed: Speed, timed: Comparison | None) -> Speed:
    """The same by interleaved rounds, without the disturbed ones; unchanged where these gave no interval."""
    if timed is None:
        return speed
    if timed.ratio is None or timed.interval is None:
        return replace(speed, busy=True, rounds=timed.rounds, why=timed.why)
    disturbed = "disturbed" in timed.why
    return replace(
        speed, ratio=timed.ratio, low=timed.interval.low, high=timed.interval.high, busy=disturbed,
        rounds=timed.rounds, why=timed.why,
    )  # fmt: skip


def _interval(latency: Mapping[str, Any]) -> tuple[float, float] | None:
    """The median's 95% interval; within the 90% quantile on both sides where there were too few runs for one."""
    known = latency.get("median_interval")
    if known:
        return float(known[0]), float(known[1])
    p50, p90 = latency.get("latency_ms_p50"), latency.get("latency_ms_p90")
    return (p50 * p50 / p90, p90) if p50 and p90 else None


TONES: Mapping[str, Tone] = {"slower": "worse", "faster": "better", "undecided": "changed"}


def _speed_notes(speeds: Sequence[Speed]) -> Iterator[Note]:
    for speed in speeds:
        if speed.direction:
            undecided = speed.direction == "undecided"
            end = f": {speed.why}" if undecided else ", while the host was busy" if speed.busy else ""
            yield (
                f"{speed.direction} at {speed.shape}: {speed.present_ms:.3g} → {speed.rehearsed_ms:.3g} ms, "
                f"× {speed.ratio:.2f} ({speed.low:.2f} to {speed.high:.2f}){end}",
                "changed" if speed.busy else TONES[speed.direction],
            )


def _size(present: Mapping[str, Any], rehearsed: Mapping[str, Any]) -> Iterator[Note]:
    before, after = present.get("bytes"), rehearsed.get("bytes")
    if before and after and abs(after / before - 1) > LARGER:
        direction = "larger" if after > before else "smaller"
        tone: Tone = "worse" if after > before else "better"
        yield f"{direction}: {before / 2**20:.2f} → {after / 2**20:.2f} MiB", tone


def _outputs(present: Mapping[str, Any], rehearsed: Mapping[str, Any]) -> Iterator[Note]:
    """Outputs and the metric, both against each side's own fp32 reference."""
    before, after = ((side.get("accuracy") or {}) for side in (present, rehearsed))
    for name, output in (before.get("outputs") or {}).items():
        other = (after.get("outputs") or {}).get(name)
        if other is None:
            continue
        old, new = (_error(o.get("cosine")) for o in (output, other))
        if old is None or new is None:
            if old != new:
                yield f"{name}: not finite on one side", "worse" if new is None else "better"
        elif max(old, new) > FURTHER * min(old, new) + 1e-4:
            tone: Tone = "worse" if new > old else "better"
            yield f"{name} changed: cosine {output['cosine']:.6g} → {other['cosine']:.6g}", tone
    metrics = [(side.get("metric") or {}).get("engine") for side in (before, after)]
    if metrics[0] is not None and metrics[1] is not None and metrics[0] != metrics[1]:
        yield f"metric {metrics[0]:.6g} → {metrics[1]:.6g}{_chance(before, after)}", "changed"


def _error(cosine: float | None) -> float | None:
    """The relative error of outputs with this cosine."""
    return None if cosine is None else math.sqrt(max(0.0, 2 * (1 - cosine)))


def _chance(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The standard error of a share of samples, for metrics between 0 and 1."""
    value, count = after["metric"]["engine"], after["metric"].get("samples")
    if not count or not 0 <= value <= 1:
        return ""
    return f" (± {1.96 * math.sqrt(max(value * (1 - value), 1 / count) / count):.2g} by chance on {count} samples)"
