"""What nights cost: `python benchmarks/nightly.py [--only first|no-change|scaling|race|kills|workers] [--recipes N] …`.

first       first nights of --first 50,100,200 recipes, each in a new folder: our work per recipe, and its growth
no-change   a night of N recipes × 3 precisions × 4 targets in which nothing changed: our work, and its memory
scaling     the same with a tenth of the recipes: ten times the recipes, at most eleven times the work
race        1,000 processes that want one key: one build
kills       random kill -9 of builds: no artifact lost or damaged
workers     orders of engines, carried out by one process worker and by two, on two cores

Our work is processor time (user + system) of our processes; Prefect's server runs apart and is not counted, MLflow's
SQLite store is in our process and is. Each part prints what is wanted and what was found, and is kept in
results/nightly-cpu.json; exits 1 if something was missed. Make the models' repository once for several runs: --folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from kills import run_kills, run_race
from nightly_recipes import write_repository
from nightly_stack import ROOT, Stack

RESULT = ROOT / "benchmarks" / "results" / "nightly-cpu.json"
NIGHT = str(ROOT / "benchmarks" / "nightly_night.py")
PRECISIONS, TARGETS = ("fp32", "fp16", "int8"), ("cpu", "rtx30", "rtx40", "rtx50")
WORK_LIMIT_S, MEMORY_LIMIT_MIB, SCALING_LIMIT, WORKERS_LIMIT = 10.0, 400.0, 11.0, 1.6
RECIPE_LIMIT_S, GROWTH_LIMIT = 0.9, 1.2
FIRST_NIGHT_LIMIT_S, ENGINES_LIMIT_S = 7200.0, 1800.0
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@dataclass(frozen=True)
class Line:
    """One demand: what is wanted in words, what was found, and whether that is good."""

    what: str
    wanted: str
    found: str
    good: bool

    def to_json(self) -> dict[str, Any]:
        return {"what": self.what, "wanted": self.wanted, "found": self.found, "good": self.good}


Part = tuple[list[Line], dict[str, Any]]


@contextmanager
def quiet_stack(folder: Path) -> Iterator[Stack]:
    """A stack in a folder that stays, without a word."""
    with Stack(folder, echo=lambda _: None) as stack:
        yield stack


def made_repository(folder: Path, recipes: int, models: int) -> Path:
    """A repository after its first night and the deliveries of its workers; made at most once in a folder."""
    repository = folder / f"recipes-{recipes}-{models}"
    if (repository / "done").exists():
        return repository
    print(f"first night of {recipes} recipes × 12 engines …", flush=True)
    begin = time.monotonic()
    write_repository(repository, {f"r{i:03}": PRECISIONS for i in range(recipes)}, targets=TARGETS, models=models)
    with quiet_stack(repository) as stack:
        stack.start_prefect()
        print(stack.run("python", NIGHT, "build", limit_s=FIRST_NIGHT_LIMIT_S).splitlines()[-2], flush=True)
        print(stack.run("python", NIGHT, "deliver", limit_s=FIRST_NIGHT_LIMIT_S).splitlines()[-1], flush=True)
    print(f"took {time.monotonic() - begin:.0f} s", flush=True)
    (repository / "done").touch()
    return repository


def measured_nights(repository: Path, recipes: int, count: int) -> dict[str, Any]:
    """Medians of `count` nights without a change, each in a process of its own."""
    with quiet_stack(repository) as stack:
        stack.start_prefect()
        nights = [json.loads(stack.run("python", NIGHT, "measure").splitlines()[-1]) for _ in range(count)]
    unchanged = f"{recipes} recipes ({recipes} unchanged)"
    for night in nights:
        if not night["message"].startswith(unchanged):
            sys.exit(f"wanted '{unchanged}', the night says: {night['message'][:500]}")
    values = ("processor_s", "without_imports_s", "wall_s", "peak_mib")
    return {"recipes": recipes, "nights": count} | {
        name: round(statistics.median(night[name] for night in nights), 3) for name in values
    }


def part_no_change(given: argparse.Namespace) -> Part:
    night = measured_nights(made_repository(given.folder, given.recipes, given.models), given.recipes, given.nights)
    what = f"night of {given.recipes} recipes without a change"
    work, memory = night["processor_s"], night["peak_mib"]
    lines = [
        Line(f"{what}: our work", f"≤ {WORK_LIMIT_S:g} s", f"{work:.1f} s", work <= WORK_LIMIT_S),
        Line(f"{what}: memory", f"≤ {MEMORY_LIMIT_MIB:g} MiB", f"{memory:.0f} MiB", memory <= MEMORY_LIMIT_MIB),
    ]
    return lines, night


def part_scaling(given: argparse.Namespace) -> Part:
    few = max(given.recipes // 10, 1)
    small = measured_nights(made_repository(given.folder, few, given.models), few, given.nights)
    large = measured_nights(made_repository(given.folder, given.recipes, given.models), given.recipes, given.nights)
    lines = []
    for name, label in (("processor_s", "whole process"), ("without_imports_s", "without imports")):
        ratio = large[name] / small[name]
        what = f"work of {given.recipes} recipes over {few}, {label}"
        lines.append(Line(what, f"≤ {SCALING_LIMIT:g} ×", f"{ratio:.2f} ×", ratio <= SCALING_LIMIT))
    return lines, {"few": small, "many": large}


def part_first(given: argparse.Namespace) -> Part:
    """What each size adds to the one before is recipes whose models are built already: that is the work of a recipe."""
    sizes = sorted({int(size) for size in given.first.split(",")})
    nights = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="engineworks-first-", ignore_cleanup_errors=True) as name:
            nights.append(first_night(Path(name), size, given.models))
        print(f"{size} recipes: {nights[-1]['processor_s']:.1f} s of processor time", flush=True)
    pairs = list(pairwise(nights)) or [({"recipes": 0, "processor_s": 0.0}, nights[0])]
    added = [(b["processor_s"] - a["processor_s"]) / (b["recipes"] - a["recipes"]) for a, b in pairs]
    growth = added[-1] / added[0]
    lines = [
        Line(f"work of a recipe up to {sizes[-1]}", f"≤ {RECIPE_LIMIT_S:g} s", f"{added[-1]:.2f} s",
             added[-1] <= RECIPE_LIMIT_S),
        Line("the same beside the first sizes", f"≤ {GROWTH_LIMIT:g} ×", f"{growth:.2f} ×", growth <= GROWTH_LIMIT),
    ]  # fmt: skip
    return lines, {"nights": nights, "s_per_added_recipe": [round(seconds, 3) for seconds in added]}


def first_night(folder: Path, recipes: int, models: int) -> dict[str, Any]:
    """Our processor time for the first night of so many recipes × 12 engines, and that of Prefect's server."""
    write_repository(folder, {f"r{i:04}": PRECISIONS for i in range(recipes)}, targets=TARGETS, models=models)
    with quiet_stack(folder) as stack:
        stack.start_prefect()
        before = server_s(stack)
        begin = time.monotonic()
        found = json.loads(stack.run("python", NIGHT, "build", limit_s=FIRST_NIGHT_LIMIT_S).splitlines()[-1])
        wall_s, server = time.monotonic() - begin, server_s(stack) - before
    return {"recipes": recipes, **{k: round(v, 2) for k, v in found.items()},
            "server_s": round(server, 2), "wall_s": round(wall_s, 1)}  # fmt: skip


def server_s(stack: Stack) -> float:
    """User and system time of Prefect's server so far."""
    stat = Path(f"/proc/{stack.children['prefect-server'].pid}/stat").read_text(encoding="ascii", errors="replace")
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def part_race(given: argparse.Namespace) -> Part:
    found = run_race(given.processes)
    good = found["builds"] == 1 and found["got it whole"] == given.processes
    result = f"{found['builds']} build, {found['got it whole']} got it whole"
    return [Line(f"{given.processes} processes race for one key", "1 build", result, good)], found


def part_kills(given: argparse.Namespace) -> Part:
    """run_kills raises AssertionError for the first lost or damaged artifact."""
    what = f"{given.kills} random kill -9, seed {given.seed}: artifacts lost or damaged"
    try:
        found = run_kills(given.kills, given.seed, "recipes/digits.yaml", "digits/int8/cpu")
    except AssertionError as error:
        return [Line(what, "0", str(error), False)], {"seed": given.seed, "failed": str(error)}
    return [Line(what, "0", str(found["lost or damaged"]), found["lost or damaged"] == 0)], found


def part_workers(given: argparse.Namespace) -> Part:
    """Engines that one worker builds, then as many others that two build; recipes are prepared before."""
    count = given.orders
    with tempfile.TemporaryDirectory(prefix="engineworks-workers-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        names = [f"w{i:03}" for i in range(2 * count)]
        write_repository(folder, {n: ["fp32"] for n in names}, targets=("cpu", "rtx30"))
        with quiet_stack(folder) as stack:
            database = stack.start_database()
            stack.start_prefect()
            files = [f"recipes/{n}.yaml" for n in names]
            stack.run("engineworks", "build", *files, "--only", "*/cpu", "--quiet", limit_s=FIRST_NIGHT_LIMIT_S)
            stack.run("engineworks", "deploy")
            stack.run("prefect", "work-pool", "set-concurrency-limit", "rtx30", "2")
            one_s = timed_orders(stack, names[:count], workers=1)
            two_s = timed_orders(stack, names[count:], workers=2)
    ratio = one_s / two_s
    values = {"orders": count, "one_s": round(one_s, 1), "two_s": round(two_s, 1), "ratio": round(ratio, 2)}
    what = f"{count} engines by two process workers over one"
    line = Line(what, f"≥ {WORKERS_LIMIT:g} ×", f"{ratio:.2f} ×", ratio >= WORKERS_LIMIT)
    return [line], {**values, "database": database}


def timed_orders(stack: Stack, names: list[str], *, workers: int) -> float:
    """Seconds from the first run's start to the last run's end, with so many workers of one run at a time."""
    started = [f"{workers}-{number}" for number in range(workers)]
    for worker in started:
        stack.start_worker("rtx30", name=worker, limit=1, artifacts=stack.folder / "artifacts")
    online = {f"worker-{worker}" for worker in started}
    stack.wait_until(lambda: online <= set(stack.workers_online("rtx30")), f"{workers} workers")
    found = stack.call("deployments/name/build-engine/rtx30")
    ids = []
    for name in names:
        parameters = {"recipe": f"recipes/{name}.yaml", "engine": f"{name}/fp32/rtx30"}
        body = {"state": {"type": "SCHEDULED"}, "parameters": parameters}
        ids.append(stack.call(f"deployments/{found['id']}/create_flow_run", body)["id"])

    def runs() -> list[dict[str, Any]]:
        wanted = {"flow_runs": {"id": {"any_": ids}}}
        answer: list[dict[str, Any]] = stack.call("flow_runs/filter", wanted)
        return answer

    stack.wait_until(lambda: all(r["state_type"] in ENDED for r in runs()), "the engines", ENGINES_LIMIT_S)
    wrong = [r["state"] for r in runs() if r["state_type"] != "COMPLETED"]
    if wrong:
        sys.exit(f"{len(wrong)} runs did not complete: {wrong[0]}")
    for worker in started:
        stack.end(f"worker-{worker}")
    return max(map(_end, runs())) - min(map(_start, runs()))


def _start(run: dict[str, Any]) -> float:
    return _seconds(run["start_time"])


def _end(run: dict[str, Any]) -> float:
    return _seconds(run["end_time"])


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


PARTS: dict[str, Callable[[argparse.Namespace], Part]] = {
    "first": part_first,
    "no-change": part_no_change,
    "scaling": part_scaling,
    "race": part_race,
    "kills": part_kills,
    "workers": part_workers,
}


def keep(name: str, lines: list[Line], values: dict[str, Any], out: Path) -> None:
    """Put the part's figures beside those of earlier runs."""
    known = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    known[name] = {"figures": values, "demands": [line.to_json() for line in lines]}
    out.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--first", default="50,100,200", help="recipes of each first night; one number: one night")
    parser.add_argument("--recipes", type=int, default=100)
    parser.add_argument(
        "--models", type=int, default=10, help="that the recipes take in turns; engines of one are shared"
    )
    parser.add_argument("--nights", type=int, default=3, help="nights without a change, of which the median counts")
    parser.add_argument("--processes", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--orders", type=int, default=12, help="engines for one worker, and as many for two")
    parser.add_argument("--folder", type=Path, help="keeps the repositories of no-change and scaling")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    temporary = given.folder is None
    given.folder = (given.folder or Path(tempfile.mkdtemp(prefix="engineworks-night-"))).resolve()
    good = True
    try:
        for name in given.only or PARTS:
            lines, values = PARTS[name](given)
            keep(name, lines, {**values, "load_average": round(os.getloadavg()[0], 1)}, given.out)
            for line in lines:
                mark = "" if line.good else "   MISSED"
                print(f"{line.what}: wanted {line.wanted}, found {line.found}{mark}", flush=True)
                good &= line.good
    finally:
        if temporary:
            shutil.rmtree(given.folder, ignore_errors=True)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
