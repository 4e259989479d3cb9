"""kill -9 of the build child, of the flow's process, of the worker, of all at once; on workers of a real server.

Each ends as an undisturbed build does, steps that were finished are not repeated, and the parent says what became of
every engine.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Mapping

import pytest
from faults.plant import ENGINES, PASSED, Plant, descendants, kill, kill_all, lives, state_and_parent, wait

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("plant"), pytest.mark.timeout(600)]
BUILD = "tiny/int8/cpu/build"


def assert_whole(plant: Plant, undisturbed: Mapping[str, str], run: str) -> None:
    state, message = plant.end(run)
    assert (state, message.partition("\nverdicts")[0]) == ("COMPLETED", PASSED)
    plant.site.assert_as_undisturbed(undisturbed)
    plant.site.assert_nothing_repeated()


def assert_next_does_nothing(plant: Plant) -> None:
    before = plant.site.counts("started")
    state, message = plant.end(plant.order_recipe())
    assert state == "COMPLETED", message
    assert plant.site.counts("started") == before


def test_kill_9_of_the_build_child(plant: Plant, undisturbed: Mapping[str, str]) -> None:
    """The step is run again, in the same flow run."""
    site = plant.site
    site.hold(BUILD)
    plant.start_worker("prepare")
    run = plant.order_recipe()
    child = site.held(BUILD)
    site.release(BUILD)
    kill(child)
    assert_whole(plant, undisturbed, run)
    assert site.counts("started") - site.counts("ended") == Counter({BUILD: 1})
    assert Counter(plant.runs_of("build-engine")) == Counter((e, "COMPLETED") for e in ENGINES)
    assert_next_does_nothing(plant)


def test_kill_9_of_the_flow_process(plant: Plant, undisturbed: Mapping[str, str]) -> None:
    """The worker sees it and says so; the recipe's run starts the engine's once more."""
    site = plant.site
    site.hold(BUILD)
    plant.start_worker("prepare")
    run = plant.order_recipe()
    child = site.held(BUILD)
    supervisor = state_and_parent(child)[1]
    flow = state_and_parent(supervisor)[1]
    site.release(BUILD)
    os.kill(child, signal.SIGSTOP)  # so that it cannot end by itself meanwhile
    kill(flow)
    wait("the child to die with its parent", lambda: not lives(child), 10)
    assert_whole(plant, undisturbed, run)
    ended = Counter(plant.runs_of("build-engine"))
    assert ended == Counter({(ENGINES[0], "COMPLETED"): 1, (ENGINES[1], "CRASHED"): 1, (ENGINES[1], "COMPLETED"): 1})
    assert_next_does_nothing(plant)


def test_kill_9_of_the_worker_alone(plant: Plant, undisturbed: Mapping[str, str]) -> None:
    """The engine's run ends when it next speaks to the worker, which is gone, and says that it crashed; it is started
    once more, and the step that had ended meanwhile is not repeated."""
    site = plant.site
    site.hold(BUILD)
    worker = plant.start_worker("prepare")
    run = plant.order_recipe()
    child = site.held(BUILD)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    plant.forget_workers()
    assert lives(child)
    site.release(BUILD)
    plant.start_worker("prepare")
    assert_whole(plant, undisturbed, run)
    print(plant.runs_of("build-engine"), plant.messages_of("build-engine"))
    ended = Counter(plant.runs_of("build-engine"))
    assert ended[ENGINES[1], "COMPLETED"] == 1
    assert ended[ENGINES[1], "CRASHED"] <= 1
    assert_next_does_nothing(plant)


def test_kill_9_of_worker_flow_and_child_at_once(plant: Plant, undisturbed: Mapping[str, str]) -> None:
    """Nobody is left to say so: the automation of `engineworks deploy` marks the run crashed after three heartbeats."""
    site = plant.site
    site.hold(BUILD)
    worker = plant.start_worker("prepare")
    run = plant.order_recipe()
    site.held(BUILD)
    victims = [worker.pid, *descendants(worker.pid)]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    kill_all(worker)
    site.release(BUILD)
    plant.forget_workers()
    plant.start_worker("prepare")
    assert_whole(plant, undisturbed, run)
    states = Counter(plant.runs_of("build-engine"))
    assert states[(ENGINES[1], "CRASHED")] == 1
    assert states[(ENGINES[1], "COMPLETED")] == 1
    assert_next_does_nothing(plant)
