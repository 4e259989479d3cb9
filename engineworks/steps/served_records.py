"""The records kept of a session's rows: the worst errors relative to the reference and to the same rows elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from engineworks.host.lazy import Array
from engineworks.measure.served import EXACT_DTYPES, RowErrors, Visit, row_errors
from engineworks.measure.served_report import Occurrence, RowFacts, RowRecord

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
