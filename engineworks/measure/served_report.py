"""What the served comparison found, as a part of the accuracy report: every visit with its worst rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from engineworks.measure.served import Origin, Visit
from engineworks.typed_json import Cosine, Count, Document, Report, Size

Phase = Literal["first", "later"]

PHASES: tuple[Phase, ...] = ("first", "later")
"""A visit's first run, and all others."""


@dataclass(frozen=True)
class Occurrence(Document):
    """Where a row was seen first: the run's dimensions, the row's place in it, rows of the run, and its number."""

    dims: Mapping[str, int]
    row: Count
    batch: Count
    run: Count


@dataclass(frozen=True)
class RowRecord(Document):
    """The row with the largest error of a run.

    row: its place in the run; sample: its number in the pool. most: the largest error until the next record.
    wrong_samples: of an exact output, samples with another answer so far; None for other outputs. against: the first
    occurrence of the same row, for records of `moved`.
    """

    error: Size
    row: Count
    sample: Count
    cosine: Cosine
    nonfinite: Count
    run: Count
    most: Size
    wrong_samples: tuple[int, ...] | None = None
    against: Occurrence | None = None


@dataclass(frozen=True)
class OtherShape(Document):
    """An output of another shape than the reference's: the first such run, and why."""

    run: Count
    why: str


@dataclass(frozen=True)
class OutputRecords(Document):
    """One output at one visit. Each record is twice as bad as the one before. moved: against the row itself."""

    first: tuple[RowRecord, ...] = ()
    later: tuple[RowRecord, ...] = ()
    moved: tuple[RowRecord, ...] = ()
    misshapen: OtherShape | None = None

    def phase(self, phase: Phase) -> tuple[RowRecord, ...]:
        return self.first if phase == "first" else self.later

    @property
    def records(self) -> tuple[RowRecord, ...]:
        """All records against the reference."""
        return (*self.first, *self.later)


@dataclass(frozen=True)
class Movement(Document):
    """How far one extra rounding moves an output of the lowered model: the largest error, the samples that change."""

    error: Size
    samples: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ServedVisit(Visit):
    """A visit as it was made. samples: rows of the pool. picks: the pool's rows of each feed. moved: by output. raised:
    why the engine did not run, '' if it did."""

    data: Origin
    samples: Count
    pool_rows: tuple[int, ...]
    picks: tuple[tuple[int, ...], ...]
    moved: Mapping[str, Movement]
    runs_before_warm_up: Count
    outputs: Mapping[str, OutputRecords]
    runs: Count
    raised: str = ""

    to_json = Document.to_json

    def of(self, output: str) -> OutputRecords:
        return self.outputs.get(output, OutputRecords())


@dataclass(frozen=True)
class RowFacts(Document):
    """Whether rows of an output could be told apart: tested, else why not. alone: whether each was first run alone.
    samples: rows that ran. places: comparisons of a row with itself."""

    tested: bool
    samples: Count
    alone: bool = False
    places: Count = 0
    why: str = ""


@dataclass(frozen=True)
class ServedAgainst(Document):
    """The reference. why: why the lowered model cannot be it, '' if it is. mode: whether rows or whole runs were
    stored. mixing: by output, how much rows of the fp32 model depend on each other."""

    of: Literal["fp32", "lowered"]
    why: str
    mode: Literal["rows", "runs"]
    mixing: Mapping[str, Size]


@dataclass(frozen=True)
class Loss(Document):
    """The row of synthetic data on which lowering costs most, of one output at one combination of lengths."""

    output: str
    lengths: Mapping[str, int]
    error: Size
    cosine: Cosine
    nonfinite: Count


@dataclass(frozen=True)
class LoweredFacts(Report):
    """The lowered model as a reference. stored: whether its outputs are in the artifact; they are not where it is the
    fp32 model itself. why: why it cannot be the reference, '' if it can. moved: by pool and output."""

    FILE = "lowered.json"

    stored: bool
    why: str
    moved: tuple[Mapping[str, Movement], ...]
    lost: tuple[Loss, ...]


@dataclass(frozen=True)
class Served(Document):
    """precision: that the engine computes in. failures: what is wrong whatever the limits. rows: by output. lost: what
    lowering costs. notes: what was not tried. session: the session's own notes."""

    precision: str
    sequence: tuple[ServedVisit, ...]
    failures: tuple[str, ...]
    rows: Mapping[str, RowFacts]
    reference: ServedAgainst
    lost: tuple[Loss, ...]
    notes: tuple[str, ...]
    session: tuple[str, ...]
    seconds: Size
    processor_seconds: Size

    @property
    def by_lowered(self) -> bool:
        """Whether the reference is the lowered model."""
        return self.reference.of == "lowered"

    def records(self, output: str) -> Iterator[RowRecord]:
        """All records of an output against the reference."""
        return (record for visit in self.sequence for record in visit.of(output).records)
