"""Cold starts on a busy host: builds with empty artifacts, beside processes that only compute.

    python benchmarks/cold_starts.py [--runs 30] [--busy 2] [--out results/cold-starts.json] [RECIPE]

Python 3.11's parser fails where the garbage collector interrupts it and another thread parses (python/cpython#106905):
about one of 50 first builds ended so before `engineworks.host.collector.collect_apart`. Prints one line a run and how
many failed; exit code 1 where any did. A run takes half a minute on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from engineworks.host import cpu

ROOT = Path(__file__).parents[1]
COMMAND = "import sys; from engineworks.cli import main; sys.exit(main())"


def build(recipe: str) -> tuple[bool, float, str]:
    """One build in an empty folder: whether it ended with a verdict, its seconds, its last line where it did not."""
    with tempfile.TemporaryDirectory(prefix="cold-") as folder:
        arguments = [sys.executable, "-c", COMMAND, "build", recipe, "--only", "*/fp32/cpu"]
        start, environment = time.monotonic(), {**os.environ, "ENGINEWORKS_ARTIFACTS": folder}
        done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)
    right = done.returncode in (0, 1, 3) and "SystemError" not in done.stdout + done.stderr
    return right, time.monotonic() - start, "" if right else (done.stderr.strip().splitlines() or ["?"])[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default="recipes/digits.yaml")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--busy", type=int, default=2)
    parser.add_argument("--out", type=Path, help="file for the figures, written after every run")
    given = parser.parse_args()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(given.busy)]
    runs: list[dict[str, object]] = []
    try:
        for run in range(given.runs):
            right, seconds, why = build(given.recipe)
            runs.append(
                {"ended": right, "seconds": round(seconds, 1), "load": round(os.getloadavg()[0], 1), "why": why}
            )
            print(f"{run + 1:3} {'ended' if right else 'FAILED'} {seconds:6.1f} s {why}", flush=True)
            if given.out is not None:
                facts = {"python": sys.version.split()[0], "processor": cpu.describe(), "busy": given.busy}
                given.out.write_text(json.dumps(facts | {"recipe": given.recipe, "runs": runs}, indent=1) + "\n")
    finally:
        for process in busy:
            process.kill()
    failed = sum(not run["ended"] for run in runs)
    print(f"{failed} of {given.runs} cold starts failed beside {given.busy} busy processes")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
