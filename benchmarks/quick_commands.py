"""Processor time of the commands that only look: median of several runs, user and system, children included.

    python benchmarks/quick_commands.py --out benchmarks/results/quick-commands.json

Builds `recipes/digits.yaml` for the CPU twice in a new folder first, so that there is something to look at.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = Path(sys.executable).parent / "engineworks"
RECIPE = "recipes/digits.yaml"
ONLY = ("--only", "*/cpu")
COMMANDS = {
    "list": ("list",),
    "list engines": ("list", "engines"),
    "why": ("why", "digits/int8/cpu"),
    "inspect": ("inspect", "digits/int8/cpu"),
    "build with nothing to do": ("build", RECIPE, *ONLY),
}
LIMIT_S = 1.0


def processor_seconds(arguments: tuple[str, ...], env: dict[str, str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([PROGRAM, *arguments], cwd=ROOT, env=env, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quick-commands-") as folder:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("ENGINEWORKS_", "MLFLOW_"))}
        env |= {"ENGINEWORKS_ARTIFACTS": folder, "OMP_NUM_THREADS": "1"}
        env.pop("PYTHONDONTWRITEBYTECODE", None)  # compiled modules are what a user has: `make setup` compiles them
        for _ in range(2):
            processor_seconds(("build", RECIPE, *ONLY), env)
        # a second run to compare with: the same steps, recorded again for fewer engines
        processor_seconds(("build", RECIPE, "--only", "*/int8/cpu"), env)
        found = {}
        for name, arguments in COMMANDS.items():
            seconds = sorted(processor_seconds(arguments, env) for _ in range(options.runs))
            found[name] = {"median_s": round(statistics.median(seconds), 3), "runs_s": [round(s, 3) for s in seconds]}
            print(f"{name:26} {statistics.median(seconds):.2f} s of processor time (at most {LIMIT_S} s)", flush=True)
    facts = {"python": platform.python_version(), "processor": platform.processor() or platform.machine()}
    if options.out:
        options.out.write_text(json.dumps({"commands": found, **facts}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
