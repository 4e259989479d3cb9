"""Runs that are cancelled, a server that restarts, parents that die, two nights at once: under a real Prefect server."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Mapping

import pytest
from faults.plant import ENGINES, PASSED, STEPS, Plant, descendants, kill_all, lives, state_and_parent, wait

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("plant"), pytest.mark.timeout(600)]
BUILD = "tiny/int8/cpu/build"
CANCEL_LIMIT_S = 10.0


def assert_again_whole(
    plant: Plant, undisturbed: Mapping[str, str], *, whole: int = 1, failed: int = 0, killed: int = 0
) -> None:
    """A second run ends as an undisturbed one, and repeats nothing that had ended."""
    state, message = plant.end(plant.order_recipe())
    assert (state, message.partition("\nverdicts")[0]) == ("COMPLETED", PASSED)
    plant.site.assert_as_undisturbed(undisturbed, whole=whole, failed=failed, killed=killed)
    plant.site.assert_nothing_repeated()


@pytest.mark.parametrize("whom", ["the engine's run", "the recipe's run"])
def test_cancelled_from_prefect_during_a_build(plant: Plant, undisturbed: Mapping[str, str], whom: str) -> None:
    """The child is gone within ten seconds and nothing half-written stays; the parent says which engine was cancelled."""
    site = plant.site
    site.hold(BUILD)
    plant.start_worker("prepare")
    run = plant.order_recipe()
    child = site.held(BUILD)
    assert site.half_written()
    begin = time.monotonic()
    plant.cancel(run if whom == "the recipe's run" else plant.id_of("build-engine", ENGINES[1]))
    wait("the child to be gone", lambda: not lives(child), CANCEL_LIMIT_S)
    print(f"{whom}: its child was gone after {time.monotonic() - begin:.1f} s")
    wait("nothing half-written", lambda: site.half_written() == [], CANCEL_LIMIT_S)
    site.release(BUILD)
    state, message = plant.end(run)
    if whom == "the recipe's run":
        assert state == "CANCELLED"
        assert {r.status for r in site.runs()} == {"KILLED"}
    else:
        assert state == "FAILED"
        assert message.startswith(f"In part: fp32/cpu passed; int8/cpu failed\n{ENGINES[1]}: failed: ")
    wait("the engine's run to be cancelled", lambda: (ENGINES[1], "CANCELLED") in plant.runs_of("build-engine"), 60)
    assert Counter(plant.runs_of("build-engine")) == Counter(
        {(ENGINES[0], "COMPLETED"): 1, (ENGINES[1], "CANCELLED"): 1}
    )
    engine_s = whom == "the engine's run"
    assert_again_whole(plant, undisturbed, failed=int(engine_s), killed=int(not engine_s))


def test_prefect_s_server_is_killed_and_started_again_in_the_middle(
    plant: Plant, undisturbed: Mapping[str, str]
) -> None:
    """Nobody notices but the log: parent, engine and worker wait for it."""
    site = plant.site
    site.hold(BUILD)
    plant.start_worker("prepare")
    run = plant.order_recipe()
    site.held(BUILD)
    plant.server.kill()
    time.sleep(5)
    site.release(BUILD)  # ends while there is no server
    time.sleep(5)
    plant.server.start(site.environment)
    state, message = plant.end(run)
    assert (state, message.partition("\nverdicts")[0]) == ("COMPLETED", PASSED)
    site.assert_as_undisturbed(undisturbed)
    site.assert_nothing_repeated()
    assert Counter(plant.runs_of("build-engine")) == Counter((e, "COMPLETED") for e in ENGINES)
    assert_again_whole(plant, undisturbed, whole=2)


def test_two_nights_at_once_do_the_work_once(plant: Plant, undisturbed: Mapping[str, str]) -> None:
    """The second waits in its queue for the first, and finds nothing to do."""
    plant.start_worker("prepare")
    first, second = plant.order("nightly/nightly", distributed=True), plant.order("nightly/nightly", distributed=True)
    ended = {plant.end(first), plant.end(second)}
    assert ended == {
        ("COMPLETED", "1 recipe (1 built), 2 engines (2 pass)"),
        ("COMPLETED", "1 recipe (1 unchanged), 2 engines (2 pass)"),
    }
    plant.site.assert_as_undisturbed(undisturbed)
    plant.site.assert_nothing_repeated()
    assert plant.site.counts().total() == STEPS


def test_two_runs_of_one_recipe_at_once_do_the_work_once(plant: Plant, undisturbed: Mapping[str, str]) -> None:
    """Two places are free in the queue of recipes: a night, and somebody who builds the same recipe meanwhile."""
    plant.start_worker("prepare")
    runs = [plant.order_recipe(), plant.order_recipe()]
    for run in runs:
        state, message = plant.end(run)
        assert (state, message.partition("\nverdicts")[0]) == ("COMPLETED", PASSED)
    plant.site.assert_nothing_repeated()
    assert plant.site.counts().total() == STEPS
    assert_again_whole(plant, undisturbed, whole=3)


def test_kill_9_of_the_recipe_s_process_with_its_worker(plant: Plant, undisturbed: Mapping[str, str]) -> None:
    """The parent of an engine that is being built dies: the engine goes on, the parent is marked crashed by the
    automation, and the next run takes what the engine left."""
    site = plant.site
    site.hold(BUILD)
    plant.start_worker("prepare")
    run = plant.order_recipe()
    child = site.held(BUILD)
    _, _, parent = plant._workers[0]
    for pid in [parent.pid, *descendants(parent.pid)]:
        os.kill(pid, signal.SIGKILL)
    kill_all(parent)
    plant.forget_workers()
    assert lives(state_and_parent(child)[1])
    site.release(BUILD)
    assert plant.end(run) == ("CRASHED", "no sign of life: its host or process died")
    wait("the engines", lambda: Counter(plant.runs_of("build-engine")) == Counter((e, "COMPLETED") for e in ENGINES))
    plant.start_worker("cpu")
    assert_again_whole(plant, undisturbed)


def test_one_recipe_that_fails_in_three_ways_stops_no_other(plant: Plant) -> None:
    """A recipe that cannot be read, one whose gate fails, and one whose step fails, in one night beside a right one."""
    recipes = plant.site.root / "recipes"
    text = (recipes / "tiny.yaml").read_text(encoding="utf-8")
    broken = {
        "unread": text.replace("precisions:", "precisons:"),
        "strict": text.replace("int8: {cosine: 0.98}", "int8: {cosine: 1.0}"),
        "failing": text.replace("metric: top1", "metric: {python: fails:fail}"),
    }
    for name, changed in broken.items():
        (recipes / f"{name}.yaml").write_text(changed.replace("recipe: tiny", f"recipe: {name}"), encoding="utf-8")
    (recipes / "fails.py").write_text(
        "def fail(outputs, labels, inputs):\n    raise ValueError('no')\n", encoding="utf-8"
    )
    plant.start_worker("prepare")
    state, message = plant.end(plant.order("nightly/nightly", distributed=True), 500)
    assert state == "FAILED"
    assert message.splitlines()[0].startswith("4 recipes (")
    for line in ("unread: refused · ", "strict/int8/cpu: fail · ", "failing/fp32/cpu and 1 more: failed · "):
        assert [said for said in message.splitlines() if said.startswith(line)], message
    assert "2 pass" in message or "3 pass" in message
    assert not [said for said in message.splitlines()[1:] if said.startswith("tiny")]
    (parent,) = [r for r in plant.site.runs() if r.recipe == "tiny"]
    assert parent.status == "FINISHED"
