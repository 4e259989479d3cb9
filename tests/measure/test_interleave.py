"""Verdicts on synthetic engines whose noise is like a shared machine's: how often are they right?

Every run's time: lognormal, autocorrelated, with bursts; every load has an offset of its own that all of its runs share.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from engineworks.measure.champion_report import Attempt
from engineworks.measure.interleave import Pace, interleave
from engineworks.measure.regression import LOOKS, confirm


class Machine:
    """The clock, and the noise that all engines on it share: a slow walk and bursts of other work."""

    def __init__(self, seed: int, *, load_offset: float = 0.01, burst: float = 0.01) -> None:
        self.random = np.random.default_rng(seed)
        self.load_offset, self.burst = load_offset, burst
        self.now_s, self.walk = 0.0, 0.0
        self.open = 0

    def clock(self) -> float:
        return self.now_s


class Engine:
    def __init__(self, machine: Machine, ms: Mapping[str, float], speed: float) -> None:
        self._machine, self._ms = machine, ms
        self._factor = speed * math.exp(machine.random.normal(0, machine.load_offset))
        machine.open += 1
        machine.now_s += 0.002

    def time_runs(self, shape: str, runs: int) -> Sequence[float]:
        m = self._machine
        m.walk = 0.95 * m.walk + m.random.normal(0, 0.003)
        own = np.exp(m.random.normal(0, 0.03, runs))
        if m.random.random() < m.burst:
            own *= 1 + 0.5 * m.random.random()
        times = self._ms[shape] * self._factor * math.exp(m.walk) * own
        m.now_s += float(times.sum()) / 1000
        return [float(t) for t in times]

    def close(self) -> None:
        self._machine.open -= 1


class Quiet:
    def sample(self) -> Mapping[str, object]:
        return {}

    def complaints(self, readings: Sequence[Mapping[str, object]]) -> Sequence[str]:
        return []


class Noisy(Quiet):
    """Complains of every round but each `nth`."""

    def __init__(self, nth: int) -> None:
        self.nth, self.asked = nth, 0

    def complaints(self, readings: Sequence[Mapping[str, object]]) -> Sequence[str]:
        self.asked += 1
        return [] if self.nth and self.asked % self.nth == 0 else ["other work had the processor"]


def attempt(seed: int, slower: float, limit: float, watch: Quiet | None = None, max_s: float = 20.0) -> Attempt:
    machine = Machine(seed)
    ms = {"one": 0.5}
    sides = {"champion": lambda: Engine(machine, ms, 1.0), "candidate": lambda: Engine(machine, ms, 1.0 + slower)}
    found = interleave(sides, list(ms), limit, watch or Quiet(), seed=seed, pace=Pace(max_s=max_s), clock=machine.clock)  # type: ignore[arg-type]
    assert machine.open == 0
    return found


def verdicts(count: int, slower: float, limit: float) -> Counter[str]:
    """As a build gives them: a fail is measured again."""
    words: Counter[str] = Counter()
    for seed in range(count):
        first = attempt(seed, slower, limit).shapes["one"]
        second = attempt(10_000 + seed, slower, limit).shapes["one"] if first.verdict == "fail" else None
        words[confirm(first, second).verdict] += 1
    return words


def test_the_same_engine_never_loses_to_itself_and_mostly_passes() -> None:
    words = verdicts(100, 0.0, 0.02)
    assert words["fail"] == 0
    assert words["pass"] >= 95


def test_five_percent_at_a_limit_of_two_are_found() -> None:
    words = verdicts(60, 0.05, 0.02)
    assert words["fail"] >= 57
    assert words["pass"] == 0


def test_one_percent_at_a_limit_of_five_is_no_failure() -> None:
    words = verdicts(60, 0.01, 0.05)
    assert words["fail"] == 0
    assert words["pass"] >= 57


def test_just_at_the_limit_it_rather_says_nothing() -> None:
    words = verdicts(30, 0.02, 0.02)
    assert words["fail"] <= 1
    assert words["pass"] <= 1


def test_it_measures_no_longer_than_it_must() -> None:
    assert len(attempt(1, 0.5, 0.02).rounds) == LOOKS[0]


@pytest.mark.parametrize("slower", [0.0, 0.5])
def test_disturbed_rounds_make_it_inconclusive_whatever_they_say(slower: float) -> None:
    found = attempt(1, slower, 0.02, Noisy(nth=2), max_s=8.0).shapes["one"]
    assert found.verdict == "inconclusive"
    assert "rounds were disturbed (other work had the processor)" in found.why


def test_too_little_time_is_inconclusive() -> None:
    found = attempt(1, 0.5, 0.02, max_s=0.3)
    assert 0 < len(found.rounds) < LOOKS[0]
    assert found.shapes["one"].verdict == "inconclusive"
    assert "an interval needs 11" in found.shapes["one"].why


def test_both_sides_load_first_equally_often_and_the_lots_are_seeded() -> None:
    found = attempt(1, 0.0, 0.02)
    firsts = Counter(r.loaded[0] for r in found.rounds[1 : 1 + 2 * (len(found.rounds[1:]) // 2)])
    assert firsts["champion"] == firsts["candidate"]
    assert attempt(1, 0.0, 0.02).to_json() == found.to_json()


def test_every_sample_is_kept() -> None:
    found = attempt(1, 0.0, 0.02).to_json()
    quad = found["rounds"][0]["blocks"]["one"][0]
    assert quad["order"] in ("ABBA", "BAAB")
    assert [len(b) for b in quad["ms"]] == [8] * 4 or len({len(b) for b in quad["ms"]}) == 1


def test_each_shape_has_a_verdict_of_its_own() -> None:
    machine = Machine(3)
    sides = {
        "champion": lambda: Engine(machine, {"small": 0.2, "large": 2.0}, 1.0),
        "candidate": lambda: Engine(machine, {"small": 0.2, "large": 2.4}, 1.0),
    }
    found = interleave(sides, ["small", "large"], 0.05, Quiet(), seed=1, pace=Pace(max_s=30), clock=machine.clock)  # type: ignore[arg-type]
    assert {name: c.verdict for name, c in found.shapes.items()} == {"small": "pass", "large": "fail"}


def test_engines_are_closed_when_one_of_them_breaks() -> None:
    machine = Machine(3)

    class Broken(Engine):
        def time_runs(self, shape: str, runs: int) -> Sequence[float]:
            raise RuntimeError(random.choice(["broken"]))

    sides = {"champion": lambda: Engine(machine, {"one": 1.0}, 1.0), "candidate": lambda: Broken(machine, {}, 1.0)}
    with pytest.raises(RuntimeError, match="broken"):
        interleave(sides, ["one"], 0.05, Quiet(), seed=1, clock=machine.clock)  # type: ignore[arg-type]
    assert machine.open == 0
