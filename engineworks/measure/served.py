"""The shapes that a session runs, and the error of each row. Pure.

A *row* is one sample of a batch. Rows come from a small pool, so that the same sample runs alone, in batches and at
several positions. POOL_ROWS is prime, so that no shift by a power of two puts a row where its twin was. *Lengths* are
the dynamic dimensions without the batch.

The sequence visits every profile: min, opt, max, an odd size, the largest batch of the shortest rows, and the lengths
of the evaluation data. Then it goes back through the profiles in reverse order: max, min, opt and odd again.

Only counts limit the cost, never a clock, so that the same model and data give the same rows, visits and runs on every
host. The counts are values (elements of inputs and outputs) and *operations*, each about one multiply-add of a
convolution (`steps.operations` counts them). Times next to the limits are for two cores.

The error of a row (r: reference, e: engine) is ‖e − r‖ / max(‖r‖, scale · √n). It is relative to at least the usual
size of this output (scale: its root mean square over the evaluation data; n: the row's elements). So rounding does not
fail a row of almost zeros. A cosine of c between equally long rows is an error of √(2(1 − c)). For int32, int64 and
bool outputs (class ids, counts, flags) the error is the share of elements that differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from engineworks.host.lazy import Array, NDArray, np
from engineworks.tensors import dims_text
from engineworks.typed_json import Record

Triple = Sequence[int]
Lengths = tuple[tuple[str, int], ...]
Origin = Literal["evaluation", "seeded"]
"""Where rows come from: the evaluation data, or a seed."""

POOL_ROWS = 13

WARM_RUNS = 14
"""Runs of a visit: the first, and the later ones, which alternate between different rows."""

POOL_VALUES, RUN_VALUES = 2**23, 2**24
"""Limits on values of inputs and outputs: of all rows of a pool, and of one run."""

ROW_OPERATIONS, POOL_OPERATIONS = 2**40, 2**35
"""Lengths whose rows exceed the first limit are left out (20 s). The second limits a pool, to 2 rows at least (1 s)."""

REFERENCE_RUN_OPERATIONS = 2**36
"""Limit of one run of the reference where rows depend on each other (2 s)."""

RUN_OPERATIONS, VISIT_OPERATIONS, CPU_OPERATIONS = 2**34, 2**34, 2**40
"""Limits of an engine on this CPU: of one run, of one visit's runs, of all runs (20 s). A device has no such limits."""

COMPARISON = 256
"""Operations to compare one value."""

EXACT_DTYPES = ("int64", "int32", "uint64", "uint32", "int16", "uint16", "bool")
"""Dtypes of names or counts, which must be equal. (int8 and uint8 are pictures and quantized values.)"""


@dataclass(frozen=True)
class Visit(Record):
    """One stop of the sequence.

    dims: every dynamic dimension, including the batch. batch: rows of a run. tour: 1 out, 2 back. role: the shape's
    role in its profile. first_row: the pool's row in first position. alone: whether all rows of the pool run, as few at
    a time as the profile allows.
    """

    profile: str
    role: str
    dims: Mapping[str, int]
    batch: int
    lengths: Lengths
    tour: int
    first_row: int
    alone: bool = False


def visit_sequence(
    profiles: Mapping[str, Mapping[str, Triple]],
    batch: str | None,
    data: Sequence[Mapping[str, int]],
    fixed_batch: int = 1,
) -> list[Visit]:
    """The stops. profiles: name → dimension → (min, opt, max). batch: name of the batch dimension, None if it is fixed
    (to `fixed_batch`). data: every combination of lengths of the evaluation data."""
    visits: list[Visit] = []
    for tour, names in ((1, list(profiles)), (2, list(profiles)[::-1])):
        for name in names:
            triples = {d: _from_one(t) if d == batch else tuple(t) for d, t in profiles[name].items()}
            roles = _way_out(triples, batch, data) if tour == 1 else _way_back(triples)
            for role, dims in _distinct(roles):
                smallest = triples[batch][0] if batch else fixed_batch
                lengths = tuple((d, n) for d, n in dims.items() if d != batch)
                rows = dims[batch] if batch else fixed_batch
                if rows > smallest and tour == 1 and not any(v.lengths == lengths and v.alone for v in visits):
                    few = {**dims, str(batch): smallest}
                    visits.append(Visit(name, role, few, smallest, lengths, tour, 0, alone=True))
                visits.append(Visit(name, role, dims, rows, lengths, tour, 3 * len(visits), alone=rows == smallest))
    return visits


def without_spare_odds(visits: Sequence[Visit]) -> list[Visit]:
    """The visits without odd multiples, which only replace odd sizes that the model does not take."""
    odd = {v.profile for v in visits if v.role == "odd"}
    return [v for v in visits if not (v.role == "odd multiple" and v.profile in odd)]


def row_picks(visit: Visit, pool: int) -> list[list[int]]:
    """Rows of the pool for each run of the visit: at least two different feeds if there are two rows."""
    size = visit.batch
    starts = list(range(0, pool, size)) if visit.alone else [visit.first_row]
    if len(starts) == 1:
        starts.append(starts[0] + (5 if pool > 5 else 1))
    picks = [[(start + i) % pool for i in range(size)] for start in starts]
    return [p for i, p in enumerate(picks) if p not in picks[:i]]


@dataclass(frozen=True)
class PoolFacts(Record):
    """Rows of one length. rows: indices in the data file, or numbers of synthetic rows. values, operations: of one
    row."""

    lengths: Lengths
    rows: tuple[int, ...]
    data: Origin
    values: int
    operations: int


@dataclass(frozen=True)
class Stop(Record):
    """A visit as an engine makes it. number: its position in the whole sequence. pool: index of its rows. picks: the
    pool's rows of each feed. runs: number of runs, which alternate between the feeds."""

    number: int
    visit: Visit
    pool: int
    picks: tuple[tuple[int, ...], ...]
    runs: int


def rows_of_a_pool(values: int, operations: int) -> int:
    """Number of rows for a pool, given the values and operations of one row."""
    return max(2, min(POOL_ROWS, POOL_VALUES // max(1, values), POOL_OPERATIONS // max(1, operations)))


def cut_batch(visit: Visit, batch: str | None, most: int, why: str) -> tuple[Visit, list[str]]:
    """The visit with at most `most` rows, and a note. The profile's smallest batch is never cut."""
    if batch is None or visit.batch <= most or visit.alone:
        return visit, []
    dims = {**visit.dims, batch: max(1, most)}
    note = f"{shown(visit.dims)} (profile {visit.profile}): compared at {batch} {dims[batch]}: {why}"
    return replace(visit, dims=dims, batch=dims[batch]), [note]


def stops(
    visits: Sequence[Visit], pools: Sequence[PoolFacts], batch: str | None, *, device: bool
) -> tuple[list[Stop], list[str]]:
    """The sequence for an engine on a device, or on this host's CPU; and notes on the parts left out."""
    index = {p.lengths: i for i, p in enumerate(pools)}
    sequence: list[Stop] = []
    notes: list[str] = []
    spent = 0
    for number, given in enumerate(visits):
        pool = pools[index[given.lengths]]
        why = f"inputs and outputs of more than {RUN_VALUES:,} values are not tried"
        visit, cut = cut_batch(given, batch, RUN_VALUES // max(1, pool.values), why)
        if not device:
            why = f"a sample takes {pool.operations:.1e} operations, and a run on a CPU may take {RUN_OPERATIONS:.1e}"
            fewer, again = cut_batch(visit, batch, RUN_OPERATIONS // max(1, pool.operations), why)
            visit, cut = fewer, again or cut
        picks = tuple(map(tuple, row_picks(visit, len(pool.rows))))
        cost = visit.batch * (pool.operations + COMPARISON * pool.values)
        least = len(picks) + 1
        runs = max(least, WARM_RUNS if device else min(WARM_RUNS, VISIT_OPERATIONS // max(1, cost)))
        spent += runs * cost
        if sequence and not device and spent > CPU_OPERATIONS:
            left = len(visits) - number
            notes.append(f"the last {left} visits were left out: {CPU_OPERATIONS:.1e} operations were spent")
            break
        notes += cut
        sequence.append(Stop(number, visit, index[given.lengths], picks, runs))
    return sequence, list(dict.fromkeys(notes))


def shown(dims: Mapping[str, int]) -> str:
    """A shape in words: 'batch 8, sequence 128'."""
    return dims_text(dims) or "the fixed shape"


def _from_one(triple: Triple) -> tuple[int, ...]:
    """Sizes of at least 1: an empty batch tests nothing."""
    return tuple(max(1, n) for n in triple)


def _way_out(
    triples: Mapping[str, Triple], batch: str | None, data: Sequence[Mapping[str, int]]
) -> Iterator[tuple[str, dict[str, int]]]:
    low, opt, high = ({d: t[i] for d, t in triples.items()} for i in range(3))
    yield "min", low
    yield "opt", opt
    yield "max", high
    yield "odd", {d: odd_size(t) for d, t in triples.items()}
    yield "odd multiple", {d: odd_size(t) if d == batch else odd_multiple(t) for d, t in triples.items()}
    if batch in triples and len(triples) > 1:
        yield "max batch of min", {**low, str(batch): high[str(batch)]}
    for lengths in data:
        known = {d: n for d, n in lengths.items() if d in triples}
        if all(low[d] <= n <= high[d] for d, n in known.items()):
            yield "data", {**opt, **known}


def _way_back(triples: Mapping[str, Triple]) -> Iterator[tuple[str, dict[str, int]]]:
    yield "max", {d: t[2] for d, t in triples.items()}
    yield "min", {d: t[0] for d, t in triples.items()}
    yield "opt", {d: t[1] for d, t in triples.items()}
    yield "odd", {d: odd_size(t) for d, t in triples.items()}


def _distinct(roles: Iterator[tuple[str, dict[str, int]]]) -> Iterator[tuple[str, dict[str, int]]]:
    distinct: list[dict[str, int]] = []
    for role, dims in roles:
        if dims not in distinct:
            distinct.append(dims)
            yield role, dims


def odd_size(triple: Triple) -> int:
    """An odd length strictly between min and max that is not opt, between opt and max if possible; else opt."""
    low, opt, high = triple
    wanted = ((opt + high) // 2 | 1, (low + opt) // 2 | 1, (low + 1) | 1, (high - 1) | 1)
    return next((n for n in wanted if low < n < high and n != opt), opt)


def odd_multiple(triple: Triple) -> int:
    """An odd multiple of the step that min, opt and max share, for models that take no others; else opt."""
    low, opt, high = triple
    step = math.gcd(low, opt, high) or 1
    wanted = ((odd_size(triple) // step | 1) * step, (odd_size(triple) // step - 1 | 1) * step)
    return next((n for n in wanted if low < n < high and n != opt), opt)


@dataclass(frozen=True)
class RowErrors:
    """Per row, [rows]: relative error, cosine, and the number of elements that are NaN or infinite on one side only."""

    error: NDArray[np.float64]
    cosine: NDArray[np.float64]
    nonfinite: NDArray[np.int64]

    def worst(self) -> int | None:
        """Index of the row with the largest error; None without rows."""
        if not len(self.error):
            return None
        return int(np.argmax(np.where(self.nonfinite > 0, np.inf, self.error)))


def row_errors(engine: Array, reference: Array, axis: int | None, scale: float) -> RowErrors:
    """The error of each row along `axis`; None: all is one row.

    engine, reference: any numeric dtype, equal shapes. Raises ValueError if the shapes differ.
    """
    if engine.shape != reference.shape:
        raise ValueError(f"the output has shape {list(engine.shape)}, the reference {list(reference.shape)}")
    if reference.dtype.name in EXACT_DTYPES:
        differs = _as_rows(np.asarray(engine != reference), axis)
        share = differs.sum(axis=1) / max(1, differs.shape[1])
        return RowErrors(share, 1 - share, np.zeros(len(differs), np.int64))
    e, r = _as_rows(engine, axis).astype(np.float64), _as_rows(reference, axis).astype(np.float64)
    n = e.shape[1]
    good = np.isfinite(e) & np.isfinite(r)
    nonfinite = (~good & ~((e == r) | (np.isnan(e) & np.isnan(r)))).sum(axis=1)
    e, r = np.where(good, e, 0.0), np.where(good, r, 0.0)
    norm_e, norm_r = np.linalg.norm(e, axis=1), np.linalg.norm(r, axis=1)
    off, base = np.linalg.norm(e - r, axis=1), np.maximum(norm_r, scale * math.sqrt(n))
    error = np.where(base > 0, off / np.where(base > 0, base, 1), np.where(off > 0, 1.0, 0.0))
    product = norm_e * norm_r
    cosine = np.where(product > 0, (e * r).sum(axis=1) / np.where(product > 0, product, 1), norm_e == norm_r)
    return RowErrors(error, np.clip(cosine, -1, 1), nonfinite)


def _as_rows(array: Array, axis: int | None) -> Array:
    """[..., rows at `axis`, ...] → [rows, values], same dtype; axis None: [1, values]."""
    if axis is None:
        return array.reshape(1, -1)
    moved = np.moveaxis(array, axis, 0)
    return moved.reshape(moved.shape[0], math.prod(moved.shape[1:]))
