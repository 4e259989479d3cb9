"""What is compared at the shapes of every profile, as the reference step wrote it, and the outputs expected of an
engine.

These are the outputs of its own lowered model or, where ONNX Runtime cannot run that, of the fp32 model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engineworks.host.lazy import Array
from engineworks.measure.served import PoolFacts, Stop
from engineworks.measure.served_report import LoweredFacts, Movement
from engineworks.recipe.npz import NpzReader
from engineworks.steps.served_rows import Arrays, ServedRows
from engineworks.steps.shapes_reference import SHAPES_FILE, SHAPES_OUTPUTS_FILE, pool_key, run_key


@dataclass(frozen=True)
class Piece:
    """Outputs that are stored together: of a pool's rows, each run alone (mode "rows"), or of one run of a visit.
    picks: the pool's rows of each run."""

    key: str
    pool: int
    picks: tuple[tuple[int, ...], ...]


class ShapesPlan:
    """SHAPES_FILE of a reference."""

    def __init__(self, folder: Path) -> None:
        report: dict[str, Any] = json.loads((folder / SHAPES_FILE).read_text(encoding="utf-8"))
        self._report = report
        self.axes: dict[str, int | None] = report["axes"]
        self.scale: dict[str, float] = report["scale"]
        self.by_rows: bool = report["mode"] == "rows"
        self.mixing: dict[str, float] = report["mixing"]
        self.pools = [PoolFacts.from_json(p) for p in report["pools"]]

    def stops(self, *, device: bool) -> tuple[list[Stop], list[str]]:
        """Return the sequence for an engine on a device or on a CPU, and what of it is not tried."""
        listed = self._report["device" if device else "cpu"]
        return [Stop.from_json(s) for s in listed["stops"]], list(listed["notes"])

    def rows(self, rows: ServedRows, pool: int) -> list[Arrays]:
        facts = self.pools[pool]
        return rows.read(facts.lengths, facts.rows, facts.data)

    def pieces(self) -> Iterator[Piece]:
        """Yield everything stored, in order."""
        if self.by_rows:
            for index, pool in enumerate(self.pools):
                yield Piece(pool_key(index), index, tuple((i,) for i in range(len(pool.rows))))
            return
        for stop in self.stops(device=True)[0]:
            for run, picks in enumerate(stop.picks):
                yield Piece(run_key(stop.number, run), stop.pool, (picks,))


class StoredOutputs:
    """The outputs that a step stored piece by piece."""

    def __init__(self, plan: ShapesPlan, folder: Path) -> None:
        self._plan = plan
        self._arrays = NpzReader(folder / SHAPES_OUTPUTS_FILE)
        self._held: tuple[str, Arrays] = ("", {})

    def piece(self, key: str) -> Arrays:
        """Return the stored outputs of one pool or run, by name, with the model's dtypes; the last piece is cached."""
        if self._held[0] != key:
            self._held = (key, {name: self._arrays.read(f"{key}/{name}") for name in self._plan.axes})
        return self._held[1]

    def of_run(self, stop: Stop, turn: int) -> Arrays:
        """Return the expected outputs of a visit's run: by name, with one row per pick along the batch axis."""
        if not self._plan.by_rows:
            return self.piece(run_key(stop.number, turn))
        piece = self.piece(pool_key(stop.pool))
        return {n: np.take(v, stop.picks[turn], axis=_known(self._plan.axes[n])) for n, v in piece.items()}

    def close(self) -> None:
        self._arrays.close()


class ServedReference:
    """The outputs expected of an engine. lowered: the folder of the lowered model's own outputs."""

    def __init__(self, reference: Path, lowered: Path) -> None:
        self.plan = ShapesPlan(reference)
        self.facts = LoweredFacts.read(lowered)
        self._fp32 = StoredOutputs(self.plan, reference)
        self._lowered = StoredOutputs(self.plan, lowered) if self.facts.stored else None

    def outputs(self, stop: Stop, turn: int, got: Mapping[str, Array]) -> tuple[Arrays, Mapping[str, Array]]:
        """Return a run's expected and actual outputs, by name.

        Where the lowered model overflows and fp32 does not, any engine output is accepted: kernels that hold a sum in a
        wider type do not overflow there.
        """
        fp32 = self._fp32.of_run(stop, turn)
        if self._lowered is None:
            return fp32, got
        wanted, compared = self._lowered.of_run(stop, turn), dict(got)
        for name, value in wanted.items():
            if name in got and got[name].shape == value.shape == fp32[name].shape and value.dtype.kind == "f":
                overflown = ~np.isfinite(value) & np.isfinite(fp32[name])
                if overflown.any():
                    compared[name] = np.where(overflown, value, got[name]).astype(got[name].dtype)
        return wanted, compared

    def moved(self, pool: int) -> Mapping[str, Movement]:
        """Return, per output, how far one rounding moves it there: see `lowered_reference`."""
        return self.facts.moved[pool] if self.facts.moved else {}

    def close(self) -> None:
        self._fp32.close()
        if self._lowered is not None:
            self._lowered.close()


def _known(axis: int | None) -> int:
    assert axis is not None  # in mode "rows" every output has one
    return axis
