"""Two nights with everything that nightly builds need, started here and stopped again: `make nightly-demo`.

PostgreSQL (or SQLite, where it is not installed), the Prefect and MLflow servers, moto's S3 as the store, and a process
worker for each of three GPU types, all on loopback in a temporary folder, each worker with artifacts of its own as on a
host of its own. Between the nights one recipe is changed. Both summaries are printed, and then everything is stopped,
also after Ctrl-C or a failure. Exits 0 if the second night built that one recipe and nothing else.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nightly_recipes import write_repository
from nightly_stack import S3_LIBRARIES, Stack, descendants, missing_libraries

POOLS = ("cpu", "rtx30", "rtx40")
CHANGED, UNCHANGED = "changing", "steady"
NEVER = "0 0 29 2 *"
"""When the deployment starts by itself: the demo starts its nights itself."""

NIGHT_LIMIT_S = 600
READ_NIGHTS = """
import json
from engineworks.report.night.summary import NIGHT_JSON, NIGHT_PAGE
from engineworks.settings import read_settings
from engineworks.tracking.runs import open_tracking
settings = read_settings()
tracking = open_tracking(settings.artifacts, settings.tracking_uri)
print(json.dumps([tracking.last_night_text(NIGHT_PAGE), tracking.last_night_text(NIGHT_JSON)]))
"""

BEGAN = time.monotonic()


def echo(line: str) -> None:
    print(f"[{time.monotonic() - BEGAN:5.1f} s] {line}", flush=True)


def run_night(stack: Stack) -> Mapping[str, Any]:
    """One run of the deployment nightly/nightly to its end; prints its summary as MLflow has it, returns its JSON."""
    arguments = ("deployment", "run", "nightly/nightly", "--watch", "--watch-interval", "2")
    output = stack.run(
        "prefect", *arguments, "--watch-timeout", str(NIGHT_LIMIT_S), limit_s=NIGHT_LIMIT_S + 30, check=False
    )
    if "Flow run finished successfully" not in " ".join(output.split()):
        logs = "\n".join(f"{name}:\n{stack.log_of(name)[-4000:]}" for name in stack.children if "worker" in name)
        sys.exit(f"the night did not complete:\n{output}\n{logs}")
    page, text = json.loads(stack.run("python", "-c", READ_NIGHTS).splitlines()[-1])
    print(f"\n{page}", flush=True)
    night: Mapping[str, Any] = json.loads(text)
    return night


def change_recipe(file: Path) -> str:
    """Another largest batch; what was changed."""
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("batch: [1, 4, 16]", "batch: [1, 4, 32]"), encoding="utf-8")
    return f"{file.name}: shapes.default.batch [1, 4, 16] → [1, 4, 32]"


def rebuilt_recipes(night: Mapping[str, Any]) -> set[str]:
    """Recipes of which a step ran."""
    return {step["id"].partition("/")[0] for step in night["rebuilt"]}


def run_demo(stack: Stack, *, sqlite: bool) -> int:
    files = write_repository(stack.folder, {CHANGED: ["fp32"], UNCHANGED: ["fp32", "int8"]}, targets=POOLS)
    kinds = "fp32, and of one also int8"
    echo(f"a repository with {len(files)} recipes ({kinds}) for {len(POOLS)} GPU types: {stack.folder}")
    stack.start_database(sqlite=sqlite)
    stack.start_s3()
    stack.start_prefect()
    stack.start_mlflow()
    for line in stack.run("engineworks", "deploy", "--cron", NEVER).splitlines():
        echo(f"engineworks deploy: {line}")
    for pool in POOLS:
        stack.start_worker(pool)
    echo(f"workers of the pools {', '.join(POOLS)}")
    echo("first night: prefect deployment run nightly/nightly")
    first = run_night(stack)
    echo(f"the recipe that changes between the nights: {change_recipe(files[0])}")
    echo("second night")
    second = run_night(stack)
    echo(f"first night: {counted(first)}; second night: {counted(second)}")
    wrong = list(wrong_of(first, second))
    for message in wrong:
        echo(f"wrong: {message}")
    return 1 if wrong else 0


def wrong_of(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    """What is not as it should be after both nights."""
    if rebuilt_recipes(first) != {CHANGED, UNCHANGED}:
        yield f"the first night built {sorted(rebuilt_recipes(first))}"
    if rebuilt_recipes(second) != {CHANGED}:
        yield f"the second night built {sorted(rebuilt_recipes(second))}, and only {CHANGED} was changed"
    for step in second["rebuilt"]:
        if not step["reason"]:
            yield f"nobody knows why {step['id']} was built again"


def counted(night: Mapping[str, Any]) -> str:
    recipes = ", ".join(sorted(rebuilt_recipes(night))) or "nothing"
    return f"{len(night['rebuilt'])} steps run, of {recipes}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="leave the folder with its logs")
    parser.add_argument("--sqlite", action="store_true", help="SQLite although PostgreSQL is installed")
    given = parser.parse_args()
    missing = missing_libraries(S3_LIBRARIES)
    if missing:
        sys.exit(f"{', '.join(missing)} not installed; 'make nightly-demo' installs engineworks[s3-tests,postgres]")
    folder = Path(tempfile.mkdtemp(prefix="engineworks-nightly-"))
    code = 130
    try:
        with Stack(folder, echo) as stack:
            try:
                code = run_demo(stack, sqlite=given.sqlite)
            finally:
                echo("stopping everything")
        echo(f"stopped: {len(descendants())} processes left")
    except KeyboardInterrupt:
        echo("interrupted")
    finally:
        if given.keep:
            echo(f"kept: {folder}")
        else:
            remove(folder)
    sys.exit(code)


def remove(folder: Path) -> None:
    """The store's files are read-only, its folders are not."""
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
