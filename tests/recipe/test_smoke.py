"""A smoke build is quick and shares nothing with a full one."""

from __future__ import annotations

from pathlib import Path

import pytest

from engineworks.errors import RecipeError
from engineworks.host.file_digests import FileDigests
from engineworks.plan.plan import Plan, plan_recipe
from engineworks.recipe.load import load_recipe
from engineworks.recipe.smoke import SAMPLES, Mode, in_mode
from engineworks.settings import read_settings
from engineworks.store.shared import open_store


def plan(mode: Mode) -> Plan:
    loaded = in_mode(load_recipe(Path("recipes/tiny.yaml")), mode)
    return plan_recipe(loaded, open_store(read_settings()), FileDigests(None))


def test_no_key_and_no_id_is_shared_with_a_full_build(repository: Path) -> None:
    full, smoke = plan("full"), plan("smoke")
    assert not full.steps.keys() & smoke.steps.keys()
    assert not {e.id for e in full.engines} & {e.id for e in smoke.engines}
    assert {e.recipe for e in smoke.engines} == {"tiny@smoke"}
    assert full.build_key != smoke.build_key
    assert all("mode" not in step.document for step in full.steps.values()), "a full build's keys are as they were"


def test_no_recipe_file_can_take_the_name(repository: Path) -> None:
    path = repository / "recipes" / "tiny.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("recipe: tiny", "recipe: tiny@smoke"), encoding="utf-8")
    with pytest.raises(RecipeError):
        load_recipe(path)


def test_it_looks_at_few_samples_and_judges_no_speed(repository: Path) -> None:
    path = repository / "recipes" / "tiny.yaml"
    text = path.read_text(encoding="utf-8").replace("targets: [cpu]", "targets: [cpu, rtx40]")
    text = text.rstrip() + "\n  budget: {one: {p50_ms: 1.0}}\n  streams: [1, 2]\n  regression: {latency: 5%}\n"
    path.write_text(text, encoding="utf-8")
    smoke = in_mode(load_recipe(path), "smoke")
    assert smoke.files.evaluation.count <= SAMPLES
    performance = smoke.recipe.performance
    assert (performance.budget, performance.streams, performance.regression) == ({}, (), None)
    assert {t.name: t.target.options for t in smoke.targets} == {"cpu": {}, "rtx40": {"builder_optimization_level": 0}}
