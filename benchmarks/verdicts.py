"""How often is the verdict against the champion right? Real engines of ONNX Runtime on this processor, side by side.

    python benchmarks/verdicts.py [--fresh] [--minutes 20] [--only same]

Each verdict is made as a build makes it: rounds in a child process, and a second measurement in a fresh process before
anything is called slower. The candidate is the champion's own engine; where it is to be slower, a busy loop follows
each of its runs, as long as that share of the run just done.

    same              the same engine, limit 2 %         must not fail: ≤ 1 % of 300
    slower by 5 %     limit 2 %                          must fail: ≥ 95 %
    slower by 1 %     limit 5 %                          must never fail
    neighbour, …      the first two while other processes work at random on every core: never the wrong word

Every verdict is written down as it is made: stopped, the next call goes on. Some 20 minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engineworks.builds.step import alone_on_this_host
from engineworks.engines.backends import onnxruntime
from engineworks.engines.backends.base import BuildRequest, Serving, Session
from engineworks.engines.sidecar import Sidecar
from engineworks.host.child import ChildPool
from engineworks.host.cpu import describe
from engineworks.measure.interleave import Side
from engineworks.measure.regression import CONFIDENCE
from engineworks.recipe.samples import open_samples
from engineworks.steps.compare_champion import attempt, compare_engines
from engineworks.tensors import TensorSpec

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "recipes/models/digits_cnn.onnx"
DATA = ROOT / "recipes/data/digits_test.npz"
IMAGE = TensorSpec("image", "float32", ("batch", 1, 8, 8))


@dataclass(frozen=True)
class Scenario:
    """right: the word that it should be. wrong: words that it must not be, and how often they may."""

    name: str
    slower: float
    limit: float
    count: int
    right: str
    wrong: tuple[str, ...]
    neighbour: bool = False


SCENARIOS = (
    Scenario("same", 0.0, 0.02, 300, "pass", ("fail",)),
    Scenario("slower by 5 %", 0.05, 0.02, 80, "fail", ("pass",)),
    Scenario("slower by 1 %", 0.01, 0.05, 60, "pass", ("fail",)),
    Scenario("neighbour, same", 0.0, 0.02, 20, "inconclusive", ("fail",), neighbour=True),
    Scenario("neighbour, slower by 5 %", 0.05, 0.02, 20, "inconclusive", ("pass",), neighbour=True),
)


class SlowOrt:
    """An `onnxruntime.InferenceSession` whose runs are followed by a busy loop of their own length × `by`."""

    def __init__(self, session: Any, by: float) -> None:
        self._session, self._by = session, by

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any) -> None:
        clock = time.perf_counter_ns
        begin = clock()
        self._session.run_with_iobinding(binding)
        done = clock()
        end = done + self._by * (done - begin)
        while clock() < end:
            pass


def attempt_in_child(payload: Mapping[str, Any]) -> dict[str, Any]:
    """An attempt with the payload's slowdown. Called in a child process."""

    def wrap(side: Side, session: Session) -> Session:
        if side == "candidate" and payload["slower"]:
            session._session = SlowOrt(session._session, payload["slower"])  # type: ignore[attr-defined]
        return session

    return attempt(payload, wrap).to_json()


def build_in_child(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Build the engine. Called in a child process, for ONNX Runtime prints a lot."""
    out = Path(payload["out"])
    request = BuildRequest(MODEL, out, "fp32", ())
    sidecar = Sidecar.of(request, onnxruntime.build(request, lambda _: None), {}, MODEL)
    (out / sidecar.FILE).write_text(json.dumps(sidecar.to_json()), encoding="utf-8")
    return {}


def payload_of(folder: Path, scenario: Scenario, arguments: argparse.Namespace) -> dict[str, Any]:
    samples = open_samples(DATA, [IMAGE], {"image": "x"}, samples=None, labels=None)
    read = {"arrays": dict(samples.arrays), "count": samples.count, "total": samples.total, "specs": [IMAGE.to_json()]}
    options = {"threads": arguments.threads} if arguments.threads else {}
    params = {
        "at": {"bulk": {"dims": {"batch": arguments.batch}}}, "inputs": [IMAGE.to_json()], "samples": read,
        "target": {"backend": "onnxruntime", "compute_capability": [], "options": options},
        "limit": scenario.limit, "max_s": arguments.max_s / (2 if scenario.neighbour else 1),
        "serving": Serving().to_json(), "confidence": CONFIDENCE,
    }  # fmt: skip
    folders = {"champion": str(folder), "candidate": str(folder)}
    return {"folders": folders, "params": params, "evaluation": str(DATA), "slower": scenario.slower}


NEIGHBOUR = """
import random, sys, time
while True:
    end = time.perf_counter() + random.uniform(0.02, 0.3)
    while time.perf_counter() < end:
        pass
    time.sleep(random.uniform(0.01, 0.15))
"""


@contextlib.contextmanager
def neighbours(wanted: bool) -> Iterator[None]:
    """Processes that work on every core in bursts of 20 to 300 ms."""
    count = len(os.sched_getaffinity(0)) if wanted else 0
    running = [subprocess.Popen([sys.executable, "-c", NEIGHBOUR]) for _ in range(count)]
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()


def judge_once(pool: ChildPool, scenario: Scenario, payload: Mapping[str, Any], seed: int) -> dict[str, Any]:
    def in_child(fresh: bool, seed: int) -> dict[str, Any]:
        return pool.run("verdicts:attempt_in_child", {**payload, "seed": seed}, fresh=fresh)

    start = time.perf_counter()
    with neighbours(scenario.neighbour):
        report = compare_engines(partial(in_child, False), partial(in_child, True), seed, lambda _: None)
    found = report["shapes"]["bulk"]
    rounds = [r for a in report["attempts"] for r in a["rounds"]]
    return {
        "scenario": scenario.name, "seed": seed, **found, "measured": len(rounds), "attempts": len(report["attempts"]),
        "disturbed": sum(1 for r in rounds if r["disturbances"]), "seconds": round(time.perf_counter() - start, 3),
    }  # fmt: skip


def to_do(done: list[dict[str, Any]], only: str | None) -> list[tuple[Scenario, int]]:
    """What is missing, the scenarios well mixed, so that a part of it says something of each."""
    have = {(d["scenario"], d["seed"]) for d in done}
    chosen = [s for s in SCENARIOS if only is None or s.name == only]
    rest = [(s, seed) for s in chosen for seed in range(s.count) if (s.name, seed) not in have]
    return sorted(rest, key=lambda one: ((one[1] + 0.5) / one[0].count, one[0].name))


def summary(done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for scenario in SCENARIOS:
        mine = [d for d in done if d["scenario"] == scenario.name]
        if not mine:
            continue
        words = Counter(d["verdict"] for d in mine)
        conclusive = len(mine) - words["inconclusive"]
        wrong = sum(words[w] for w in scenario.wrong)
        rows.append({
            "scenario": scenario.name, "limit": scenario.limit, "runs": len(mine), "wanted": scenario.count,
            **{w: words[w] for w in ("pass", "fail", "inconclusive")},
            "wrong_share": wrong / len(mine), "right_share": words[scenario.right] / len(mine),
            "right_share_of_conclusive": words[scenario.right] / conclusive if conclusive else None,
            "ratio_median": float(np.median([d["ratio"] for d in mine if d["ratio"]] or [np.nan])),
            "seconds_median": float(np.median([d["seconds"] for d in mine])),
            "rounds_median": float(np.median([d["rounds"] for d in mine])),
            "disturbed_share": sum(d["disturbed"] for d in mine) / max(1, sum(d["measured"] for d in mine)),
        })  # fmt: skip
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'scenario':26} {'limit':>6} {'runs':>5} {'pass':>5} {'fail':>5} {'inconcl.':>8} {'wrong':>6} {'ratio':>7} "
          f"{'s':>5} {'rounds':>6} {'disturbed':>9}")  # fmt: skip
    for r in rows:
        print(f"{r['scenario']:26} {r['limit']:6.0%} {r['runs']:5} {r['pass']:5} {r['fail']:5} {r['inconclusive']:8} "
              f"{r['wrong_share']:6.1%} {r['ratio_median']:7.4f} {r['seconds_median']:5.1f} {r['rounds_median']:6.0f} "
              f"{r['disturbed_share']:9.0%}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="forget the verdicts made so far")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so many; the next call goes on")
    parser.add_argument("--only", choices=[s.name for s in SCENARIOS])
    parser.add_argument("--threads", type=int, default=1, help="of an engine; 0: the target's own, one per core")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--max-s", type=float, default=5.0, help="time that one measurement may take")
    parser.add_argument("--state", type=Path, default=ROOT / "artifacts/verdicts.jsonl")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/verdicts-cpu.json")
    arguments = parser.parse_args()
    if arguments.fresh:
        arguments.state.unlink(missing_ok=True)
    arguments.state.parent.mkdir(parents=True, exist_ok=True)
    lines = arguments.state.read_text(encoding="utf-8").splitlines() if arguments.state.exists() else []
    done = [json.loads(line) for line in lines]
    end = time.monotonic() + 60 * arguments.minutes
    with (
        tempfile.TemporaryDirectory(prefix="engineworks-bench-") as name,
        ChildPool() as pool,
        arguments.state.open("a", encoding="utf-8") as state,
    ):
        pool.run("verdicts:build_in_child", {"out": name})
        for scenario, seed in to_do(done, arguments.only):
            if time.monotonic() > end:
                break
            with alone_on_this_host():
                one = judge_once(pool, scenario, payload_of(Path(name), scenario, arguments), seed)
            done.append(one)
            state.write(json.dumps(one) + "\n")
            state.flush()
            print(f"{len(done):4} {scenario.name:26} {one['verdict']:12} {one['ratio'] or 0:.4f} {one['interval']} "
                  f"{one['rounds']} rounds, {one['seconds']} s {one.get('why', '')}")  # fmt: skip
    rows = summary(done)
    show(rows)
    facts = {"processor": describe(), "threads": arguments.threads, "batch": arguments.batch, "load": os.getloadavg()}
    arguments.out.write_text(json.dumps({**facts, "scenarios": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
