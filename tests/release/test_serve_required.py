"""`release: {serve: required}`: a champion moves only after this very package of this very engine was served."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from engineworks.builds.results import EngineResult, engine_result
from engineworks.host.file_digests import FileDigests
from engineworks.plan.plan import Plan, plan_recipe
from engineworks.recipe.load import load_recipe
from engineworks.release.promotion import release_engine
from tests.typed_reports import ANSWERS, serving

REPORT = serving().to_json()


def judged(built: Any) -> tuple[Plan, EngineResult]:
    plan = plan_recipe(load_recipe(built.recipe), built.store, FileDigests(None), only="*/int8/cpu")
    return plan, engine_result(plan, plan.engines[0], built.store, {})


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEWORKS_TRITON", "http://127.0.0.1:8000")
    monkeypatch.setattr("engineworks.plan.served.version_of", lambda server: f"triton of {server.http}")


def serve(built: Any, plan: Plan, report: Any) -> None:
    """Put the report into the store, as the step leaves it."""
    step = plan.steps[plan.engines[0].steps["serve"]]
    with built.store.writing(step.key, step.document, step.id) as writing:
        (writing.folder / "serving.json").write_text(json.dumps(report))


def edit(built: Any, old: str, new: str) -> None:
    text = built.recipe.read_text()
    assert old in text
    built.recipe.write_text(text.replace(old, new))


def test_it_counts_for_this_package_on_this_server_alone(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert judged(built)[1].verdict == "pass"
    edit(built, "release: {", "release: {serve: required, ")
    plan, before = judged(built)
    assert before.verdict == "unmeasured"
    registry: Any = SimpleNamespace(standings=lambda slots: {slot: SimpleNamespace(lost="") for slot in slots})
    kept = release_engine(plan, before, "run", None, registry, 3)  # type: ignore[arg-type]
    assert (kept.action, kept.version) == ("kept", None)
    assert "stays at version 3" in kept.to_json()["message"]
    serve(built, plan, REPORT)
    assert judged(built)[1].verdict == "pass"
    with monkeypatch.context() as other:
        other.setenv("ENGINEWORKS_TRITON", "http://127.0.0.1:9000")
        assert judged(built)[1].verdict == "unmeasured"
        other.delenv("ENGINEWORKS_TRITON")
        assert judged(built)[1].verdict == "unmeasured"
    edit(built, "max_delay_us: 500", "max_delay_us: 501")  # the same engine in another package
    assert judged(built)[1].verdict == "unmeasured"
    edit(built, "max_delay_us: 501", "max_delay_us: 500")
    edit(built, "fp32: {cosine: 0.9999}", "fp32: {cosine: 0.999}")  # a limit changes no package
    assert judged(built)[1].verdict == "pass"
    edit(built, "recipe: tiny\n", "recipe: tiny\ncalibration: {method: percentile, percentile: 99}\n")
    plan, other_engine = judged(built)
    assert other_engine.serving is None  # another engine


def test_a_package_that_was_served_wrongly_fails(built: Any) -> None:
    edit(built, "release: {", "release: {serve: required, ")
    serve(built, judged(built)[0], {**REPORT, "answers": {"grpc": {**ANSWERS, "worst": {"logits": 0.5}}}})
    assert judged(built)[1].verdict == "fail"
