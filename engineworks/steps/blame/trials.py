"""The feeds that a search for blame tries: where the last comparison went wrong, one sample alone, a whole batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from engineworks.host.lazy import Arrays
from engineworks.measure.served import shown
from engineworks.measure.served_checks import row_tolerance
from engineworks.measure.served_report import RowRecord, Served, ServedVisit
from engineworks.recipe.batch import batch_dim, fixed_batch
from engineworks.recipe.samples import SampleFile
from engineworks.steps.served_rows import ServedRows
from engineworks.tensors import TensorSpec

BEYOND_ALL = 1e30
"""How wrong a run is that has NaN, another shape, or no result."""


@dataclass(frozen=True)
class Trial:
    """what: the feeds in words. feeds: by input. other: makes feeds of another shape, {} where shapes are fixed."""

    what: str
    feeds: Arrays
    other: Callable[[], Arrays]


@dataclass(frozen=True)
class Trials:
    """samples: of the evaluation. shapes: of the `reference` step. served: the last comparison at the profiles' shapes,
    None without one. worst: the sample that was furthest off. sizes: batches of the evaluation."""

    samples: SampleFile
    shapes: Mapping[str, Any]
    served: Served | None
    worst: int
    sizes: Sequence[int]

    def __iter__(self) -> Iterator[Trial]:
        visit = None if self.served is None else worst_visit(self.served)
        if visit is not None:
            yield self._trial(f"at {shown(visit.dims)}", self._visited(visit))
        sizes = sorted({min(size, self.samples.count) for size in self.sizes})
        first = fixed_batch(self.samples.specs) or sizes[0]
        at = self.worst % max(1, self.samples.count) if first == 1 else 0
        yield self._trial(
            f"on sample {at + 1}" if first == 1 else f"on the first {first} samples",
            next(itertools.islice(self.samples.batches([first]), at, None)),
        )
        if sizes[-1] > first:
            yield self._trial(f"on the first {sizes[-1]} samples", next(self.samples.batches([sizes[-1]])))

    def _trial(self, what: str, feeds: Arrays) -> Trial:
        return Trial(what, feeds, partial(self._other, dims_of(self.samples.specs, feeds)))

    def _visited(self, visit: ServedVisit) -> Arrays:
        rows = ServedRows(self.samples, self.shapes["ranges"])
        pool = rows.read(visit.lengths, visit.pool_rows, visit.data)
        return rows.feeds(pool, visit.picks[(_worst_run(visit) - 1) % len(visit.picks)])

    def _other(self, dims: Mapping[str, int]) -> Arrays:
        """Feeds at another length of every dimension: the profile's best one, else its smallest or largest."""
        fitting = (p for p in self.shapes["profiles"].values() if all(p[d][0] <= n <= p[d][2] for d, n in dims.items()))
        profile = next(fitting, None)
        if profile is None:
            return {}
        lengths = {d: next((n for n in (t[1], t[0], t[2]) if n != dims[d]), dims[d]) for d, t in profile.items()}
        if lengths == dict(dims):
            return {}
        batch = batch_dim(self.samples.specs)
        rows, count = ServedRows(self.samples, self.shapes["ranges"]), lengths.get(str(batch), 1)
        key = tuple((d, n) for d, n in lengths.items() if d != batch)
        pool = rows.read(key, *rows.choose(key, count))
        return rows.feeds(pool, [i % len(pool) for i in range(count)])


def dims_of(specs: Sequence[TensorSpec], feeds: Arrays) -> dict[str, int]:
    """The length of every named dimension."""
    return {
        dim: int(length) for spec in specs for dim, length in zip(spec.shape, feeds[spec.name].shape, strict=True)
        if isinstance(dim, str)
    }  # fmt: skip


def worst_visit(served: Served) -> ServedVisit | None:
    """The shape at which the engine was furthest beyond what rounding allows; None if it was nowhere beyond."""
    wrongs = [(_wrong(served, visit), visit) for visit in served.sequence]
    wrong, visit = max(wrongs, key=lambda pair: pair[0], default=(0.0, None))
    return visit if wrong > 1 else None


def _wrong(served: Served, visit: ServedVisit) -> float:
    """The largest error of the visit in units of its tolerance."""
    if visit.raised or any(values.misshapen for values in visit.outputs.values()):
        return BEYOND_ALL
    return max(
        (
            BEYOND_ALL if record.nonfinite else record.error / row_tolerance(served, visit, name, None).reference
            for name, record in _records(visit)
        ),
        default=0.0,
    )


def _worst_run(visit: ServedVisit) -> int:
    """The number of the visit's worst run, from 1."""
    for values in visit.outputs.values():
        if values.misshapen:
            return values.misshapen.run
    records = (record for _, record in _records(visit))
    worst = max(records, key=lambda record: (record.nonfinite > 0, record.error), default=None)
    return 1 if worst is None else worst.run


def _records(visit: ServedVisit) -> Iterator[tuple[str, RowRecord]]:
    return ((name, record) for name, values in visit.outputs.items() for record in values.records)
