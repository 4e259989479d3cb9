"""Runs one session through the shapes of every profile, as served: each shape at its first run and after warm-up,
twice.

Every row is compared with the reference and with the same row elsewhere. The reference names the rows, visits and runs,
and this module only reads them. On a device each visit's runs are followed by a warm-up: back to back for
WARM_DEVICE_MS, so that TensorRT-RTX swaps its specialized kernels in; then all feeds run and are compared once more. A
clock decides how many runs the warm-up takes; none of them is compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from engineworks.engines.backends.base import Session
from engineworks.errors import RunError
from engineworks.host.lazy import Array
from engineworks.measure.served import EXACT_DTYPES, WARM_RUNS, RowErrors, Stop, Visit, row_errors, shown
from engineworks.measure.served_report import (
    Occurrence,
    OtherShape,
    OutputRecords,
    RowFacts,
    RowRecord,
    Served,
    ServedAgainst,
    ServedVisit,
)
from engineworks.steps.served_reference import ServedReference
from engineworks.steps.served_rows import Arrays, ServedRows

WARM_DEVICE_MS, MOST_WARM_RUNS = 300.0, 2**16

MOST_RAISED = 3
"""Number of shapes at which an engine may refuse to run before the rest is skipped."""


class ServedComparison:
    """Runs a session through the sequence. precision: of the engine. device: whether it runs on a device, not on this
    CPU."""

    def __init__(self, reference: ServedReference, rows: ServedRows, precision: str, *, device: bool) -> None:
        self._reference, self.rows, self._precision, self._device = reference, rows, precision, device
        self._stops, self.notes = reference.plan.stops(device=device)
        self._pool: tuple[int, list[Arrays]] = (-1, [])
        self._places = Places(reference.plan.axes, reference.plan.scale)
        self.raised = 0

    def follow(self, session: Session, echo: Callable[[str], None]) -> Served:
        """Return the report: every visit with its worst rows, and what was not tried."""
        start, processor, sequence = time.monotonic(), time.process_time(), []
        for stop in self._stops:
            if self.raised >= MOST_RAISED:
                self.notes.append(f"after {MOST_RAISED} shapes at which the engine did not run, the rest was not tried")
                break
            sequence.append(self._visit(session, stop))
        seconds = time.monotonic() - start
        echo(f"compared at {len(sequence)} stops in {seconds:.1f} s")
        facts, plan = self._reference.facts, self._reference.plan
        return Served(
            precision=self._precision,
            sequence=tuple(sequence),
            failures=tuple(_hard_failures(sequence)),
            rows=self._places.report(),
            reference=ServedAgainst(
                "fp32" if facts.why else "lowered", facts.why, "rows" if plan.by_rows else "runs", plan.mixing
            ),
            lost=facts.lost,
            notes=tuple(dict.fromkeys(self.notes)),
            session=tuple(session.notes),
            seconds=round(seconds, 3),
            processor_seconds=round(time.process_time() - processor, 3),
        )

    def _visit(self, session: Session, stop: Stop) -> ServedVisit:
        pool = self._reference.plan.pools[stop.pool]
        runs, raised = _Runs(self, stop, self._rows_of(stop.pool)), ""
        try:
            self._warm(session, runs)
        except RunError as error:
            self.raised += 1
            raised = error.message
        return ServedVisit(
            **vars(stop.visit), data=pool.data, samples=len(pool.rows), pool_rows=pool.rows, picks=stop.picks,
            moved=self._reference.moved(stop.pool), runs_before_warm_up=stop.runs, outputs=runs.outputs,
            runs=runs.done, raised=raised,
        )  # fmt: skip

    def _warm(self, session: Session, runs: _Runs) -> None:
        while runs.done < runs.stop.runs:
            runs.run(session)
        if self._device:
            spent, done, count = 0.0, 0, WARM_RUNS
            while spent < WARM_DEVICE_MS and done < MOST_WARM_RUNS:
                spent += sum(session.time_runs(runs.feeds[0], count).host_ms)
                done, count = done + count, 2 * count
            for _ in runs.feeds:
                runs.run(session)

    def _rows_of(self, pool: int) -> list[Arrays]:
        if self._pool[0] != pool:
            self._pool = (pool, self._reference.plan.rows(self.rows, pool))
        return self._pool[1]

    def compared(self, runs: _Runs, turn: int, given: Mapping[str, Array], run: int) -> None:
        """Add one run's outputs to the visit's metrics. given: by name, with the engine's shapes and dtypes."""
        stop, plan = runs.stop, self._reference.plan
        picks = stop.picks[turn]
        wanted, got = self._reference.outputs(stop, turn, given)
        for name, expected in wanted.items():
            axis, scale = plan.axes[name], plan.scale.get(name, 0.0)
            kept = runs.outputs.setdefault(name, OutputRecords())
            if name not in got:
                raise RunError(f"the engine has no output '{name}'")
            try:
                errors = row_errors(got[name], expected, axis, scale)
            except ValueError as error:
                runs.outputs[name] = replace(kept, misshapen=kept.misshapen or OtherShape(run, str(error)))
                continue
            new = row_record(errors, picks, run, exact=expected.dtype.name in EXACT_DTYPES)
            if run == 1:
                kept = replace(kept, first=keep_worst(kept.first, new))
            else:
                kept = replace(kept, later=keep_worst(kept.later, new))
            self._places.tried(name, stop.pool, picks if axis is not None else picks[:1])
            if axis is not None:
                moved = self._places.observe(stop.visit, stop.pool, name, got[name], picks, run)
                kept = replace(kept, moved=keep_worst(kept.moved, moved))
            runs.outputs[name] = kept


class _Runs:
    """The interleaved runs of one visit over its feeds; unchanged outputs are not compared again."""

    def __init__(self, owner: ServedComparison, stop: Stop, rows: list[Arrays]) -> None:
        self.owner, self.stop = owner, stop
        self.feeds = [owner.rows.feeds(rows, p) for p in stop.picks]
        self.outputs: dict[str, OutputRecords] = {}
        self.done = 0
        self._before: dict[int, Mapping[str, Array]] = {}

    def run(self, session: Session) -> None:
        turn = self.done % len(self.feeds)
        self.done += 1
        got = session.run(self.feeds[turn])
        before = self._before.get(turn)
        if before is not None and before.keys() == got.keys() and all(_same(before[n], got[n]) for n in got):
            return
        self.owner.compared(self, turn, got, self.done)
        self._before[turn] = {name: np.array(value) for name, value in got.items()}


def _same(a: Array, b: Array) -> bool:
    """Return whether dtype, shape and every value are equal; NaN equals nothing."""
    return a.dtype == b.dtype and np.array_equal(a, b)


def _hard_failures(sequence: Sequence[ServedVisit]) -> Iterator[str]:
    """Yield what is wrong whatever the limits."""
    for visit in sequence:
        at = f"{shown(visit.dims)} (profile {visit.profile})"
        if visit.raised:
            yield f"at {at} the engine did not run: {visit.raised}"
        for name, values in visit.outputs.items():
            if values.misshapen:
                yield f"{name}: at {at} {values.misshapen.why}"
            for records in (values.first, values.later):
                bad = next((record for record in records if record.nonfinite), None)
                if bad:
                    yield f"{name}: at {at} row {bad.row} has {bad.nonfinite} values that are NaN or infinite"


SAME_SHARE = 0.01
"""Share of a row's elements that may differ, in outputs of class ids, counts or flags, before it is another answer."""


class Places:
    """Where each row was seen first, and the engine's output for it there."""

    def __init__(self, axes: Mapping[str, int | None], scale: Mapping[str, float]) -> None:
        self._axes, self._scale = axes, scale
        self._seen: dict[tuple[str, int, int], tuple[Array, Occurrence]] = {}
        self._compared = dict.fromkeys(self._axes, 0)
        self._tried: dict[str, set[tuple[int, int]]] = {name: set() for name in self._axes}
        self._most_rows = 1

    def tried(self, name: str, pool: int, picks: Sequence[int]) -> None:
        self._tried[name] |= {(pool, sample) for sample in picks}

    def observe(
        self, visit: Visit, pool: int, name: str, got: Array, picks: Sequence[int], run: int
    ) -> RowRecord | None:
        """Return the row furthest from its first occurrence; None if all rows are new.

        got: one output of a run, of any dtype, with one row per pick along its batch axis.
        """
        axis = self._axes[name]
        assert axis is not None
        self._most_rows = max(self._most_rows, len(picks))
        places, baselines, now = [], [], []
        for place, sample in enumerate(picks):
            row, key = np.take(got, place, axis=axis), (name, pool, sample)
            if key not in self._seen:
                self._seen[key] = (np.array(row), Occurrence(dict(visit.dims), place, visit.batch, run))
                continue
            places.append(place)
            baselines.append(self._seen[key][0])
            now.append(row)
        if not places:
            return None
        self._compared[name] += len(places)
        try:
            errors = row_errors(np.stack(now), np.stack(baselines), 0, self._scale.get(name, 0.0))
        except ValueError:
            return None  # a row of another shape: reported as misshapen relative to the reference
        exact = got.dtype.name in EXACT_DTYPES
        record = row_record(errors, [picks[p] for p in places], run, exact=exact)
        assert record is not None  # there is a row
        place = places[record.row]
        return replace(record, row=place, against=self._seen[name, pool, picks[place]][1])

    def report(self) -> dict[str, RowFacts]:
        report = {}
        for name, axis in self._axes.items():
            first, samples = [at for key, (_, at) in self._seen.items() if key[0] == name], len(self._tried[name])
            if axis is None:
                report[name] = RowFacts(False, samples, why="it has no dimension that follows the batch")
            elif self._most_rows == 1:
                report[name] = RowFacts(False, samples, why="every run takes one sample")
            else:
                alone = bool(first) and all(at.batch == 1 for at in first)
                report[name] = RowFacts(True, samples, alone, self._compared[name])
        return report


def row_record(errors: RowErrors, picks: Sequence[int], run: int, *, exact: bool) -> RowRecord | None:
    """Return the row with the largest error; None where the output holds no row."""
    row = errors.worst()
    if row is None:
        return None
    wrong = {picks[i] for i in np.flatnonzero(errors.error > SAME_SHARE).tolist() if i < len(picks)}
    error = float(errors.error[row])
    return RowRecord(
        error, row, picks[row] if row < len(picks) else 0, float(errors.cosine[row]), int(errors.nonfinite[row]), run,
        most=error, wrong_samples=tuple(sorted(wrong)) if exact else None,
    )  # fmt: skip


def keep_worst(records: tuple[RowRecord, ...], new: RowRecord | None) -> tuple[RowRecord, ...]:
    """Return a phase's records with a new one: each is twice as bad as the previous, which gives the first wrong run
    for any limit.

    `most`: the largest error until the next record. Wrong samples are gathered.
    """
    if new is None:
        return records
    if not records:
        return (new,)
    last = records[-1]
    fresh = {*(new.wrong_samples or ())} - {*(last.wrong_samples or ())}
    if (new.nonfinite and not last.nonfinite) or new.error > 2 * last.error or fresh:
        if fresh:
            new = replace(new, wrong_samples=tuple(sorted({*(last.wrong_samples or ()), *fresh})))
        return (*records, new)
    return (*records[:-1], replace(last, most=max(last.most, new.error)))
