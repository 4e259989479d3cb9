"""The report of the served comparison and the recipe's limits → passed checks, and where a failure began. Pure.

The reference is the lowered model itself, run by ONNX Runtime as written: the engine must match it.

A row's error may be

- 3 ρ against the lowered model, at most .7: a row in another row's place has a larger error;
- ρ against the same row alone, elsewhere in a batch, or later, at most .5. For quantized precisions it is 3 ρ, because
  both answers were rounded separately. Where rows of the fp32 model depend on each other a little (up to .05, as with
  ranges computed at run time), three times that dependence is allowed.

ρ follows from the precision (ROUNDED). Where one extra rounding moves the lowered model's own row by m, 4 m is allowed
for both. Quantized values, and values compared with a threshold, may tip without any kernel being at fault.

Where ONNX Runtime cannot run the lowered model, fp32 is the reference, and the error of the precision is allowed for.
The recipe's `cosine` limit c (or USUAL_COSINE) over all samples allows a relative error θ = √(2(1 − c)); θ is at least
ROUNDING. Then a row's error may be 3 θ, at most .7, against fp32. Against itself it may be θ, at most .25; for
quantized precisions 1.5 θ, at most .35.

For int32, int64 and bool outputs one rounding may tip a class. A precision below fp32 may change EXCUSED_SAMPLES of its
samples against the reference and one against itself; fp32 none. Samples that one rounding tips do not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engineworks.measure.check import Check, checked
from engineworks.measure.served import shown
from engineworks.measure.served_report import PHASES, Loss, RowRecord, Served, ServedVisit

USUAL_COSINE = {"fp32": 0.99999, "fp16": 0.9999, "bf16": 0.999, "int8": 0.98}
ROUNDING = {"fp32": 1e-3, "fp16": 5e-3, "bf16": 4e-2, "int8": 5e-2}
ROUNDED = {"fp32": 4.5e-3, "fp16": 1.4e-2, "bf16": 4.5e-2, "int8": 5e-2}
"""ρ: the difference between kernels of this precision.

It corresponds to a cosine of .99999, .9999 and .999, and for 8 bits to a few roundings.
"""

MOVED = 4.0
"""Allowed multiple of the movement, because one draw of noise is less than the worst of many kernels."""

EXCUSED_SAMPLES = 0.34
"""Share of the samples that may change their class below fp32: 4 of a pool of 13."""

DEPENDS_A_LITTLE = 0.05


@dataclass(frozen=True)
class Tolerance:
    """Maximum errors of a row against the reference and against itself; number of exact samples that may change."""

    reference: float
    itself: float
    changed: float
    moved: int


def tolerance(precision: str, cosine: float | None) -> Tolerance:
    """The allowed errors of a row. cosine: the recipe's limit for this precision."""
    known = precision if precision in USUAL_COSINE else "int8"
    theta = math.sqrt(2 * (1 - (USUAL_COSINE[known] if cosine is None else cosine)))
    theta = max(ROUNDING[known], theta)
    exact = known == "fp32"
    itself = min(0.35, 1.5 * theta) if known == "int8" else min(0.25, theta)
    return Tolerance(min(0.7, 3 * theta), itself, 0.0 if exact else EXCUSED_SAMPLES, 0 if exact else 1)


def rounding_tolerance(precision: str, moved: float) -> Tolerance:
    """The allowed errors of a row against the lowered model. moved: how far one extra rounding moves it."""
    known = precision if precision in ROUNDED else "int8"
    rho, move = ROUNDED[known], MOVED * moved
    itself = (3.0 if known == "int8" else 1.0) * rho
    exact = known == "fp32"
    return Tolerance(
        min(0.7, max(3 * rho, move)), min(0.5, max(itself, move)), 0.0 if exact else EXCUSED_SAMPLES, 0 if exact else 1
    )


def row_tolerance(served: Served, visit: ServedVisit, output: str, cosine: float | None) -> Tolerance:
    """The allowed errors of a row of this output at this visit."""
    if not served.by_lowered:
        return tolerance(served.precision, cosine)
    return rounding_tolerance(served.precision, visit.moved[output].error if output in visit.moved else 0.0)


def _tipped(visit: ServedVisit, output: str, record: RowRecord) -> set[int]:
    """Samples whose exact answer differs, except those that one rounding tips."""
    return set(record.wrong_samples or ()) - set(visit.moved[output].samples if output in visit.moved else ())


def synthetic_losses(served: Served) -> dict[str, list[Loss]]:
    """By output: lengths without evaluation samples, and the precision's error against fp32 there, on synthetic rows.

    The errors are the lowered model's, or the engine's if the lowered model cannot run.
    """
    losses: dict[str, list[Loss]] = {name: [] for name in served.rows}
    if served.by_lowered:
        for lost in served.lost:
            losses.setdefault(lost.output, []).append(lost)
        return losses
    for visit in served.sequence:
        for name, values in visit.outputs.items() if visit.data == "seeded" else ():
            if values.records:
                worst = max(values.records, key=lambda r: r.error)
                cosine = min(r.cosine for r in values.records)
                losses[name].append(Loss(name, dict(visit.lengths) or visit.dims, worst.error, cosine, worst.nonfinite))
    return losses


def synthetic_warnings(served: Served, cosine: float | None) -> Iterator[str]:
    """Losses of the lowered model on synthetic rows that exceed what the recipe's limit allows a single row."""
    if not served.by_lowered:
        return
    allowed = tolerance(served.precision, cosine).reference
    for output, losses in synthetic_losses(served).items():
        bad = [loss for loss in losses if loss.nonfinite or loss.error > allowed]
        if not bad:
            continue
        worst = max(bad, key=lambda loss: (loss.nonfinite > 0, loss.error))
        size = f"{worst.nonfinite} values are NaN or infinite" if worst.nonfinite else f"error {worst.error:.3g}"
        more = f", and at {len(bad) - 1} other shape{'s' * (len(bad) > 2)}" if len(bad) > 1 else ""
        yield (
            f"{output}: at {shown(worst.lengths)} the lowered model is far from fp32 on made-up rows ({size}, "
            f"cosine {worst.cosine:.3g}){more}; the evaluation data has no sample of this shape"
        )


def synthetic_checks(served: Served, limit: float) -> Iterator[Check]:
    """`synthetic_cosine[OUTPUT]` of every output."""
    for output, losses in synthetic_losses(served).items():
        name = f"synthetic_cosine[{output}]"
        worst = min(losses, key=lambda loss: -math.inf if loss.nonfinite else loss.cosine, default=None)
        if worst is None:
            why = "the lowered model is the fp32 model, or the evaluation data has samples of every shape"
            yield Check(name, "pass", f"{output}: no row was made up, or none could differ: {why}.")
            continue
        good = not worst.nonfinite and worst.cosine >= limit
        figure = f"{worst.nonfinite} values that are NaN or infinite" if worst.nonfinite else f"{worst.cosine:.6g}"
        message = f"{output}: smallest cosine to fp32 of a made-up row is {figure} at {shown(worst.lengths)}"
        yield checked(name, good, f"{message}, limit at least {limit:.6g}.")


def served_checks(served: Served, cosine: float | None) -> Iterator[Check]:
    """`shapes[OUTPUT]` and `rows[OUTPUT]` of every output; `rows` only if rows can be told apart."""
    sequence = served.sequence
    if not sequence:
        return
    raised = next((i for i, v in enumerate(sequence) if v.raised), None)
    for output, rows in served.rows.items():
        limits = [row_tolerance(served, visit, output, cosine) for visit in sequence]
        yield _shapes(output, served, limits, raised)
        if rows.tested:
            yield _rows(output, served, limits)


def _shapes(output: str, served: Served, limits: Sequence[Tolerance], raised: int | None) -> Check:
    name, sequence = f"shapes[{output}]", served.sequence
    verdicts = list(_wrong(output, served, limits))
    first = next((i for i, w in enumerate(verdicts) if w), None)
    if first is None and raised is None:
        return Check(name, "pass", _all_right(output, served, limits))
    if first is None or (raised is not None and raised < first):
        assert raised is not None
        why = f"the engine did not run at {_at(sequence, raised, '')}: {sequence[raised].raised}"
    else:
        phase, what = verdicts[first] or ("", "")
        why = f"wrong at {_at(sequence, first, phase)}: {what}"
    wrong = [bool(w or v.raised) for v, w in zip(sequence, verdicts, strict=True)]
    tail = _elsewhere([shown(v.dims) for v in sequence], wrong)
    return Check(name, "fail", f"{output}: {why}{tail}.")


def _elsewhere(shapes: Sequence[str], wrong: Sequence[bool]) -> str:
    """The other wrong shapes, and the right ones: always, or at least before the first failure."""
    bad = {s for s, w in zip(shapes, wrong, strict=True) if w}
    good = list(dict.fromkeys(s for s in shapes if s not in bad))
    before = list(dict.fromkeys(shapes[: wrong.index(True)]))
    also = f"; also wrong at {len(bad) - 1} other shape{'s' * (len(bad) > 2)}" if len(bad) > 1 else ""
    if good:
        return f"{also}; right at {_few(good)}"
    return f"{also}; right before that at {_few(before)}" if before else f"{also}; right at no shape"


def _wrong(output: str, served: Served, limits: Sequence[Tolerance]) -> Iterator[tuple[str, str] | None]:
    """Per visit: phase and message of the failure, None without one."""
    pools: dict[str, set[int]] = {}
    against = _compared_with(served)
    for visit, allowed in zip(served.sequence, limits, strict=True):
        changed = pools.setdefault(str(visit.lengths), set())
        values = visit.of(output)
        first = None
        for phase in PHASES:
            for record in values.phase(phase):
                changed |= _tipped(visit, output, record)
                bad = _bad(record, allowed.reference, len(changed) > allowed.changed * visit.samples, against)
                first = first or ((_phase(phase, record.run, visit), bad) if bad else None)
        if values.misshapen:
            first = (_phase("later", values.misshapen.run, visit), values.misshapen.why)
        yield first


def _compared_with(served: Served) -> str:
    if served.by_lowered and served.precision != "fp32":
        return "the lowered model in ONNX Runtime"
    return "the fp32 reference"


def _bad(record: RowRecord, limit: float, too_many: bool, against: str) -> str:
    """The failure of the worst row, or ''."""
    row = f"row {record.row}"
    if record.nonfinite:
        return f"{row} has {record.nonfinite} values that are NaN or infinite where {against} has others"
    if record.wrong_samples is not None:
        return f"{row} differs from {against}" if too_many and record.wrong_samples else ""
    if record.most <= limit:
        return ""
    values = f"error {max(record.error, record.most):.3g}, limit {limit:.3g}; cosine {record.cosine:.3g}"
    return f"{row} differs from {against} ({values})"


def _rows(output: str, served: Served, limits: Sequence[Tolerance]) -> Check:
    name, sequence, facts = f"rows[{output}]", served.sequence, served.rows[output]
    mixing = served.reference.mixing.get(output, 0.0)
    pools: dict[str, set[int]] = {}
    worst, at_worst = 0.0, max(limits[0].itself, 3 * mixing if mixing <= DEPENDS_A_LITTLE else 0.0)
    for index, (visit, allowed) in enumerate(zip(sequence, limits, strict=True)):
        limit = max(allowed.itself, 3 * mixing if mixing <= DEPENDS_A_LITTLE else 0.0)
        moved = pools.setdefault(str(visit.lengths), set())
        for record in visit.of(output).moved:
            moved |= _tipped(visit, output, record)
            wrong = len(moved) > allowed.moved if record.wrong_samples is not None else record.most > limit
            if record.nonfinite or wrong:
                return Check(name, "fail", _moved(output, sequence, index, record, limit, mixing))
            if record.most / limit > worst / at_worst:
                worst, at_worst = record.most, limit
    where = "alone and in batches" if facts.alone else "at other places and beside other rows"
    values = f"largest difference {worst:.3g}, limit {at_worst:.3g}"
    return Check(name, "pass", f"{output}: {facts.samples} rows gave the same answer {where} ({values}).")


def _moved(
    output: str, sequence: Sequence[ServedVisit], index: int, record: RowRecord, limit: float, mixing: float
) -> str:
    before, against = "elsewhere", record.against
    if against is not None:
        before = "alone" if against.batch == 1 else f"as row {against.row} of {shown(against.dims)}"
        if against.dims == sequence[index].dims and against.row == record.row:
            before = f"at run {against.run} there"
    size = f"is off by {max(record.error, record.most):.3g} (limit {limit:.3g})"
    size = "is NaN or infinite" if record.nonfinite else size
    where = _at(sequence, index, f"run {record.run}")
    message = f"{output}: row {record.row} at {where} {size} from the same sample {before}"
    if mixing > DEPENDS_A_LITTLE:
        message += "; the fp32 reference does so too: in this model rows depend on each other"
    return message + "."


def _all_right(output: str, served: Served, limits: Sequence[Tolerance]) -> str:
    sequence, rows, reference = served.sequence, served.rows[output], served.reference
    errors = [(f.most, at.reference) for v, at in zip(sequence, limits, strict=True) for f in v.of(output).records]
    worst, limit = max(errors, key=lambda pair: pair[0] / pair[1], default=(0.0, limits[0].reference))
    shapes = len({shown(v.dims) for v in sequence})
    profiles = len({v.profile for v in sequence})
    what = f"{shapes} shape{'s' * (shapes > 1)} of {profiles} profile{'s' * (profiles > 1)}"
    values = f"largest error of a row {worst:.3g}, limit {limit:.3g}"
    if any(record.wrong_samples is not None for record in served.records(output)):
        changed = {(v.lengths, s) for v in sequence for f in v.of(output).records for s in f.wrong_samples or ()}
        values = f"{len(changed)} of {rows.samples} samples differ"
    told = f" Compared with {_compared_with(served)}."
    if reference.why:
        told = f" Compared with fp32, for ONNX Runtime cannot run the lowered model: {reference.why}."
    told += "" if rows.tested else f" Its rows were not told apart: {rows.why}."
    told += f" What was not tried: {'; '.join(served.notes)}." if served.notes else ""
    return f"{output}: right at {what}, at first and after warm-up, there and back ({values}).{told}"


def _phase(phase: str, run: int, visit: ServedVisit) -> str:
    warm = " after warm-up" if run > visit.runs_before_warm_up else ""
    return "first run" if phase == "first" else f"run {run}{warm}"


def _at(sequence: Sequence[ServedVisit], index: int, phase: str) -> str:
    """'batch 64 (profile bulk, 3rd shape, second visit, run 11)'."""
    visit = sequence[index]
    stops = list(dict.fromkeys(shown(v.dims) for v in sequence))
    turn = sum(v.dims == visit.dims for v in sequence[: index + 1])
    words = [f"profile {visit.profile}", f"{_ordinal(stops.index(shown(visit.dims)) + 1)} shape"]
    words += [f"{_ordinal(turn)} visit"] if turn > 1 else []
    words += [phase] if phase else []
    return f"{shown(visit.dims)} ({', '.join(words)})"


def _ordinal(n: int) -> str:
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def _few(names: Sequence[str], many: int = 6) -> str:
    return "; ".join(names[:many]) + (f" and {len(names) - many} more" if len(names) > many else "")
