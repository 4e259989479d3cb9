"""Folded fp32 ONNX at the shapes of every profile → what is compared there, and the model's outputs in ONNX Runtime.

Part of the reference step. Engines and lowered models run exactly the rows, visits and runs in SHAPES_FILE.

Two modes. "rows": every row of a pool runs alone, and expected outputs of a batch are assembled from them. It is cheap
even where the largest batch would take minutes on a CPU. It is right only if the model treats rows independently, which
is tested on a small batch. "runs", for all other models (rows that depend on each other, outputs without a batch, a
fixed batch): every run of the sequence as it is.

`measure.served` sets the limits. A note reports each cut.
"""

from __future__ import annotations

import tempfile
import textwrap
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engineworks.engines.backends import onnxruntime as backend
from engineworks.engines.backends.base import Session
from engineworks.errors import RunError
from engineworks.host.lazy import Array
from engineworks.measure.served import (
    POOL_ROWS,
    POOL_VALUES,
    REFERENCE_RUN_OPERATIONS,
    ROW_OPERATIONS,
    Lengths,
    PoolFacts,
    Visit,
    cut_batch,
    row_errors,
    row_picks,
    rows_of_a_pool,
    shown,
    stops,
    visit_sequence,
    without_spare_odds,
)
from engineworks.steps.operations import profiled_operations
from engineworks.steps.served_rows import Arrays, ServedRows

SHAPES_FILE, SHAPES_OUTPUTS_FILE = "shapes.json", "shapes.npz"

ALIKE = 1e-3
"""Maximum error of a row in a batch, relative to the row alone, at which fp32 rows count as independent."""

Axes = dict[str, int | None]


class ShapesReference:
    """Chooses what to compare at the sequence's shapes, runs the reference there and writes its outputs. axes: where
    outputs have the batch."""

    def __init__(self, model: Path, rows: ServedRows, plan: Mapping[str, Any], axes: Axes) -> None:
        self._model, self._rows, self._axes = model, rows, dict(axes)
        self._batch: str | None = plan["batch"]
        self._visits = visit_sequence(plan["profiles"], self._batch, rows.data_lengths(), plan["fixed_batch"])
        self._notes: list[str] = []
        self._pools: dict[Lengths, PoolFacts] = {}
        self._firsts: dict[Lengths, Arrays] = {}
        self._mixed: dict[str, float] = {}

    def write(self, outputs: Path, scale: Mapping[str, float], echo: Callable[[str], None]) -> dict[str, Any]:
        """Write all outputs into one file and return what SHAPES_FILE holds. scale: root mean square of every output
        on the evaluation data."""
        session = self._choose_pools()
        self._visits = without_spare_odds([v for v in self._visits if v.lengths in self._pools])
        pieces = self._rows_alone(session)
        by_rows = pieces is not None and self._rows_are_alike(session, pieces, scale)
        with zipfile.ZipFile(outputs, "w") as archive:
            if pieces is not None and by_rows:
                for index, piece in enumerate(pieces):
                    write_arrays(archive, pool_key(index), piece)
            else:
                self._write_runs(session, archive, echo)
        session.close()
        return self._report(by_rows, scale)

    def _report(self, by_rows: bool, scale: Mapping[str, float]) -> dict[str, Any]:
        pools = list(self._pools.values())
        notes = list(dict.fromkeys(self._notes))
        report: dict[str, Any] = {}
        for place, device in (("cpu", False), ("device", True)):
            made, cuts = stops(self._visits, pools, self._batch if by_rows else None, device=device)
            report[place] = {"stops": [s.to_json() for s in made], "notes": [*notes, *cuts]}
        return {
            "mode": "rows" if by_rows else "runs", "axes": self._axes, "scale": dict(scale), "mixing": self._mixed,
            "pools": [p.to_json() for p in pools], **report,
        }  # fmt: skip

    def _choose_pools(self) -> Session:
        """Choose the rows of every length, by the cost of its first row; returns the session that ran these."""
        odd = {v.lengths: v.profile for v in self._visits if v.role == "odd"}
        visited: set[Lengths] = set()
        with tempfile.TemporaryDirectory() as folder:
            counted = _CountedSession(self._model, Path(folder))
            for visit in self._visits:
                stands_in = visit.role == "odd multiple" and any(odd.get(n) == visit.profile for n in counted.lengths)
                if visit.lengths in visited or stands_in:
                    continue
                visited.add(visit.lengths)
                try:
                    self._firsts[visit.lengths] = counted.run(visit.lengths, self._first_feeds(visit))
                except RunError as error:
                    self._refused(dict(visit.lengths) or visit.dims, error)
            operations = counted.operations()
        for visit in self._visits:
            if visit.lengths in operations and visit.lengths not in self._pools:
                self._choose_pool(visit, operations[visit.lengths])
        return counted.session

    def _first_feeds(self, visit: Visit) -> Arrays:
        """Return one row; or one whole run where a batch is fixed or there is none."""
        rows = self._rows.read(visit.lengths, *self._rows.choose(visit.lengths, 1 if self._batch else POOL_ROWS))
        return self._rows.feeds(rows, [i % len(rows) for i in range(self._single(visit))])

    def _single(self, visit: Visit) -> int:
        return 1 if self._batch else visit.batch

    def _choose_pool(self, visit: Visit, operations: int) -> None:
        single, lengths = self._single(visit), visit.lengths
        values = self._rows.elements(lengths) + sum(v.size for v in self._firsts[lengths].values()) // single
        operations //= single
        if operations > ROW_OPERATIONS and self._pools:
            why = f"one row takes {operations:.1e} operations, more than {ROW_OPERATIONS:.1e}"
            self._notes.append(f"{shown(dict(lengths))}: not compared, {why}")
            return
        rows, data = self._rows.choose(lengths, rows_of_a_pool(values, operations if self._batch else 0))
        self._pools[lengths] = PoolFacts(lengths, rows, data, values, operations)

    def _rows_alone(self, session: Session) -> list[Arrays] | None:
        """Return each pool's rows run alone, stacked along each output's batch axis; None if impossible."""
        if self._batch is None:
            return None
        pieces = []
        for pool in list(self._pools.values()):
            rows = self._rows.read(pool.lengths, pool.rows, pool.data)
            runs = [self._firsts.pop(pool.lengths)]
            try:
                runs += [session.run(self._rows.feeds(rows, [i])) for i in range(1, len(rows))]
            except RunError as error:
                self._refused(dict(pool.lengths), error)
                del self._pools[pool.lengths]
                continue
            piece = stacked(runs, self._axes)
            self._axes |= dict.fromkeys(self._axes.keys() - piece.keys())
            pieces.append(piece)
        self._visits = [v for v in self._visits if v.lengths in self._pools]
        return None if None in self._axes.values() or not pieces else pieces

    def _rows_are_alike(self, session: Session, pieces: Sequence[Arrays], scale: Mapping[str, float]) -> bool:
        """Return whether rows in a batch equal the same rows alone; keeps the error per output."""
        pools = list(self._pools.values())
        real = [i for i, p in enumerate(pools) if len(p.rows) > 1]
        if not real:
            return False
        index = min(real, key=lambda i: (pools[i].operations, pools[i].data))
        pool = pools[index]
        picks = list(range(min(5, len(pool.rows))))
        rows = self._rows.read(pool.lengths, pool.rows, pool.data)
        try:
            together = session.run(self._rows.feeds(rows, picks))
        except RunError as error:
            self._notes.append(f"the fp32 reference does not run at batch {len(picks)}: {error}")
            return False
        for name, axis in self._axes.items():
            assert axis is not None
            wanted = np.take(pieces[index][name], picks, axis=axis)
            try:
                errors = row_errors(together[name], wanted, axis, scale.get(name, 0.0))
            except ValueError:
                self._axes[name] = None
                return False
            self._mixed[name] = 1.0 if errors.nonfinite.any() else float(errors.error.max(initial=0.0))
        return max(self._mixed.values()) <= ALIKE

    def _write_runs(self, session: Session, archive: zipfile.ZipFile, echo: Callable[[str], None]) -> None:
        kept: list[Visit] = []
        for given in self._visits:
            pool = self._pools[given.lengths]
            visit = self._cut(given, pool)
            rows = self._rows.read(pool.lengths, pool.rows, pool.data)
            try:
                runs = [session.run(self._rows.feeds(rows, p)) for p in row_picks(visit, len(rows))]
            except RunError as error:
                self._refused(visit.dims, error)
                continue
            for index, outputs in enumerate(runs):
                write_arrays(archive, run_key(len(kept), index), outputs)
            self._check_axes(visit, runs)
            kept.append(visit)
            echo(f"reference at {shown(visit.dims)}")
        self._visits = kept

    def _check_axes(self, visit: Visit, runs: Sequence[Mapping[str, Array]]) -> None:
        for name, axis in self._axes.items():
            if axis is not None and any(r[name].shape[axis : axis + 1] != (visit.batch,) for r in runs):
                self._axes[name] = None

    def _cut(self, visit: Visit, pool: PoolFacts) -> Visit:
        most = min(REFERENCE_RUN_OPERATIONS // max(1, pool.operations), POOL_VALUES // max(1, pool.values))
        why = "in the fp32 reference rows depend on each other, and its runs are limited"
        cut, notes = cut_batch(visit, self._batch, most, why)
        self._notes += notes
        return cut

    def _refused(self, dims: Mapping[str, int], error: RunError) -> None:
        why = textwrap.shorten(error.message, 160, placeholder=" …")
        self._notes.append(f"{shown(dims)}: not compared, the fp32 reference does not run there: {why}")


class _CountedSession:
    """Runs a model as it is written, and counts the operations of its runs. A failed run may or may not be in the
    profile, so the next one gets its own session."""

    def __init__(self, model: Path, folder: Path) -> None:
        self._model, self._folder = model, folder
        self._counts: dict[Lengths, int] = {}
        self._pending: list[Lengths] = []
        self._open()

    @property
    def lengths(self) -> list[Lengths]:
        """The lengths that ran."""
        return [*self._counts, *self._pending]

    def run(self, lengths: Lengths, feeds: Arrays) -> Arrays:
        try:
            outputs = self.session.run(feeds)
        except RunError:
            self.operations()
            self.session.close()
            self._open()
            raise
        self._pending.append(lengths)
        return outputs

    def operations(self) -> dict[Lengths, int]:
        """Return operations by lengths. Later runs of the session are not counted."""
        profile = self.session.end_profile()
        self._counts |= dict(zip(self._pending, profiled_operations(profile), strict=False))
        self._pending = []
        return self._counts

    def _open(self) -> None:
        self.session = backend.load_as_written(self._model, profile=self._folder / "profile")


def stacked(runs: Sequence[Arrays], axes: Mapping[str, int | None]) -> Arrays:
    """Stack rows that ran alone into one array [rows, …] per output, along its batch axis; dtypes stay.

    Omits outputs whose rows differ in shape, or have more than one row. axes: the batch axis by output, None for none.
    """
    arrays = {}
    for name, axis in axes.items():
        shapes = {r[name].shape for r in runs}
        if axis is not None and len(shapes) == 1 and next(iter(shapes))[axis : axis + 1] == (1,):
            arrays[name] = np.concatenate([r[name] for r in runs], axis=axis)
    return arrays


def pool_key(pool: int) -> str:
    """Return the name of the outputs of a pool's rows, in mode "rows"."""
    return f"pool{pool}"


def run_key(visit: int, run: int) -> str:
    """Return the name of the outputs of a visit's feed, in mode "runs"."""
    return f"visit{visit}/{run}"


def write_arrays(archive: zipfile.ZipFile, folder: str, arrays: Mapping[str, Array]) -> None:
    """Add arrays of any shape and dtype (no objects) to an open .npz, as FOLDER/NAME.npy, C-contiguous."""
    for name, value in arrays.items():
        with archive.open(f"{folder}/{name}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, np.asarray(value, order="C"), allow_pickle=False)
