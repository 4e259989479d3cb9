"""What a worker did for an engine becomes part of the parent's plan, by digest alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engineworks.builds.delivery import (
    Delivery,
    delivery_of,
    digest_in,
    is_unfinished,
    merge_plan,
    note_delivery,
    order_of,
    prepare_keys,
    publish_body,
    read_body,
    take_delivery,
    unprepared,
    was_asked,
    with_deliveries,
)
from engineworks.builds.results import Failure
from engineworks.builds.state import Build
from engineworks.builds.step import Outcome
from engineworks.errors import StoreError
from engineworks.fingerprint import digest_of
from engineworks.host.file_digests import FileDigests
from engineworks.plan.plan import Plan, plan_recipe
from engineworks.recipe.load import load_recipe
from engineworks.settings import read_settings
from engineworks.store.shared import open_store
from engineworks.store.store import Store

ENGINE = "tiny/int8/cpu"


@pytest.fixture
def store(repository: Path) -> Store:
    return open_store(read_settings())


def plan_of(store: Store, only: str | None = None) -> Plan:
    return plan_recipe(load_recipe(Path("recipes/tiny.yaml")), store, FileDigests(None), only=only)


def on_other_hardware(plan: Plan) -> Plan:
    """The plan of one engine as a worker with another processor makes it: other keys of what its figures depend on."""
    (engine,) = plan.engines
    steps, keys = dict(plan.steps), dict(engine.steps)
    for kind in ("compare", "measure"):
        step = steps.pop(keys[kind])
        document = {**step.document, "hardware": {"processor": "another"}}
        keys[kind] = digest_of(document)
        steps[keys[kind]] = replace(step, key=keys[kind], document=document)
    return replace(plan, engines=(replace(engine, steps=keys),), steps=steps)


def delivered(store: Store, *, fill: bool) -> Delivery:
    build = Build(on_other_hardware(plan_of(store, ENGINE)), read_settings())
    if fill:
        for step in build.plan.steps.values():
            with store.writing(step.key, step.document, step.id) as writing:
                (writing.folder / "x").write_text("x", encoding="utf-8")
    return Delivery.from_json(delivery_of(build).to_json())


def test_a_delivery_passes_through_the_store_by_its_digest(store: Store) -> None:
    body = {**delivered(store, fill=False).to_json(), "p99": float("nan")}
    key = publish_body(store, "delivery", ENGINE, body)
    assert key == publish_body(store, "delivery", ENGINE, body)
    assert digest_in(f"{ENGINE}: 3 steps run; delivery {key}", "delivery") == key
    assert digest_in(f"verdicts {key}", "delivery") is None
    assert read_body(store, key) == json.loads(json.dumps({**body, "p99": None}))


def test_the_worker_s_keys_take_the_place_of_the_parent_s(store: Store) -> None:
    plan, delivery = plan_of(store), delivered(store, fill=False)
    merged = merge_plan(plan, delivery)
    engine = next(e for e in merged.engines if e.id == ENGINE)
    assert dict(engine.steps) == dict(delivery.keys)
    before = next(e for e in plan.engines if e.id == ENGINE)
    assert before.steps["measure"] not in merged.steps
    assert merged.steps[engine.steps["measure"]].document["hardware"] == {"processor": "another"}
    assert engine.steps["build"] == before.steps["build"]
    other = next(e for e in merged.engines if e.id != ENGINE)
    assert set(other.steps.values()) <= merged.steps.keys()


def test_a_worker_with_other_versions_is_refused(store: Store) -> None:
    delivery = delivered(store, fill=False)
    step = replace(delivery.steps[0], inputs={"lower": "0" * 64})
    with pytest.raises(StoreError, match="used other steps than this plan"):
        merge_plan(plan_of(store), replace(delivery, steps=(step, *delivery.steps[1:])))


def test_failures_on_the_worker_are_the_engine_s(store: Store) -> None:
    build, delivery = Build(plan_of(store), read_settings()), delivered(store, fill=False)
    key = delivery.keys["build"]
    take_delivery(build, replace(delivery, failures={key: Failure("tiny/int8/cpu/build", "out of luck")}))
    assert build.failures[key].message == "out of luck"


def test_a_night_tells_why_a_worker_ran_a_step(store: Store) -> None:
    build, delivery = Build(plan_of(store), read_settings()), delivered(store, fill=False)
    key, name = delivery.keys["build"], f"{ENGINE}/build"
    changed = tuple(replace(s, reason="profiles changed") if s.key == key else s for s in delivery.steps)
    sent = replace(delivery, steps=changed, outcomes=(Outcome(name, key, "run", 2.0),)).to_json()
    take_delivery(build, Delivery.from_json(sent))
    assert [(step.id, step.reason) for step in build.result("").ran] == [(name, "profiles changed")]


def test_the_same_order_is_not_given_twice_but_another_is(store: Store) -> None:
    delivery = delivered(store, fill=True)
    plan = plan_of(store)
    engine = next(e for e in plan.engines if e.id == ENGINE)
    assert is_unfinished(plan, engine), "its figures on this host are not there"
    note_delivery(store, ENGINE, order_of(plan, engine), publish_body(store, "delivery", ENGINE, delivery.to_json()))
    known = with_deliveries(plan, store)
    assert not is_unfinished(known, next(e for e in known.engines if e.id == ENGINE))
    assert with_deliveries(plan, store, again="*/int8/*") == plan
    text = Path("recipes/tiny.yaml").read_text(encoding="utf-8")
    Path("recipes/tiny.yaml").write_text(text.replace("one: {batch: 1}", "one: {batch: 2}"), encoding="utf-8")
    assert with_deliveries(changed := plan_of(store), store) == changed


def test_a_delivery_whose_artifacts_are_gone_is_none(store: Store) -> None:
    delivery = delivered(store, fill=True)
    plan = plan_of(store)
    engine = next(e for e in plan.engines if e.id == ENGINE)
    note_delivery(store, ENGINE, order_of(plan, engine), publish_body(store, "delivery", ENGINE, delivery.to_json()))
    store.remove(delivery.keys["measure"])
    assert with_deliveries(plan, store) == plan


def test_workers_without_the_hardware_are_not_asked_every_night(store: Store) -> None:
    plan = plan_of(store)
    engine = next(e for e in plan.engines if e.id == ENGINE)
    delivered(store, fill=True)
    note_delivery(store, ENGINE, order_of(plan, engine), "0" * 64, ["a", "b"])
    assert was_asked(store, plan, engine, ["b"])
    assert not was_asked(store, plan, engine, ["b", "new"])
    store.remove(engine.steps["build"])
    assert not was_asked(store, plan, engine, ["b"])


def test_steps_of_the_cpu_pool_are_told_from_the_engine_s_own(store: Store) -> None:
    plan = plan_of(store)
    kinds = {plan.steps[key].kind for key in prepare_keys(plan, plan.engines)}
    assert kinds == {"export", "fold", "calibrate", "lower", "reference", "lowered_reference"}
    step = unprepared(plan)
    assert step is not None
    assert step.kind == "export"
