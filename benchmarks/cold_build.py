"""What Engineworks adds to the tools it drives: a cold build of recipes/digits.yaml against the bare tools.

    python benchmarks/cold_build.py [--runs 5]

Every contender runs in a process of its own, in turn, with empty artifacts: the whole command `engineworks build`, the
bare tools (bare_digits.py), and what Prefect and MLflow cost for nothing in the same set-up (an empty flow on a local
API of its own, an empty parent run in a new database). The figure is

    (build - empty flow - empty MLflow run) / bare tools,   medians of wall seconds
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent

EMPTY_FLOW = """
import sys
from pathlib import Path
from flows.local_prefect import prefect_api
with prefect_api(Path(sys.argv[1]) / "prefect") as prefect:
    prefect.wait_ready()
    from prefect import flow
    @flow
    def empty(): pass
    empty()
"""

EMPTY_RUN = """
import sys
from pathlib import Path
from engineworks.tracking.runs import open_tracking
with open_tracking(Path(sys.argv[1]), None).start_build("empty", "0", {}, {}):
    pass
"""


def timed(command: list[str | Path], artifacts: Path) -> float:
    environment = os.environ | {"ENGINEWORKS_ARTIFACTS": str(artifacts)}
    start = time.perf_counter()
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if result.returncode:
        sys.exit(f"{command[1]} failed:\n{result.stdout}{result.stderr}")
    return seconds


def cold(make: Callable[[Path], list[str | Path]]) -> float:
    with tempfile.TemporaryDirectory(prefix="engineworks-bench-") as folder:
        return timed(make(Path(folder)), Path(folder))


CONTENDERS: dict[str, Callable[[Path], list[str | Path]]] = {
    "build": lambda _: [BIN / "engineworks", "build", "recipes/digits.yaml", "--json"],
    "bare tools": lambda out: [sys.executable, "benchmarks/bare_digits.py", out],
    "empty flow": lambda out: [sys.executable, "-c", EMPTY_FLOW, out],
    "empty MLflow run": lambda out: [sys.executable, "-c", EMPTY_RUN, out],
}


def second_build() -> dict[str, float | int]:
    """A build with nothing to do: its wall seconds and the steps that it ran."""
    with tempfile.TemporaryDirectory(prefix="engineworks-bench-") as folder:
        timed(CONTENDERS["build"](Path(folder)), Path(folder))
        seconds = timed(CONTENDERS["build"](Path(folder)), Path(folder))
        out = subprocess.run(
            CONTENDERS["build"](Path(folder)), env=os.environ | {"ENGINEWORKS_ARTIFACTS": folder}, cwd=ROOT,
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        return {"seconds": seconds, "steps_run": json.loads(out)["steps"]["run"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/cold-build-cpu.json")
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for run in range(arguments.runs + 1):
        for name, make in CONTENDERS.items():
            taken = cold(make)
            if run:  # the first round fills the disk cache
                seconds[name].append(taken)
            print(f"{'warm-up' if not run else f'run {run}'}: {name}: {taken:.2f} s", flush=True)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ours = median["build"] - median["empty flow"] - median["empty MLflow run"]
    result = {
        "ratio": ours / median["bare tools"], "median_s": median, "seconds": seconds, "second_build": second_build(),
        "host": {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
    }  # fmt: skip
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"ratio": result["ratio"], "median_s": median, "second_build": result["second_build"]}, indent=1))


if __name__ == "__main__":
    main()
