"""Folded fp32 ONNX at the shapes of every profile → reference outputs, by ONNX Runtime: a part of the reference step.

Two modes. "rows": every row of a pool is run alone, and what a batch should give is put together from them; cheap even
where the largest batch would take minutes on a CPU, and right only if the model takes rows one by one, which is shown
on a batch of a few. "runs", for all other models (rows that depend on each other, outputs without a batch, a fixed
batch): every run of the sequence as it is.

What is limited, and how: a pool has as many rows as ONNX Runtime does in POOL_SECONDS, 2 at least, and no more than
fit in POOL_ELEMENTS; lengths at which one row takes longer than ROW_SECONDS are left out; batches are cut down to
RUN_ELEMENTS and, in mode "runs", to what ONNX Runtime does in RUN_SECONDS. Seconds are of
processor time on all cores. Each cut is told in a note.
"""

from __future__ import annotations

import os
import textwrap
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engineworks.backends.base import Session
from engineworks.errors import RunError
from engineworks.measure.served import (
    POOL_ROWS,
    Lengths,
    Visit,
    row_errors,
    row_picks,
    visit_sequence,
    without_spare_odds,
)
from engineworks.steps.served_rows import Arrays, ServedRows

SHAPES_FILE, SHAPES_OUTPUTS_FILE = "shapes.json", "shapes.npz"

POOL_SECONDS, ROW_SECONDS, RUN_SECONDS = 1.0, 20.0, 2.0
POOL_ELEMENTS, RUN_ELEMENTS = 2**23, 2**25

ALIKE = 1e-3
"""Largest error of a row in a batch against the same row alone for which the fp32 model takes rows one by one."""

Axes = dict[str, int | None]


@dataclass
class Pool:
    """Rows of one length: outputs, stacked along each output's batch axis (mode "rows"); seconds, and elements of
    inputs and outputs, per row."""

    lengths: Lengths
    rows: list[Arrays]
    data: str
    seconds: float = 0.0
    elements: int = 0
    outputs: dict[str, NDArray[np.generic]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "lengths": [list(pair) for pair in self.lengths], "rows": len(self.rows), "data": self.data,
            "seconds_per_row": self.seconds, "elements_per_row": self.elements,
        }  # fmt: skip


class ShapesReference:
    """Runs the reference at the sequence's shapes and writes what it gave. axes: where outputs have the batch."""

    def __init__(self, session: Session, rows: ServedRows, plan: Mapping[str, Any], axes: Axes) -> None:
        self._session, self._rows, self._axes = session, rows, dict(axes)
        self._batch: str | None = plan["batch"]
        self._visits = visit_sequence(plan["profiles"], self._batch, rows.data_lengths(), plan["fixed_batch"])
        self._notes: list[str] = []
        self._pools: dict[Lengths, Pool] = {}

    def write(self, outputs: Path, scale: Mapping[str, float], say: Callable[[str], None]) -> dict[str, Any]:
        """Write all outputs into one file and return what SHAPES_FILE holds. scale: root mean square of every output
        on the evaluation data."""
        self._fill_pools()
        self._visits = without_spare_odds([v for v in self._visits if v.lengths in self._pools])
        mixing = self._mixing(scale)
        with zipfile.ZipFile(outputs, "w") as archive:
            if mixing is None:
                self._write_runs(archive, say)
            else:
                for index, pool in enumerate(self._pools.values()):
                    write_arrays(archive, f"pool{index}", pool.outputs)
        return {
            "mode": "runs" if mixing is None else "rows",
            "axes": self._axes,
            "scale": dict(scale),
            "mixing": self._mixed,
            "pools": [p.to_json() for p in self._pools.values()],
            "visits": [v.to_json() for v in self._visits],
            "notes": list(dict.fromkeys(self._notes)),
        }

    def _fill_pools(self) -> None:
        odd = {v.lengths: v.profile for v in self._visits if v.role == "odd"}
        for visit in self._visits:
            stands_in = visit.role == "odd multiple" and any(odd.get(n) == visit.profile for n in self._pools)
            if visit.lengths in self._pools or stands_in:
                continue
            most = max(2, min(POOL_ROWS, POOL_ELEMENTS // max(1, self._rows.elements(visit.lengths))))
            rows, data = self._rows.pool(visit.lengths, most)
            pool = Pool(visit.lengths, rows, data)
            try:
                self._run_pool(pool, visit)
            except RunError as error:
                self._refused(dict(visit.lengths), error)
                continue
            if pool.seconds > ROW_SECONDS and self._pools:
                why = f"one row takes the fp32 reference {pool.seconds:.0f} s, more than {ROW_SECONDS:.0f}"
                self._note(f"{shown(dict(visit.lengths))}: not compared, {why}")
                continue
            self._pools[visit.lengths] = pool

    def _run_pool(self, pool: Pool, visit: Visit) -> None:
        """Every row alone; or one whole run where a batch is fixed or there is none."""
        single = 1 if self._batch else visit.batch
        picks = [[(i + j) % len(pool.rows) for j in range(single)] for i in range(len(pool.rows))]
        start = work_seconds()
        first = self._session.run(self._rows.feeds(pool.rows, picks[0]))
        pool.seconds = (work_seconds() - start) / single
        pool.elements = self._rows.elements(visit.lengths) + sum(v.size for v in first.values()) // single
        if self._batch is None:
            return
        enough = max(2, min(int(POOL_SECONDS / max(pool.seconds, 1e-9)), POOL_ELEMENTS // max(1, pool.elements)))
        pool.rows = pool.rows[:enough]
        runs = [first, *(self._session.run(self._rows.feeds(pool.rows, p)) for p in picks[1:enough])]
        for name, axis in self._axes.items():
            if axis is None or any(r[name].shape[axis : axis + 1] != (1,) for r in runs):
                self._axes[name] = None
            elif all(r[name].shape == runs[0][name].shape for r in runs):
                pool.outputs[name] = np.concatenate([r[name] for r in runs], axis=axis)
            else:
                self._axes[name] = None

    def _mixing(self, scale: Mapping[str, float]) -> dict[str, float] | None:
        """How far rows in a batch are from the same rows alone, per output; None where the mode must be "runs"."""
        self._mixed: dict[str, float] = {}
        real = [p for p in self._pools.values() if len(p.rows) > 1]
        if self._batch is None or not real or None in self._axes.values():
            return None
        pool = min(real, key=lambda p: (p.seconds, p.data))
        picks = list(range(min(5, len(pool.rows))))
        try:
            together = self._session.run(self._rows.feeds(pool.rows, picks))
        except RunError as error:
            self._note(f"the fp32 reference does not run at batch {len(picks)}: {error}")
            return None
        for name, axis in self._axes.items():
            assert axis is not None
            wanted = np.take(pool.outputs[name], picks, axis=axis)
            try:
                errors = row_errors(together[name], wanted, axis, scale.get(name, 0.0))
            except ValueError:
                self._axes[name] = None
                return None
            self._mixed[name] = 1.0 if errors.nonfinite.any() else float(errors.error.max())
        return self._mixed if max(self._mixed.values()) <= ALIKE else None

    def _write_runs(self, archive: zipfile.ZipFile, say: Callable[[str], None]) -> None:
        kept: list[Visit] = []
        for given in self._visits:
            pool = self._pools[given.lengths]
            visit = self._cut(given, pool)
            try:
                runs = [self._session.run(self._rows.feeds(pool.rows, p)) for p in row_picks(visit, len(pool.rows))]
            except RunError as error:
                self._refused(visit.dims, error)
                continue
            for index, outputs in enumerate(runs):
                write_arrays(archive, f"visit{len(kept)}/{index}", outputs)
            self._check_axes(visit, runs)
            kept.append(visit)
            say(f"reference at {shown(visit.dims)}")
        self._visits = kept

    def _check_axes(self, visit: Visit, runs: Sequence[Mapping[str, NDArray[np.generic]]]) -> None:
        for name, axis in self._axes.items():
            if axis is not None and any(r[name].shape[axis : axis + 1] != (visit.batch,) for r in runs):
                self._axes[name] = None

    def _cut(self, visit: Visit, pool: Pool) -> Visit:
        if self._batch is None:
            return visit
        most = max(1, min(int(RUN_SECONDS / max(pool.seconds, 1e-9)), RUN_ELEMENTS // max(1, pool.elements)))
        why = f"the fp32 reference, whose rows depend on each other, takes {pool.seconds:.2g} s a row"
        return cut_batch(visit, self._batch, most, why, self._note)

    def _refused(self, dims: Mapping[str, int], error: RunError) -> None:
        why = textwrap.shorten(error.message, 160, placeholder=" …")
        self._note(f"{shown(dims)}: not compared, the fp32 reference does not run there: {why}")

    def _note(self, line: str) -> None:
        self._notes.append(line)


def work_seconds() -> float:
    """Processor time that this process has used, by its cores: what is limited by it does not depend on who else uses
    them."""
    return time.process_time() / len(os.sched_getaffinity(0))


def cut_batch(visit: Visit, batch: str, most: int, why: str, note: Callable[[str], None]) -> Visit:
    """The visit with no more than `most` rows, and a note of it. Its smallest batch is never cut."""
    if visit.batch <= most or visit.alone:
        return visit
    dims = {**visit.dims, batch: most}
    note(f"{shown(visit.dims)} (profile {visit.profile}): compared at {batch} {most}: {why}")
    return replace(visit, dims=dims, batch=most)


def shown(dims: Mapping[str, int]) -> str:
    """A shape in words: 'batch 8, sequence 128'."""
    return ", ".join(f"{d} {n}" for d, n in dims.items()) or "the fixed shape"


def write_arrays(archive: zipfile.ZipFile, folder: str, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    for name, value in arrays.items():
        with archive.open(f"{folder}/{name}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, np.asarray(value, order="C"), allow_pickle=False)
