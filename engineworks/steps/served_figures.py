"""The records kept of a session's rows: the worst errors relative to the reference and to the same rows elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engineworks.measure.served import EXACT_DTYPES, RowErrors, Visit, row_errors

Array = NDArray[np.generic]

SAME_SHARE = 0.01
"""Share of a row's elements that may differ, in outputs of class ids, counts or flags, before it is another answer."""


class Places:
    """Where each row was seen first, and the engine's output for it there."""

    def __init__(self, axes: Mapping[str, int | None], scale: Mapping[str, float]) -> None:
        self._axes, self._scale = axes, scale
        self._seen: dict[tuple[str, int, int], tuple[Array, dict[str, Any]]] = {}
        self._compared = dict.fromkeys(self._axes, 0)
        self._tried: dict[str, set[tuple[int, int]]] = {name: set() for name in self._axes}
        self._most_rows = 1

    def tried(self, name: str, pool: int, picks: Sequence[int]) -> None:
        self._tried[name] |= {(pool, sample) for sample in picks}

    def observe(
        self, visit: Visit, pool: int, name: str, got: Array, picks: Sequence[int], run: int
    ) -> dict[str, Any] | None:
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
                at = {"dims": dict(visit.dims), "row": place, "batch": visit.batch, "run": run}
                self._seen[key] = (np.array(row), at)
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
        figures = row_figures(errors, [picks[p] for p in places], run, exact=exact)
        assert figures is not None  # there is a row
        sample = picks[places[figures["row"]]]
        return figures | {"row": places[figures["row"]], "against": self._seen[name, pool, sample][1]}

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = {}
        for name, axis in self._axes.items():
            first = [at for key, (_, at) in self._seen.items() if key[0] == name]
            if axis is None:
                report[name] = {"tested": False, "why": "it has no dimension that follows the batch"}
            elif self._most_rows == 1:
                report[name] = {"tested": False, "why": "every run takes one sample"}
            else:
                alone = bool(first) and all(at["batch"] == 1 for at in first)
                report[name] = {"tested": True, "alone": alone, "places": self._compared[name]}
            report[name]["samples"] = len(self._tried[name])
        return report


def row_figures(errors: RowErrors, picks: Sequence[int], run: int, *, exact: bool) -> dict[str, Any] | None:
    """Return the metrics of the row with the largest error; None where the output holds no row."""
    row = errors.worst()
    if row is None:
        return None
    figures: dict[str, Any] = {
        "error": float(errors.error[row]), "row": row, "sample": picks[row] if row < len(picks) else 0,
        "cosine": float(errors.cosine[row]), "nonfinite": int(errors.nonfinite[row]), "run": run,
    }  # fmt: skip
    if exact:
        figures["wrong_samples"] = sorted(
            {picks[i] for i in np.flatnonzero(errors.error > SAME_SHARE).tolist() if i < len(picks)}
        )
    return figures


def keep_worst(figures: dict[str, Any], phase: str, new: dict[str, Any] | None) -> None:
    """Keep a phase's list of records: each is twice as bad as the previous, which gives the first wrong run for any
    limit.

    `most`: the largest error until the next record. Wrong samples are gathered.
    """
    if new is None:
        return
    records: list[dict[str, Any]] = figures.setdefault(phase, [])
    last = records[-1] if records else None
    fresh = set(new.get("wrong_samples", ())) - set(last.get("wrong_samples", ()) if last else ())
    if last is None or (new["nonfinite"] and not last["nonfinite"]) or new["error"] > 2 * last["error"] or fresh:
        gathered = {"wrong_samples": sorted({*last["wrong_samples"], *fresh})} if last and fresh else {}
        records.append({**new, **gathered, "most": new["error"]})
    else:
        last["most"] = max(last["most"], new["error"])
