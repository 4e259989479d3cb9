"""Two environments interleaved, and the page of a scorecard."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from engineworks.builds import rehearsal
from engineworks.builds.rehearsal import Rehearsal
from engineworks.builds.step import run_step
from engineworks.errors import RunError
from engineworks.host.child import default_pool
from engineworks.host.file_digests import FileDigests
from engineworks.measure.scorecard import Change, Speed
from engineworks.plan.plan import plan_recipes
from engineworks.recipe.load import load_recipe
from engineworks.report.scorecard import render_scorecard
from engineworks.store.store import Store


@pytest.mark.slow
def test_an_engine_beside_itself_is_as_fast_and_a_missing_one_is_a_reason(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal._Watches, "complaints", lambda *_: [])  # other tests run here, too
    store = Store(repository / "store")
    recipe = repository / "recipes/tiny.yaml"
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text + "\nperformance: {at: {one: {batch: 1}}}\n" if "performance:" not in text else text)
    (plan,) = plan_recipes([load_recipe(recipe)], store, FileDigests(None), only="tiny/fp32/cpu")
    (engine,) = plan.engines
    for step in plan.needed([engine.steps["build"]]):
        run_step(step, store, default_pool(), echo=print)
    folder = store.require(engine.steps["build"]).path
    measure = plan.steps[engine.steps["measure"]]
    side = (Path(sys.executable), folder)
    found = rehearsal.time_interleaved(engine, measure, store, [side, side], dict(os.environ), max_s=20)
    for compared in found.values():
        assert compared.rounds > 0
        assert compared.ratio is not None
        assert 0.5 < compared.ratio < 2
    with pytest.raises(RunError):
        rehearsal.time_interleaved(engine, measure, store, [side, (side[0], folder / "no")], dict(os.environ))


def test_the_page_of_a_scorecard_names_what_is_worse_first() -> None:
    slow = Speed("single", 1.0, 1.3, 1.3, 1.2, 1.4, rounds=15)
    worse = Change("tiny/int8/cpu", "pass", "fail", ("slower at single: <b>",), "worse", (slow,))
    same = Change("tiny/fp32/cpu", "pass", "pass", (), "same")
    page = render_scorecard(Rehearsal(("onnxruntime==1.30.0",), (worse, same), Path("scorecard.json")))
    assert page.index("tiny/int8/cpu") < page.index("tiny/fp32/cpu")
    assert "1.200 to 1.400" in page
    assert "interleaved, 15 rounds" in page
    assert "slower at single: &lt;b&gt;" in page
