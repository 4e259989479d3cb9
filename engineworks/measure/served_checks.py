"""The report of the served comparison and the recipe's limits → what passed, and where it first went wrong. Pure.

An engine is compared with the lowered model itself, run by ONNX Runtime as it is written: it must be what was lowered.
A row may be off by

- 3 ρ from the lowered model, at most by .7: a row that was put in another's place is off by more than that;
- ρ from itself, alone or elsewhere in a batch or later, at most by .5; where the precision quantizes 3 ρ, for both
  answers have rounded on their own. Where the fp32 model's own rows depend on each other a little (up to .05, as with
  ranges that are found at run time), three times that is allowed.

ρ follows from the precision (ROUNDED). Where one rounding more moves the lowered model's own row by m, 4 m is
allowed for both: what is quantized, or compared with a threshold, may tip, and no kernel is to blame for it.

Where ONNX Runtime cannot run the lowered model, the engine is compared with fp32 and the error of the precision itself
is allowed for: with the recipe's `cosine` limit c for it (USUAL_COSINE where it has none), θ = √(2(1 − c)) is the
relative error that such a cosine allows over all samples, and never less than ROUNDING. Then a row may be off by 3 θ,
at most by .7, from fp32; by θ, at most .25, from itself; by 1.5 θ, at most .35, where the precision quantizes.

Of int32, int64 and bool outputs, where one rounding may tip a class, a precision below fp32 may change EXCUSED_SAMPLES
of its samples against the reference and one against itself; fp32 none. Samples that one rounding tips do not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

USUAL_COSINE = {"fp32": 0.99999, "fp16": 0.9999, "bf16": 0.999, "int8": 0.98}
ROUNDING = {"fp32": 1e-3, "fp16": 5e-3, "bf16": 4e-2, "int8": 5e-2}
ROUNDED = {"fp32": 4.5e-3, "fp16": 1.4e-2, "bf16": 4.5e-2, "int8": 5e-2}
"""ρ: what kernels of this precision are apart by; a cosine of .99999, .9999 and .999, and of 8 bits a few roundings."""

MOVED = 4.0
"""One draw of noise is less than the worst of many kernels."""

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


def rounding_tolerance(precision: str, moved: float) -> Tolerance:
    """What a row may be off by from the lowered model; moved: what one rounding more moves it by."""
    known = precision if precision in ROUNDED else "int8"
    rho, move = ROUNDED[known], MOVED * moved
    itself = (3.0 if known == "int8" else 1.0) * rho
    exact = known == "fp32"
    return Tolerance(
        min(0.7, max(3 * rho, move)), min(0.5, max(itself, move)), 0.0 if exact else EXCUSED_SAMPLES, 0 if exact else 1
    )


def row_tolerance(served: Mapping[str, Any], visit: Mapping[str, Any], output: str, cosine: float | None) -> Tolerance:
    """What a row of this output may be off by at this visit."""
    if not _by_lowered(served):
        return tolerance(served["precision"], cosine)
    return rounding_tolerance(served["precision"], _moves(visit, output).get("error", 0.0))


def _by_lowered(served: Mapping[str, Any]) -> bool:
    """Whether the engine was compared with its lowered model; reports of older builds name nothing."""
    return bool(served.get("reference", {}).get("of") == "lowered")


def _moves(visit: Mapping[str, Any], output: str) -> Mapping[str, Any]:
    """How far one rounding more moves the output of the lowered model there."""
    found: Mapping[str, Any] = visit.get("moved", {}).get(output, {})
    return found


def _tipped(visit: Mapping[str, Any], output: str, one: Mapping[str, Any]) -> set[int]:
    """Samples whose exact answer is another, but for those that one rounding tips."""
    return set(one.get("wrong_samples", ())) - set(_moves(visit, output).get("samples", ()))


def synthetic_losses(served: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """By output: at which lengths the evaluation data has no sample, and how far the precision is from fp32 there, on
    made rows: of the lowered model, or where that cannot be run, of the engine."""
    if _by_lowered(served):
        found: dict[str, list[Mapping[str, Any]]] = {name: [] for name in served["rows"]}
        for lost in served.get("lost", ()):
            found.setdefault(lost["output"], []).append(lost)
        return found
    found = {name: [] for name in served["rows"]}
    for visit in served["sequence"]:
        for name, figures in visit["outputs"].items() if visit.get("data") == "seeded" else ():
            records = [r for phase in PHASES for r in figures.get(phase, ())]
            if records:
                worst = max(records, key=lambda r: r["error"])
                lengths = dict(visit["lengths"]) or visit["dims"]
                found[name].append({
                    "lengths": lengths, "error": worst["error"], "cosine": min(r["cosine"] for r in records),
                    "nonfinite": worst["nonfinite"],
                })  # fmt: skip
    return found


def synthetic_warnings(served: Mapping[str, Any], cosine: float | None) -> Iterator[str]:
    """What the lowered model loses on made rows, beyond what the recipe's limit lets a single row lose."""
    if not _by_lowered(served):
        return
    allowed = tolerance(served["precision"], cosine).reference
    for output, losses in synthetic_losses(served).items():
        bad = [one for one in losses if one["nonfinite"] or one["error"] > allowed]
        if not bad:
            continue
        worst = max(bad, key=lambda one: (one["nonfinite"] > 0, one["error"]))
        size = (
            f"{worst['nonfinite']} values are NaN or infinite" if worst["nonfinite"] else f"error {worst['error']:.3g}"
        )
        more = f", and at {len(bad) - 1} other shape{'s' * (len(bad) > 2)}" if len(bad) > 1 else ""
        yield (
            f"{output}: at {_shape(worst['lengths'])} the lowered model is far from fp32 on made-up rows ({size}, "
            f"cosine {worst['cosine']:.3g}){more}; the evaluation data has no sample of this shape"
        )


def synthetic_findings(served: Mapping[str, Any], limit: float) -> Iterator[Finding]:
    """`synthetic_cosine[OUTPUT]` of every output."""
    for output, losses in synthetic_losses(served).items():
        name = f"synthetic_cosine[{output}]"
        worst = min(losses, key=lambda one: -math.inf if one["nonfinite"] else one["cosine"], default=None)
        if worst is None:
            why = "the lowered model is the fp32 model, or the evaluation data has samples of every shape"
            yield Finding(name, True, f"{output}: no row was made up, or none could differ: {why}.")
            continue
        good = not worst["nonfinite"] and worst["cosine"] >= limit
        figure = (
            f"{worst['nonfinite']} values that are NaN or infinite" if worst["nonfinite"] else f"{worst['cosine']:.6g}"
        )
        sentence = f"{output}: smallest cosine to fp32 of a made-up row is {figure} at {_shape(worst['lengths'])}"
        yield Finding(name, good, f"{sentence}, limit at least {limit:.6g}.")


def served_findings(served: Mapping[str, Any], cosine: float | None) -> Iterator[Finding]:
    """`shapes[OUTPUT]` and `rows[OUTPUT]` of every output; `rows` only where rows could be told apart."""
    sequence: Sequence[Mapping[str, Any]] = served["sequence"]
    if not sequence:
        return
    raised = next((i for i, v in enumerate(sequence) if "raised" in v), None)
    for output, rows in served["rows"].items():
        limits = [row_tolerance(served, visit, output, cosine) for visit in sequence]
        yield _shapes(output, served, limits, raised)
        if rows["tested"]:
            yield _rows(output, served, limits)


def _shapes(output: str, served: Mapping[str, Any], limits: Sequence[Tolerance], raised: int | None) -> Finding:
    name, sequence = f"shapes[{output}]", served["sequence"]
    verdicts = list(_wrong(output, served, limits))
    first = next((i for i, w in enumerate(verdicts) if w), None)
    if first is None and raised is None:
        return Finding(name, True, _all_right(output, served, limits))
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


def _wrong(output: str, served: Mapping[str, Any], limits: Sequence[Tolerance]) -> Iterator[tuple[str, str] | None]:
    """Per visit: phase and what is wrong in words, None where nothing is."""
    pools: dict[str, set[int]] = {}
    against = _compared_with(served)
    for visit, allowed in zip(served["sequence"], limits, strict=True):
        changed = pools.setdefault(str(visit["lengths"]), set())
        figures = visit["outputs"].get(output, {})
        found = None
        for phase in PHASES:
            for one in figures.get(phase, ()):
                changed |= _tipped(visit, output, one)
                bad = _bad(one, allowed.reference, len(changed) > allowed.changed * visit["samples"], against)
                found = found or ((_phase(phase, one["run"], visit), bad) if bad else None)
        if "misshapen" in figures:
            found = (_phase("later", figures["misshapen"]["run"], visit), figures["misshapen"]["why"])
        yield found


def _compared_with(served: Mapping[str, Any]) -> str:
    if _by_lowered(served) and served["precision"] != "fp32":
        return "the lowered model in ONNX Runtime"
    return "the fp32 reference"


def _bad(one: Figures, limit: float, too_many: bool, against: str) -> str:
    """What is wrong with the worst row, or ''."""
    row = f"row {one['row']}"
    if one["nonfinite"]:
        return f"{row} has {one['nonfinite']} values that are NaN or infinite where {against} has others"
    if "wrong_samples" in one:
        return f"{row} differs from {against}" if too_many and one["wrong_samples"] else ""
    if one["most"] <= limit:
        return ""
    figures = f"error {max(one['error'], one['most']):.3g}, limit {limit:.3g}; cosine {one['cosine']:.3g}"
    return f"{row} differs from {against} ({figures})"


def _rows(output: str, served: Mapping[str, Any], limits: Sequence[Tolerance]) -> Finding:
    name, sequence, facts = f"rows[{output}]", served["sequence"], served["rows"][output]
    mixing = served["reference"]["mixing"].get(output, 0.0)
    pools: dict[str, set[int]] = {}
    worst, at_worst = 0.0, max(limits[0].itself, 3 * mixing if mixing <= DEPENDS_A_LITTLE else 0.0)
    for index, (visit, allowed) in enumerate(zip(sequence, limits, strict=True)):
        limit = max(allowed.itself, 3 * mixing if mixing <= DEPENDS_A_LITTLE else 0.0)
        moved = pools.setdefault(str(visit["lengths"]), set())
        for one in visit["outputs"].get(output, {}).get("moved", ()):
            moved |= _tipped(visit, output, one)
            wrong = len(moved) > allowed.moved if "wrong_samples" in one else one["most"] > limit
            if one["nonfinite"] or wrong:
                return Finding(name, False, _moved(output, sequence, index, one, limit, mixing))
            if one["most"] / limit > worst / at_worst:
                worst, at_worst = one["most"], limit
    where = "alone and in batches" if facts["alone"] else "at other places and beside other rows"
    figures = f"largest difference {worst:.3g}, limit {at_worst:.3g}"
    return Finding(name, True, f"{output}: {facts['samples']} rows gave the same answer {where} ({figures}).")


def _moved(
    output: str, sequence: Sequence[Mapping[str, Any]], index: int, one: Figures, limit: float, mixing: float
) -> str:
    against = one["against"]
    before = "alone" if against["batch"] == 1 else f"as row {against['row']} of {_shape(against['dims'])}"
    if against["dims"] == sequence[index]["dims"] and against["row"] == one["row"]:
        before = f"at run {against['run']} there"
    size = f"is off by {max(one['error'], one['most']):.3g} (limit {limit:.3g})"
    size = "is NaN or infinite" if one["nonfinite"] else size
    where = _at(sequence, index, f"run {one['run']}")
    sentence = f"{output}: row {one['row']} at {where} {size} from the same sample {before}"
    if mixing > DEPENDS_A_LITTLE:
        sentence += "; the fp32 reference does so too: in this model rows depend on each other"
    return sentence + "."


def _all_right(output: str, served: Mapping[str, Any], limits: Sequence[Tolerance]) -> str:
    sequence, rows, reference = served["sequence"], served["rows"][output], served["reference"]
    records = [
        (f, allowed.reference)
        for v, allowed in zip(sequence, limits, strict=True) for phase in PHASES
        for f in v["outputs"].get(output, {}).get(phase, ())
    ]  # fmt: skip
    nothing = ({"most": 0.0}, limits[0].reference)
    worst, limit = max(records, key=lambda pair: pair[0]["most"] / pair[1], default=nothing)
    shapes = len({_shape(v["dims"]) for v in sequence})
    profiles = len({v["profile"] for v in sequence})
    what = f"{shapes} shape{'s' * (shapes > 1)} of {profiles} profile{'s' * (profiles > 1)}"
    figures = f"largest error of a row {worst['most']:.3g}, limit {limit:.3g}"
    if any("wrong_samples" in f for f, _ in records):
        changed = {(str(v["lengths"]), s) for v in sequence for s in _changed(v, output)}
        figures = f"{len(changed)} of {rows['samples']} samples differ"
    told = f" Compared with {_compared_with(served)}."
    if reference.get("why"):
        told = f" Compared with fp32, for ONNX Runtime cannot run the lowered model: {reference['why']}."
    told += "" if rows["tested"] else f" Its rows were not told apart: {rows['why']}."
    told += f" What was not tried: {'; '.join(served['notes'])}." if served["notes"] else ""
    return f"{output}: right at {what}, at first and after warm-up, there and back ({figures}).{told}"


def _changed(visit: Mapping[str, Any], output: str) -> set[int]:
    figures = visit["outputs"].get(output, {})
    return {s for phase in PHASES for f in figures.get(phase, ()) for s in f.get("wrong_samples", ())}


def _phase(phase: str, run: int, visit: Mapping[str, Any]) -> str:
    warm = " after warm-up" if run > visit.get("runs_before_warm_up", run) else ""
    return "first run" if phase == "first" else f"run {run}{warm}"


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
