"""The report of the served comparison and the recipe's limits → what passed, and where it first went wrong. Pure.

The rule. Let c be the recipe's `cosine` limit for this precision (USUAL_COSINE where it has none) and θ = √(2(1 − c)),
the relative error that such a cosine allows over all samples. Then

- against the fp32 reference a row may be off by 3 θ, at most by .7: single rows scatter, and a row that was put in
  another's place is off by more than that;
- against itself, alone or elsewhere in a batch or later, a row may be off by θ, at most by .25: kernels differ by batch
  a little. Where the precision quantizes, both answers have rounded on their own and lie about θ from the reference, so
  √2 θ from each other: 1.5 θ is allowed, at most .35 (of a row in another's place √2 is usual). Where the fp32
  model's own rows depend on each other a little (up to .05, as with ranges that are found at run time), three times
  that is allowed.

θ is never taken as less than ROUNDING, what another order of summation gives. Of int32, int64 and bool outputs, where
one rounding may tip a class, a precision below fp32 may change EXCUSED_SAMPLES of its samples against the reference
and one against itself; fp32 none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

USUAL_COSINE = {"fp32": 0.99999, "fp16": 0.9999, "bf16": 0.999, "int8": 0.98}
ROUNDING = {"fp32": 1e-3, "fp16": 5e-3, "bf16": 4e-2, "int8": 5e-2}

EXCUSED_SAMPLES = 0.34
"""Part of the samples that may change their class below fp32: 4 of a pool of 13."""

DEPENDS_A_LITTLE = 0.05

PHASES = ("first", "later")
"""A visit's first run, and all others."""

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Tolerance:
    """Largest error of a row against the reference, and against itself; samples of exact outputs that may change."""

    reference: float
    itself: float
    changed: float
    moved: int


@dataclass(frozen=True)
class Finding:
    """One check's outcome: its name, whether it passed, and its sentence."""

    name: str
    good: bool
    sentence: str


def tolerance(precision: str, cosine: float | None) -> Tolerance:
    """What a row may be off by; cosine: the recipe's limit for this precision."""
    known = precision if precision in USUAL_COSINE else "int8"
    theta = math.sqrt(2 * (1 - (USUAL_COSINE[known] if cosine is None else cosine)))
    theta = max(ROUNDING[known], theta)
    exact = known == "fp32"
    itself = min(0.35, 1.5 * theta) if known == "int8" else min(0.25, theta)
    return Tolerance(min(0.7, 3 * theta), itself, 0.0 if exact else EXCUSED_SAMPLES, 0 if exact else 1)


def served_findings(served: Mapping[str, Any], cosine: float | None) -> Iterator[Finding]:
    """`shapes[OUTPUT]` and `rows[OUTPUT]` of every output; `rows` only where rows could be told apart."""
    allowed = tolerance(served["precision"], cosine)
    sequence: Sequence[Mapping[str, Any]] = served["sequence"]
    if not sequence:
        return
    raised = next((i for i, v in enumerate(sequence) if "raised" in v), None)
    for output, rows in served["rows"].items():
        yield _shapes(output, served, allowed, raised)
        if rows["tested"]:
            yield _rows(output, served, allowed)


def _shapes(output: str, served: Mapping[str, Any], allowed: Tolerance, raised: int | None) -> Finding:
    name, sequence = f"shapes[{output}]", served["sequence"]
    verdicts = list(_wrong(output, sequence, allowed))
    first = next((i for i, w in enumerate(verdicts) if w), None)
    if first is None and raised is None:
        return Finding(name, True, _all_right(output, served, allowed))
    if first is None or (raised is not None and raised < first):
        assert raised is not None
        why = f"the engine did not run at {_at(sequence, raised, '')}: {sequence[raised]['raised']}"
    else:
        phase, what = verdicts[first] or ("", "")
        why = f"wrong at {_at(sequence, first, phase)}: {what}"
    wrong = [bool(w) or "raised" in v for v, w in zip(sequence, verdicts, strict=True)]
    tail = _elsewhere([_shape(v["dims"]) for v in sequence], wrong)
    return Finding(name, False, f"{output}: {why}{tail}.")


def _elsewhere(shapes: Sequence[str], wrong: Sequence[bool]) -> str:
    """Where else it was wrong, and where it was right: always, or at least before it went wrong."""
    bad = {s for s, w in zip(shapes, wrong, strict=True) if w}
    good = list(dict.fromkeys(s for s in shapes if s not in bad))
    before = list(dict.fromkeys(shapes[: wrong.index(True)]))
    also = f"; also wrong at {len(bad) - 1} other shape{'s' * (len(bad) > 2)}" if len(bad) > 1 else ""
    if good:
        return f"{also}; right at {_few(good)}"
    return f"{also}; right before that at {_few(before)}" if before else f"{also}; right at no shape"


def _wrong(output: str, sequence: Sequence[Mapping[str, Any]], allowed: Tolerance) -> Iterator[tuple[str, str] | None]:
    """Per visit: phase and what is wrong in words, None where nothing is."""
    pools: dict[str, set[int]] = {}
    for visit in sequence:
        changed = pools.setdefault(str(visit["lengths"]), set())
        figures = visit["outputs"].get(output, {})
        found = None
        for phase in PHASES:
            for one in figures.get(phase, ()):
                changed |= set(one.get("wrong_samples", ()))
                bad = _bad(one, allowed.reference, len(changed) > allowed.changed * visit["samples"])
                found = found or ((_phase(phase, one["run"]), bad) if bad else None)
        if "misshapen" in figures:
            found = (_phase("later", figures["misshapen"]["run"]), figures["misshapen"]["why"])
        yield found


def _bad(one: Figures, limit: float, too_many: bool) -> str:
    """What is wrong with the worst row, or ''."""
    row = f"row {one['row']}"
    if one["nonfinite"]:
        return f"{row} has {one['nonfinite']} values that are NaN or infinite where the fp32 reference's are not"
    if "wrong_samples" in one:
        return f"{row} differs from the fp32 reference" if too_many and one["wrong_samples"] else ""
    if one["most"] <= limit:
        return ""
    figures = f"error {max(one['error'], one['most']):.3g}, limit {limit:.3g}; cosine {one['cosine']:.3g}"
    return f"{row} differs from the fp32 reference ({figures})"


def _rows(output: str, served: Mapping[str, Any], allowed: Tolerance) -> Finding:
    name, sequence, facts = f"rows[{output}]", served["sequence"], served["rows"][output]
    mixing = served["reference"]["mixing"].get(output, 0.0)
    limit = max(allowed.itself, 3 * mixing if mixing <= DEPENDS_A_LITTLE else 0.0)
    pools: dict[str, set[int]] = {}
    worst = 0.0
    for index, visit in enumerate(sequence):
        moved = pools.setdefault(str(visit["lengths"]), set())
        for one in visit["outputs"].get(output, {}).get("moved", ()):
            moved |= set(one.get("wrong_samples", ()))
            wrong = len(moved) > allowed.moved if "wrong_samples" in one else one["most"] > limit
            if one["nonfinite"] or wrong:
                return Finding(name, False, _moved(output, sequence, index, one, limit, mixing))
            worst = max(worst, one["most"])
    where = "alone and in batches" if facts["alone"] else "at other places and beside other rows"
    figures = f"largest difference {worst:.3g}, limit {limit:.3g}"
    return Finding(name, True, f"{output}: {facts['samples']} rows gave the same answer {where} ({figures}).")


def _moved(
    output: str, sequence: Sequence[Mapping[str, Any]], index: int, one: Figures, limit: float, mixing: float
) -> str:
    against = one["against"]
    before = "alone" if against["batch"] == 1 else f"as row {against['row']} of {_shape(against['dims'])}"
    if against["dims"] == sequence[index]["dims"] and against["row"] == one["row"]:
        before = f"at run {against['run']} there"
    size = "is NaN or infinite" if one["nonfinite"] else f"is off by {one['error']:.3g} (limit {limit:.3g})"
    where = _at(sequence, index, f"run {one['run']}")
    sentence = f"{output}: row {one['row']} at {where} {size} from the same sample {before}"
    if mixing > DEPENDS_A_LITTLE:
        sentence += "; the fp32 reference does so too: in this model rows depend on each other"
    return sentence + "."


def _all_right(output: str, served: Mapping[str, Any], allowed: Tolerance) -> str:
    sequence = served["sequence"]
    records = [f for v in sequence for phase in PHASES for f in v["outputs"].get(output, {}).get(phase, ())]
    worst = max((f["most"] for f in records), default=0.0)
    shapes = len({_shape(v["dims"]) for v in sequence})
    profiles = len({v["profile"] for v in sequence})
    what = f"{shapes} shape{'s' * (shapes > 1)} of {profiles} profile{'s' * (profiles > 1)}"
    figures = f"largest error of a row {worst:.3g}, limit {allowed.reference:.3g}"
    if any("wrong_samples" in f for f in records):
        changed = {(str(v["lengths"]), s) for v in sequence for s in _changed(v, output)}
        figures = f"{len(changed)} of {served['rows'][output]['samples']} samples differ"
    rows = served["rows"][output]
    told = "" if rows["tested"] else f" Its rows were not told apart: {rows['why']}."
    told += f" What was not tried: {'; '.join(served['notes'])}." if served["notes"] else ""
    return f"{output}: right at {what}, at first and after warm-up, there and back ({figures}).{told}"


def _changed(visit: Mapping[str, Any], output: str) -> set[int]:
    figures = visit["outputs"].get(output, {})
    return {s for phase in PHASES for f in figures.get(phase, ()) for s in f.get("wrong_samples", ())}


def _phase(phase: str, run: int) -> str:
    return "first run" if phase == "first" else f"run {run}"


def _at(sequence: Sequence[Mapping[str, Any]], index: int, phase: str) -> str:
    """'batch 64 (profile bulk, 3rd shape, second visit, run 11)'."""
    visit = sequence[index]
    stops = list(dict.fromkeys(_shape(v["dims"]) for v in sequence))
    turn = sum(v["dims"] == visit["dims"] for v in sequence[: index + 1])
    words = [f"profile {visit['profile']}", f"{_ordinal(stops.index(_shape(visit['dims'])) + 1)} shape"]
    words += [f"{_ordinal(turn)} visit"] if turn > 1 else []
    words += [phase] if phase else []
    return f"{_shape(visit['dims'])} ({', '.join(words)})"


def _ordinal(n: int) -> str:
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def _shape(dims: Mapping[str, int]) -> str:
    return ", ".join(f"{d} {n}" for d, n in dims.items()) or "the fixed shape"


def _few(names: Sequence[str], many: int = 6) -> str:
    return "; ".join(names[:many]) + (f" and {len(names) - many} more" if len(names) > many else "")
