"""Planning many recipes: 100 recipes × 3 precisions × 4 targets, nothing cached, each with a model of its own.

    python benchmarks/plan_speed.py [--recipes 100]

Prints wall seconds and peak memory of the whole command `engineworks plan`, first and again (digests remembered), and
its ratio to parsing the same YAML files with ruamel.yaml alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent

PARSE = """
import sys
from ruamel.yaml import YAML
for path in sys.argv[1:]:
    with open(path) as file:
        YAML(typ="safe", pure=True).load(file)
"""


def write_recipes(folder: Path, count: int) -> list[str]:
    (folder / ".git").mkdir()
    recipes = folder / "recipes"
    for name in ("models", "data"):
        (recipes / name).mkdir(parents=True)
    for file in (ROOT / "recipes/data").glob("digits_*.npz"):
        (recipes / "data" / file.name).write_bytes(file.read_bytes())
    for name in ("_targets.yaml", "_defaults.yaml"):
        (recipes / name).write_text((ROOT / "recipes" / name).read_text())
    model, text = (ROOT / "recipes/models/digits_cnn.onnx").read_bytes(), (ROOT / "recipes/digits.yaml").read_text()
    paths = []
    for index in range(count):
        (recipes / f"models/m{index}.onnx").write_bytes(model)
        own = text.replace("recipe: digits", f"recipe: digits{index}").replace("digits_cnn", f"m{index}")
        own = own.replace("[cpu, rtx20, a100, rtx30, rtx40, rtx50, portable]", "[cpu, rtx30, rtx40, rtx50]")
        path = recipes / f"digits{index}.yaml"
        path.write_text(own)
        paths.append(str(path.relative_to(folder)))
    return paths


def timed(command: list[str | Path], cwd: Path) -> tuple[float, float]:
    """Wall seconds, and peak memory of the largest child so far in MiB."""
    start = time.perf_counter()
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", type=int, default=100)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/plan-speed-cpu.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="engineworks-bench-") as name:
        folder = Path(name)
        paths = write_recipes(folder, arguments.recipes)
        os.environ.pop("ENGINEWORKS_ARTIFACTS", None)
        parse_s, parse_mib = timed([sys.executable, "-c", PARSE, *paths], folder)
        time.sleep(2.1)  # files younger than this are not remembered
        first_s, first_mib = timed([BIN / "engineworks", "plan", *paths, "--quiet"], folder)
        again_s, _ = timed([BIN / "engineworks", "plan", *paths, "--quiet"], folder)
    result = {
        "recipes": arguments.recipes, "engines": arguments.recipes * 12, "plan_s": first_s, "plan_again_s": again_s,
        "peak_mib": first_mib, "parse_s": parse_s, "parse_mib": parse_mib, "plan_to_parse": first_s / parse_s,
    }  # fmt: skip
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
