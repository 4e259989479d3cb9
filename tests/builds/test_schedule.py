"""The schedule: pure, each case named by its property."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from engineworks.builds.schedule import Schedule
from engineworks.plan.plan import Plan
from engineworks.plan.steps import Step


def step(name: str, *inputs: str, kind: str = "build", state: str = "to do") -> Step:
    return Step(cast(Any, kind), name, name, {}, {i: i for i in inputs}, {}, cast(Any, state))


def schedule(*steps: Step) -> Schedule:
    plan = SimpleNamespace(steps={s.key: s for s in steps}, to_do=tuple(s for s in steps if s.state == "to do"))
    return Schedule(cast(Plan, plan))


def names(steps: Any) -> list[str]:
    return [s.id for s in steps]


def test_a_step_waits_for_its_inputs() -> None:
    s = schedule(step("a"), step("b", "a"))
    assert names(s.ready(2)) == ["a"]
    assert names(s.ready(2)) == []
    s.done("a")
    assert names(s.ready(2)) == ["b"]


def test_cached_inputs_are_not_waited_for() -> None:
    s = schedule(step("a", state="cached"), step("b", "a"))
    assert names(s.ready(2)) == ["b"]


def test_no_more_run_beside_each_other_than_there_is_room() -> None:
    s = schedule(*(step(n) for n in "abcd"))
    assert names(s.ready(2)) == ["a", "b"]
    assert names(s.ready(2)) == []
    s.done("b")
    assert names(s.ready(2)) == ["c"]


def test_measuring_waits_for_all_else_and_runs_alone() -> None:
    s = schedule(step("m1", kind="measure"), step("a"), step("m2", kind="measure"), step("b", "a"))
    assert names(s.ready(2)) == ["a"]
    s.done("a")
    assert names(s.ready(2)) == ["b"]
    assert names(s.ready(2)) == []
    s.done("b")
    assert names(s.ready(2)) == ["m1"]
    assert names(s.ready(2)) == []
    s.done("m1")
    assert names(s.ready(2)) == ["m2"]


def test_what_stands_on_a_failure_is_skipped_and_the_rest_goes_on() -> None:
    s = schedule(step("a"), step("b", "a"), step("c", "b"), step("d"), step("m", "c", kind="measure"))
    assert names(s.ready(2)) == ["a", "d"]
    s.failed("a")
    s.done("d")
    assert names(s.ready(2)) == []
    assert s.finished
    assert names(s.skipped) == ["b", "c", "m"]


def test_nothing_to_do_is_finished_at_once() -> None:
    assert schedule(step("a", state="cached")).finished


def large(*steps: Step, **needs: float) -> Schedule:
    plan = SimpleNamespace(steps={s.key: s for s in steps}, to_do=steps)
    return Schedule(cast(Plan, plan), need=lambda s: needs.get(s.id, 0.0))


def test_a_step_that_does_not_fit_beside_another_waits_for_it_and_smaller_ones_go_first() -> None:
    s = large(step("a"), step("b"), step("c"), a=60, b=60, c=30)
    assert names(s.ready(2, 100)) == ["a", "c"]
    assert names(s.ready(2, 100)) == []
    s.done("c")
    assert names(s.ready(2, 100)) == []
    s.done("a")
    assert names(s.ready(2, 100)) == ["b"]
    assert s.large is None


def test_a_step_that_fits_nowhere_runs_alone_and_says_so() -> None:
    s = large(step("a"), step("b"), step("c"), a=10, b=500, c=10)
    assert names(s.ready(2, 100)) == ["a", "c"]
    s.done("a")
    assert names(s.ready(2, 100)) == []
    s.done("c")
    assert names(s.ready(2, 100)) == ["b"]
    assert s.large is not None
    assert (s.large[0].id, s.large[1]) == ("b", 500)


def test_nothing_starts_beside_a_step_that_runs_alone_for_its_memory() -> None:
    s = large(step("a"), step("b"), a=500, b=1)
    assert names(s.ready(2, 0)) == ["a"]
    assert names(s.ready(2, 10_000)) == []
    s.failed("a")
    assert names(s.ready(2, 10_000)) == ["b"]
    s.done("b")
    assert s.finished


def test_without_any_memory_steps_run_one_by_one_and_the_schedule_still_ends() -> None:
    s = large(*(step(n) for n in "abc"), a=5, b=5, c=5)
    order = []
    while not s.finished:
        (one,) = s.ready(2, 0)
        order.append(one.id)
        s.done(one.key)
    assert order == ["a", "b", "c"]


def test_what_a_later_plan_does_not_need_is_not_started() -> None:
    s = schedule(step("fold"), step("lower", "fold"), step("other", "fold"))
    s.ready(1)
    s.done("fold")
    later = SimpleNamespace(steps={"lower": step("lower", "fold", state="not needed"), "other": step("other", "fold")})
    s.drop(cast(Plan, later))
    assert names(s.ready(2)) == ["other"]
    s.done("other")
    assert s.finished
