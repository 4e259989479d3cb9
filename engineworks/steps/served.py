"""One session through the shapes of every profile, as it is served: each shape at its first run and after warm-up,
each twice, every row against the reference and against the same row elsewhere.

Warm-up: WARM_RUNS runs at least, by turns on different rows, so that what was left over from the run before is seen;
on a device WARM_DEVICE_MS more of runs back to back, and all of them once again after that: TensorRT-RTX swaps
specialized kernels in after the first runs. On a CPU a visit gets no more than VISIT_SECONDS of runs (but each of its
feeds once, and one twice), a batch no more than RUN_SECONDS by the reference's pace, the whole no more than
TOTAL_SECONDS.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engineworks.backends.base import Session
from engineworks.errors import RunError
from engineworks.measure.served import EXACT_DTYPES, Lengths, Visit, row_errors, row_picks, visit_from_json
from engineworks.npz import NpzReader
from engineworks.steps.served_figures import Places, keep_worst, row_figures
from engineworks.steps.served_rows import Arrays, ServedRows
from engineworks.steps.shapes_reference import (
    RUN_ELEMENTS,
    SHAPES_FILE,
    SHAPES_OUTPUTS_FILE,
    cut_batch,
    shown,
    work_seconds,
)

Array = NDArray[np.generic]

WARM_RUNS = 14
WARM_DEVICE_MS = 300.0
VISIT_SECONDS, RUN_SECONDS, TOTAL_SECONDS = 0.3, 0.5, 20.0

MOST_RAISED = 3
"""Shapes at which an engine may refuse to run before the rest is not tried."""


class ServedReference:
    """What the reference step wrote of the shapes."""

    def __init__(self, folder: Path) -> None:
        report: dict[str, Any] = json.loads((folder / SHAPES_FILE).read_text(encoding="utf-8"))
        self._arrays = NpzReader(folder / SHAPES_OUTPUTS_FILE)
        self.axes: dict[str, int | None] = report["axes"]
        self.scale: dict[str, float] = report["scale"]
        self.by_rows: bool = report["mode"] == "rows"
        self.mixing: dict[str, float] = report["mixing"]
        self.notes: list[str] = report["notes"]
        self.visits = [visit_from_json(v) for v in report["visits"]]
        self.pools = [(tuple((d, n) for d, n in p["lengths"]), p) for p in report["pools"]]

    def pool(self, lengths: Lengths) -> tuple[int, Mapping[str, Any]]:
        return next((i, p) for i, (known, p) in enumerate(self.pools) if known == lengths)

    def outputs(self, visit: int, pool: int, run: int, picks: Sequence[int]) -> dict[str, Array]:
        """What a run of these rows should give."""
        found = {}
        for name, axis in self.axes.items():
            if self.by_rows:
                found[name] = np.take(self._arrays.read(f"pool{pool}/{name}"), picks, axis=axis)
            else:
                found[name] = self._arrays.read(f"visit{visit}/{run}/{name}")
        return found

    def close(self) -> None:
        self._arrays.close()


class ServedComparison:
    """Leads a session through the sequence. device: whether it runs on one, not on this CPU."""

    def __init__(self, reference: ServedReference, rows: ServedRows, batch: str | None, *, device: bool) -> None:
        self._reference, self._rows, self._batch, self._device = reference, rows, batch, device
        self._pool: tuple[int, list[Arrays]] = (-1, [])
        self._places = Places(reference.axes, reference.scale)
        self.notes = list(reference.notes)
        self.raised = 0

    def _clock(self) -> float:
        return time.monotonic() if self._device else work_seconds()

    def follow(self, session: Session, say: Callable[[str], None]) -> dict[str, Any]:
        """The report: every visit with its worst rows, and what was not tried."""
        start, work, sequence = time.monotonic(), self._clock(), []
        processor = time.process_time()
        for index, given in enumerate(self._reference.visits):
            if self.raised >= MOST_RAISED:
                self.notes.append(f"after {MOST_RAISED} shapes at which the engine did not run, the rest was not tried")
                break
            if self._clock() - work > TOTAL_SECONDS:
                left = len(self._reference.visits) - index
                self.notes.append(f"the last {left} visits were left out: {TOTAL_SECONDS:.0f} s were spent")
                break
            sequence.append(self._visit(session, index, given))
        seconds = time.monotonic() - start
        say(f"compared at {len(sequence)} stops in {seconds:.1f} s")
        return {
            "sequence": sequence,
            "failures": _hard_failures(sequence),
            "rows": self._places.report(),
            "reference": {"mode": "rows" if self._reference.by_rows else "runs", "mixing": self._reference.mixing},
            "notes": list(dict.fromkeys(self.notes)),
            "session": list(session.notes),
            "seconds": round(seconds, 3),
            "processor_seconds": round(time.process_time() - processor, 3),
        }

    def _visit(self, session: Session, index: int, given: Visit) -> dict[str, Any]:
        pool_index, facts = self._reference.pool(given.lengths)
        visit = self._cut(given, facts)
        runs = _Runs(self, index, pool_index, visit, self._rows_of(pool_index, given.lengths, facts))
        report = visit.to_json() | {"data": facts["data"], "samples": facts["rows"], "outputs": runs.outputs}
        try:
            self._warm(session, runs)
        except RunError as error:
            self.raised += 1
            report["raised"] = error.message
        return report | {"runs": runs.done}

    def _warm(self, session: Session, runs: _Runs) -> None:
        start, least = work_seconds(), len(runs.feeds) + 1
        most = max(WARM_RUNS, least)
        while runs.done < most:
            runs.run(session)
            if not self._device and runs.done >= least and work_seconds() - start > VISIT_SECONDS:
                return
        if self._device:
            spent, count = 0.0, WARM_RUNS
            while spent < WARM_DEVICE_MS and count < 10**6:
                spent += sum(session.time_runs(runs.feeds[0], count).host_ms)
                runs.done += count
                count *= 2
            for _ in runs.feeds:
                runs.run(session)

    def _rows_of(self, index: int, lengths: Lengths, facts: Mapping[str, Any]) -> list[Arrays]:
        if self._pool[0] != index:
            self._pool = (index, self._rows.pool(lengths, facts["rows"])[0])
        return self._pool[1]

    def _cut(self, visit: Visit, facts: Mapping[str, Any]) -> Visit:
        if self._batch is None or not self._reference.by_rows:
            return visit
        most = max(1, RUN_ELEMENTS // max(1, facts["elements_per_row"]))
        why = f"inputs and outputs of more than {RUN_ELEMENTS:,} values are not tried"
        pace = max(facts["seconds_per_row"], 1e-9)
        if not self._device and int(RUN_SECONDS / pace) < most:
            most = max(1, int(RUN_SECONDS / pace))
            why = f"a sample takes the reference about {pace:.2g} s on this CPU, and a run may take {RUN_SECONDS:g} s"
        return cut_batch(visit, self._batch, most, why, self.notes.append)

    def compared(self, runs: _Runs, turn: int, got: Mapping[str, Array], run: int) -> None:
        """Put one run's outputs into the visit's figures."""
        picks = runs.picks[turn]
        wanted = self._reference.outputs(runs.index, runs.pool, turn, picks)
        for name, expected in wanted.items():
            axis, scale = self._reference.axes[name], self._reference.scale.get(name, 0.0)
            figures = runs.outputs.setdefault(name, {})
            phase = "first" if run == 1 else "later"
            if name not in got:
                raise RunError(f"the engine has no output '{name}'")
            try:
                errors = row_errors(got[name], expected, axis, scale)
            except ValueError as error:
                figures.setdefault("misshapen", {"run": run, "why": str(error)})
                continue
            exact = expected.dtype.name in EXACT_DTYPES
            keep_worst(figures, phase, row_figures(errors, picks, run, exact=exact))
            self._places.tried(name, runs.pool, picks if axis is not None else picks[:1])
            if axis is not None:
                moved = self._places.seen(runs.visit, runs.pool, name, got[name], picks, run)
                if moved is not None:
                    keep_worst(figures, "moved", moved)


class _Runs:
    """The runs of one visit, by turns over its feeds; what did not change since the last time is not compared again."""

    def __init__(self, owner: ServedComparison, index: int, pool: int, visit: Visit, rows: list[Arrays]) -> None:
        self.owner, self.index, self.pool, self.visit = owner, index, pool, visit
        self.picks = row_picks(visit, len(rows))
        self.feeds = [owner._rows.feeds(rows, p) for p in self.picks]
        self.outputs: dict[str, dict[str, Any]] = {}
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
    return a.dtype == b.dtype and np.array_equal(a, b)


def _hard_failures(sequence: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong whatever the limits."""
    found = []
    for visit in sequence:
        at = f"{shown(visit['dims'])} (profile {visit['profile']})"
        if "raised" in visit:
            found.append(f"at {at} the engine did not run: {visit['raised']}")
        for name, figures in visit["outputs"].items():
            if "misshapen" in figures:
                found.append(f"{name}: at {at} {figures['misshapen']['why']}")
            for phase in ("first", "later"):
                bad = next((record for record in figures.get(phase, ()) if record["nonfinite"]), None)
                if bad:
                    what = f"{bad['nonfinite']} values that are NaN or infinite"
                    found.append(f"{name}: at {at} row {bad['row']} has {what}")
    return found
