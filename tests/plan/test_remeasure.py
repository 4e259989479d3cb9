"""A budget that was measured while something was wrong is measured anew by the next build, and by no other reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import RECIPE

from engineworks.host.file_digests import FileDigests
from engineworks.plan.champion_comparison import conditions_of
from engineworks.plan.plan import Plan, plan_recipe
from engineworks.plan.remeasure import measured_again
from engineworks.recipe.load import load_recipe
from engineworks.store.store import Store
from tests.typed_reports import latency_json, shape_json

BUDGET = "  budget: {one: {p50_ms: 3, p99_ms: 9}}\n"


def planned(repository: Path, store: Store, text: str) -> Plan:
    (repository / "recipes/tiny.yaml").write_text(text, encoding="utf-8")
    return plan_recipe(load_recipe(repository / "recipes/tiny.yaml"), store, FileDigests(None), only="*/fp32/*")


def measured(store: Store, plan: Plan, **values: Any) -> str:
    key = plan.engines[0].steps["measure"]
    report = latency_json({"one": shape_json(**{"runs": 99, **values})})
    with store.writing(key, plan.steps[key].document, "measure") as writing:
        (writing.folder / "latency.json").write_text(json.dumps(report), encoding="utf-8")
    return key


def test_a_disturbed_measurement_is_made_again_until_one_is_not(repository: Path) -> None:
    store, text = Store(repository / "store"), RECIPE + BUDGET
    keys = []
    for expected in (None, 1, 2):
        plan = planned(repository, store, text)
        step = plan.steps[plan.engines[0].steps["measure"]]
        assert step.params.get("disturbed_before") == expected
        keys.append(measured(store, plan, complaints=["noise"] if expected != 2 else []))
    assert len(set(keys)) == 3
    last = planned(repository, store, text)
    assert last.engines[0].steps["measure"] == keys[-1]
    assert last.steps[keys[-1]].state == "cached"
    fresh = planned(repository, Store(repository / "empty"), text)
    assert conditions_of(last.steps[keys[2]].document) == conditions_of(fresh.steps[keys[0]].document)


@pytest.mark.parametrize(
    "budget", ["", "  budget: {one: {engine_mib: 3}}\n"], ids=["none", "of what noise cannot touch"]
)
def test_what_no_budget_reads_is_not_measured_again(repository: Path, budget: str) -> None:
    store = Store(repository / "store")
    key = measured(store, planned(repository, store, RECIPE + budget), complaints=["noise"])
    assert planned(repository, store, RECIPE + budget).engines[0].steps["measure"] == key


def test_what_is_held_against_history_is_measured_again_too(repository: Path) -> None:
    store = Store(repository / "store")
    plan = planned(repository, store, RECIPE)
    key = measured(store, plan, complaints=["noise"])
    document = dict(plan.steps[key].document)
    assert measured_again(document, {}, store) == document
    assert measured_again(document, {}, store, by_history=True)["params"]["disturbed_before"] == 1


def test_a_figure_that_broke_its_budget_on_a_quiet_machine_stands(repository: Path) -> None:
    store = Store(repository / "store")
    key = measured(store, planned(repository, store, RECIPE + BUDGET), latency_ms_p50=99.0, complaints=[])
    assert planned(repository, store, RECIPE + BUDGET).engines[0].steps["measure"] == key
