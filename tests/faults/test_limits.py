"""Limits of time and memory, of a whole build: what is over its limit ends alone, and says so."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from faults.plant import STEPS, Site, wait

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("faults")]

HANGING = """
import subprocess, sys, time

def hang(outputs, labels, inputs):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(612.345)"])
    time.sleep(600)
    return 1.0
"""


def _running(text: str) -> list[str]:
    """Ids of processes whose command holds the text."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if text in process.joinpath("cmdline").read_text(errors="replace"):
                found.append(process.name)
    return found


def test_a_step_over_its_time_limit_is_killed_with_all_that_it_started_and_is_not_tried_again(site: Site) -> None:
    site.edit("metric: top1", "metric: {python: slowly:hang}")
    recipes = site.root / "recipes"
    (recipes / "slowly.py").write_text(HANGING, encoding="utf-8")
    text = (recipes / "tiny.yaml").read_text(encoding="utf-8")
    (recipes / "tiny.yaml").write_text(text + "time_limits: {compare: 20}\n", encoding="utf-8")
    done = site.command("build", "recipes/tiny.yaml", "--only", "*/fp32/*", "--json")
    assert done.returncode == 4, done.stderr
    (engine,) = json.loads(done.stdout)["engines"]
    assert "the metric 'slowly:hang' did not end within 19 s and was ended" in engine["error"]
    assert site.counts("started")["tiny/fp32/cpu/compare"] == 1
    assert site.counts("ended")["tiny/fp32/cpu/measure"] == 1, "other steps of the same engine go on"
    wait("the process that the metric had started to be gone", lambda: not _running("time.sleep(612.345)"), 10)
    assert site.half_written() == []


def test_builds_that_do_not_fit_beside_each_other_run_one_after_the_other(
    site: Site, undisturbed: Mapping[str, str]
) -> None:
    """Each is expected to need 150 MiB, and there are 200."""
    builds = ("tiny/fp32/cpu/build", "tiny/int8/cpu/build")
    for step in builds:
        site.hold(step)
    build = site.start("build", "recipes/tiny.yaml", ENGINEWORKS_MEMORY_MIB="200")
    first = wait(
        "a build", lambda: next((b for b in builds if (site.folder / "held" / b.replace("/", "~")).exists()), "")
    )
    for step in ("tiny/fp32/lower", "tiny/int8/lower", "tiny/reference"):  # then the other could be built
        wait(step, lambda step=step: site.counts()[step])
    time.sleep(1)
    (second,) = set(builds) - {first}
    assert site.counts("started")[second] == 0
    site.release(first)
    site.held(second)
    site.release(second)
    _, said = build.communicate(timeout=240)
    assert build.returncode == 0, said
    assert "runs alone" not in said
    site.assert_as_undisturbed(undisturbed)
    site.assert_nothing_repeated()


def test_builds_that_fit_nowhere_run_alone_and_say_so(site: Site, undisturbed: Mapping[str, str]) -> None:
    build = site.start("build", "recipes/tiny.yaml", "--verbose", ENGINEWORKS_MEMORY_MIB="10")
    _, said = build.communicate(timeout=240)
    assert build.returncode == 0, said
    assert "tiny/fp32/cpu/build runs alone: it may need 150 MiB of memory and 10 MiB are available" in said
    log = (site.folder / "steps.log").read_text(encoding="utf-8").splitlines()
    for line, following in itertools.pairwise(log):
        event, step, pid = line.split()
        if event == "started" and step.endswith("/build"):
            assert following == f"ended {step} {pid}", "nothing ran beside it"
    assert site.counts().total() == STEPS
    site.assert_as_undisturbed(undisturbed)
