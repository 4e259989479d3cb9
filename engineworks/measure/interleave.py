"""Time champion and candidate interleaved, in rounds: the same conditions for both, in random order.

Each round loads both engines again, because one load's place in memory changes the time by some percent. It loads them
in random order, warms both up, and times short blocks of runs in the order ABBA or BAAB, chosen at random.

Before every change of engine this process waits until worker threads of the other engine stop spinning (about 15 ms for
ONNX Runtime). After a change some runs are not timed, because the caches hold the other engine's working set.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from engineworks.measure.champion_report import Attempt, Quad, Round
from engineworks.measure.regression import (
    CONFIDENCE,
    LOOKS,
    Comparison,
    compare_rounds,
    quad_log_ratio,
    round_log_ratio,
    trust,
)

Side = Literal["champion", "candidate"]
SIDES: tuple[Side, Side] = ("champion", "candidate")


MOST_RUNS = 100
"""Maximum runs in one block. More would not help: the load that a block belongs to limits its accuracy."""


class Loaded(Protocol):
    """A loaded engine with its feeds."""

    def time_runs(self, shape: str, runs: int) -> Sequence[float]:
        """Milliseconds of each of `runs` runs at the named shape; one run before them is not timed."""
        ...

    def close(self) -> None: ...


class Watch(Protocol):
    """A device watch: it samples the device and turns the readings into complaints."""

    def sample(self) -> Mapping[str, object]: ...

    def complaints(self, readings: Sequence[Mapping[str, object]]) -> Sequence[str]: ...


@dataclass(frozen=True)
class Pace:
    """Durations. max_s: limit for all rounds; None: the time of 20 rounds, but 20 s to 5 min. block_ms: length of a
    timed block. settle_ms: untimed after a change of engine. quads: ABBA sequences per round and shape."""

    max_s: float | None = None
    block_ms: float = 4.0
    settle_ms: float = 1.5
    quads: int = 3
    warmup_ms: float = 15.0

    def allowed_s(self, round_s: float) -> float:
        return self.max_s if self.max_s is not None else min(300.0, max(20.0, 20 * round_s))


def interleave(
    load: Mapping[Side, Callable[[], Loaded]],
    shapes: Sequence[str],
    limit: float,
    watch: Watch,
    *,
    seed: int,
    pace: Pace = Pace(),
    clock: Callable[[], float] = time.monotonic,
    rest: Callable[[], object] = lambda: None,
    confidence: float = CONFIDENCE,
) -> Attempt:
    """Run rounds until every shape is decided or the time is up.

    Only undisturbed rounds count. The first round never counts: it warms up files, caches and clocks. rest: returns
    when no thread of the engines is working. Raises what `load` and `time_runs` raise.
    """
    arena = _Arena(load, tuple(shapes), watch, random.Random(seed), pace, clock, rest)
    begin = clock()
    arena.round()
    allowed_s = pace.allowed_s(clock() - begin)
    rounds: list[Round] = []
    looked = 0
    while True:
        rounds.append(arena.round())
        clean = sum(1 for r in rounds if not r.disturbances)
        due = sum(1 for look in LOOKS if look <= clean)
        if due > looked:
            looked = due
            stand = _stand(rounds, shapes, limit, confidence).values()
            if due == len(LOOKS) or all(c.verdict != "inconclusive" for c in stand):
                break
        if clock() - begin >= allowed_s:
            break
    return Attempt(round(clock() - begin, 3), _stand(rounds, shapes, limit, confidence), tuple(rounds))


def _stand(rounds: Sequence[Round], shapes: Sequence[str], limit: float, confidence: float) -> dict[str, Comparison]:
    clean = [r for r in rounds if not r.disturbances]
    disturbances = [r.disturbances[0] for r in rounds if r.disturbances]
    return {
        s: trust(compare_rounds([r.log_ratios[s] for r in clean], limit, confidence), len(rounds), disturbances)
        for s in shapes
    }


class _Arena:
    """State shared by all rounds. The slower side sets the runs per block once, the same for both."""

    def __init__(
        self,
        load: Mapping[Side, Callable[[], Loaded]],
        shapes: tuple[str, ...],
        watch: Watch,
        lot: random.Random,
        pace: Pace,
        clock: Callable[[], float],
        rest: Callable[[], object],
    ) -> None:
        self._rest = rest
        self._load, self._shapes, self._watch, self._lot = load, shapes, watch, lot
        self._pace, self._clock = pace, clock
        self._usual_ms: dict[str, float] = {}
        self._orders: list[tuple[Side, ...]] = []

    def round(self) -> Round:
        order = self._next_order()
        loaded: dict[Side, Loaded] = {}
        try:
            for side in order:
                loaded[side] = self._load[side]()
            for shape in self._shapes:
                usual = max(self._warm_up(loaded[side], shape) for side in order)
                self._usual_ms.setdefault(shape, usual)
            before = self._watch.sample()
            blocks = {shape: self._quads(loaded, shape) for shape in self._lot.sample(self._shapes, len(self._shapes))}
            disturbances = tuple(self._watch.complaints([before, self._watch.sample()]))
        finally:
            for engine in loaded.values():
                engine.close()
        ratios = {shape: round_log_ratio(map(_log_ratio, quads)) for shape, quads in blocks.items()}
        return Round(order, disturbances, ratios, blocks)

    def _next_order(self) -> tuple[Side, ...]:
        """A random order, but each order once in every two rounds."""
        if not self._orders:
            self._orders = [SIDES, SIDES[::-1]]
            self._lot.shuffle(self._orders)
        return self._orders.pop()

    def _warm_up(self, engine: Loaded, shape: str) -> float:
        """Run until the time is up and the latest runs agree within 5%, at most ten times as long.

        Returns a typical time in ms.
        """
        begin = self._clock()
        while True:
            recent = engine.time_runs(shape, 4)
            spent_ms = 1000 * (self._clock() - begin)
            settled = abs(sum(recent[:2]) - sum(recent[2:])) <= 0.05 * sum(recent)
            if (spent_ms >= self._pace.warmup_ms and settled) or spent_ms >= 10 * self._pace.warmup_ms:
                return sorted(recent)[1]

    def _quads(self, loaded: Mapping[Side, Loaded], shape: str) -> tuple[Quad, ...]:
        usual = max(self._usual_ms[shape], 1e-6)
        runs = min(MOST_RUNS, max(1, round(self._pace.block_ms / usual)))
        settle = round(self._pace.settle_ms / usual)
        orders = (self._lot.choice(("ABBA", "BAAB")) for _ in range(self._pace.quads))
        return tuple(
            Quad(order, tuple(self._block(loaded[SIDES["AB".index(o)]], shape, settle, runs) for o in order))
            for order in orders
        )

    def _block(self, engine: Loaded, shape: str, settle: int, runs: int) -> tuple[float, ...]:
        self._rest()
        if settle:
            engine.time_runs(shape, settle)
        return tuple(round(ms, 6) for ms in engine.time_runs(shape, runs))


def _log_ratio(quad: Quad) -> float:
    sides = {letter: [b for o, b in zip(quad.order, quad.ms, strict=True) if o == letter] for letter in "AB"}
    return quad_log_ratio(sides["A"], sides["B"])
