"""How samples are made of other data than arrays: what shapes them, and where it lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LABELS = "labels"
"""Name of the array of labels among the made ones."""

LENGTHS = "lengths"
"""Name of the array of the rows' own lengths, where these differ."""

REPORT_FILE = "prepared.json"
"""What became of the data: samples, classes, and `notes`, sentences for the user."""


@dataclass(frozen=True)
class Preparation:
    """What the step `prepare` makes samples of.

    params: all that shapes them but files' contents (part of the key). files: role → file whose digest is part of the
    key. tree: many files that are digested as one. places: role → path that the step reads. libraries: distributions
    whose versions shape the result.
    """

    params: Mapping[str, Any]
    files: Mapping[str, Path]
    places: Mapping[str, Path]
    libraries: tuple[str, ...]
    tree: Mapping[str, Path] = field(default_factory=dict)

    def read(self) -> Iterator[Path]:
        """Every file that is read."""
        yield from self.files.values()
        yield from self.tree.values()


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths along `dim`, kept padded; a batch is cut to its longest row.

    ranges: one per profile: smallest and largest batch, then length. A batch is padded to the least length that a
    profile allows for its size.
    """

    dim: str
    ranges: tuple[tuple[int, int, int, int], ...] = ()

    def width(self, batch: int, longest: int) -> int:
        """The length of a batch of so many rows whose longest is so long."""
        fitting = [
            max(low, longest) for least, most, low, high in self.ranges if least <= batch <= most and longest <= high
        ]
        return min(fitting, default=longest)

    def to_json(self) -> dict[str, object]:
        return {"dim": self.dim, "ranges": [list(r) for r in self.ranges]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Ragged:
        ranges = tuple((int(a), int(b), int(c), int(d)) for a, b, c, d in value["ranges"])
        return cls(value["dim"], ranges)


def longest_for_all(ranges: Sequence[tuple[int, int, int, int]], batches: Sequence[int]) -> int | None:
    """The greatest length that a row may have to fit into a batch of every one of these sizes; None without ranges."""
    limits = [
        max((high for least, most, _, high in ranges if least <= batch <= most), default=None) for batch in batches
    ]
    return min((limit for limit in limits if limit is not None), default=None)


def find_made(folder: Path) -> Path:
    """The .npz in the artifact of a `prepare` step; it is named after what it was made of."""
    return next(folder.glob("*.npz"))
