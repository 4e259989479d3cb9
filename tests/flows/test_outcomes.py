"""A flow that a worker runs fails with its own words, whatever its result is; a caller in its process gets the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from flow_builds import enter
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import FailedRun
from prefect.flow_engine import run_flow

from flows.outcomes import ended, result_of

pytestmark = [pytest.mark.xdist_group("flows"), pytest.mark.usefixtures("api")]


def order(the_flow: Any, parameters: Mapping[str, Any]) -> FlowRun:
    """A run of a deployment, as a worker finds it."""
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(the_flow)
        deployment = client.create_deployment(flow_id, name="ordered")
        return client.create_flow_run_from_deployment(deployment, parameters=dict(parameters))


def last_state(run: FlowRun) -> State[Any]:
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run.id).state
    assert state is not None
    return state


@flow(name="inner")
def inner() -> State[object]:
    return ended("inner: fail", object(), good=False)


@flow(name="outer")
def outer(good: bool) -> State[object]:
    state: State[object] = inner(return_state=True)
    assert type(result_of(state)) is object, "who called it here gets its result"
    return ended("outer: done", object(), good=good)


def test_an_ordered_run_that_fails_says_its_words_and_no_type_error() -> None:
    run = order(outer, {"good": False})
    with pytest.raises(FailedRun, match="outer: done"):
        run_flow(outer, flow_run=run, parameters={"good": False})
    assert (last_state(run).type.value, last_state(run).message) == ("FAILED", "outer: done")


def test_an_ordered_run_that_ends_well_is_completed() -> None:
    run = order(outer, {"good": True})
    run_flow(outer, flow_run=run, parameters={"good": True})
    assert (last_state(run).type.value, last_state(run).message) == ("COMPLETED", "outer: done")


def failing_release() -> tuple[Callable[..., Any], Mapping[str, Any]]:
    from flows.release import release

    return release, {"recipe": "recipes/tiny.yaml", "only": "*/int8/*"}


def failing_build() -> tuple[Callable[..., Any], Mapping[str, Any]]:
    from flows.build_recipe import build_recipe

    return build_recipe, {"recipe": "recipes/tiny.yaml", "only": "*/int8/*"}


def failing_night() -> tuple[Callable[..., Any], Mapping[str, Any]]:
    from flows.nightly import nightly

    return nightly, {"folder": "recipes"}


@pytest.mark.parametrize(
    ("failing", "words"),
    [
        (failing_release, "tiny/int8/cpu: fail: there is no champion-cpu-int8"),
        (failing_build, "tiny/int8/cpu: fail: logits: cosine similarity"),
        (failing_night, "tiny/int8/cpu: fail ·"),
    ],
)
def test_a_failed_gate_of_an_ordered_run_is_told_by_its_words(
    failing: Callable[[], tuple[Any, Mapping[str, Any]]], words: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(repository, monkeypatch)
    recipe = repository / "recipes" / "tiny.yaml"
    text = recipe.read_text(encoding="utf-8").replace("int8: {cosine: 0.98}", "int8: {cosine: 0.99999999}")
    recipe.write_text(text, encoding="utf-8")
    the_flow, parameters = failing()
    run = order(the_flow, parameters)
    with pytest.raises(FailedRun, match=words):
        run_flow(the_flow, flow_run=run, parameters=dict(parameters))
    assert last_state(run).type.value == "FAILED"
    assert words in str(last_state(run).message)
