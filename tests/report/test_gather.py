"""What a report tells of before comes from MLflow: the build before, the causes, the trend, the champions, the links."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from by_hand import by_hand

from engineworks.builds.results import BuildResult, EngineResult, StepCounts
from engineworks.builds.to_mlflow import _headline
from engineworks.errors import TrackingError
from engineworks.report.gather import gather_background
from engineworks.report.text import render_markdown
from engineworks.tracking.pages import ALL_ENGINES, HEADLINE, VIEW_TAG, Pages, engines_view, recipe_view, view_key
from engineworks.tracking.records import EngineRecord
from engineworks.tracking.runs import Tracking, open_tracking
from tests.typed_reports import latency as report_with
from tests.typed_reports import shape_json, sidecar

pytest.importorskip("mlflow")

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own models

ENGINE = "tiny/int8/cpu"


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    return open_tracking(tmp_path_factory.mktemp("artifacts"))


def plan(method: str, limit: float = 0.9) -> dict[str, Any]:
    resolved = {
        "calibration": {"method": method},
        "accuracy": {"limits": {"int8": {"cosine": limit}}},
        "description": "d",
    }
    return {
        "engines": [{"id": ENGINE}],
        "refused": [],
        "resolved": resolved,
        "targets": {},
        "file": "recipes/tiny.yaml",
    }


def record(tracking: Tracking, recipe: str, method: str, p50: float, verdict: str, version: str) -> BuildResult:
    """A build of one engine, on record; returns its result."""
    engine = f"{recipe}/int8/cpu"
    document = {"step": "calibrate", "version": 1, "params": {"method": method}, "inputs": {}, "digests": {}}
    steps = {"calibrate": {"key": method, **document}}
    metrics = {"latency_ms_p50/one": p50, "metric": 0.9, "cosine/y": 0.99, "engine_bytes": 2**20}
    tags = {"engineworks.verdict": verdict, "engineworks.model": "abcdef0123"}
    with tracking.start_build(recipe, f"{recipe}-{method}-{p50}", {"engineworks.host": "h"}, {}) as run:
        run.record_engine(
            EngineRecord(engine, texts={"fingerprints/steps.json": json.dumps(steps)}, metrics=metrics, tags=tags,
                         params={"versions.onnxruntime": version}, engine_digest=f"digest-{method}")
        )  # fmt: skip
        run.finish(texts={"plan.json": json.dumps(plan(method))})
        latency = report_with({"one": shape_json(p50)})
        result = EngineResult(engine, verdict, (), sidecar=sidecar(sha256=f"digest-{method}", bytes=1), latency=latency)  # type: ignore[arg-type]
        return BuildResult(recipe, run.run_id, (result,), (), StepCounts())


def test_the_build_before_its_causes_and_the_trend(tracking: Tracking) -> None:
    record(tracking, "tiny", "entropy", 1.0, "pass", "1.30")
    record(tracking, "tiny", "entropy", 1.01, "pass", "1.31")
    result = record(tracking, "tiny", "minmax", 2.0, "fail", "1.31")
    found = gather_background(result, plan("minmax"), tracking)
    assert found.before is not None
    assert found.before.changes == (
        "tiny/int8/cpu: pass → fail",
        "tiny/int8/cpu: another engine, sha256 digest-entro → digest-minma",
        "tiny/int8/cpu: median 1.01 → 2 ms (+98%)",
    )
    assert found.before.causes == ("calibration.method: entropy → minmax",)
    points = found.points["tiny/int8/cpu"]
    assert [p.p50_ms["one"] for p in points] == [1.0, 1.01, 2.0]
    assert [p.versions["onnxruntime"] for p in points] == ["1.30", "1.31", "1.31"]
    assert points[-1].versions["model"] == "abcdef01"
    assert found.facts["host"] == "h"
    assert found.missing == ()


def test_a_report_of_an_old_build_knows_nothing_of_later_ones(tracking: Tracking) -> None:
    first = record(tracking, "old", "entropy", 1.0, "pass", "1.30")
    record(tracking, "old", "minmax", 2.0, "fail", "1.31")
    found = gather_background(first, plan("entropy"), tracking)
    assert found.before is None
    assert len(found.points["old/int8/cpu"]) == 1


def several(tracking: Tracking, recipe: str, verdicts: dict[str, str], left_out: tuple[str, ...] = ()) -> BuildResult:
    """A build of some of the recipe's engines, on record; `--only` left the others out."""
    results = []
    ids = {precision: f"{recipe}/{precision}/cpu" for precision in (*verdicts, *left_out)}
    missed = tuple(ids[precision] for precision in left_out)
    text = json.dumps({**plan("entropy"), "engines": [{"id": ids[p]} for p in verdicts], "not_selected": missed})
    with tracking.start_build(recipe, f"{recipe}-{verdicts}", {}, {}) as run:
        for precision, verdict in verdicts.items():
            tags = {"engineworks.verdict": verdict}
            run.record_engine(EngineRecord(ids[precision], tags=tags, engine_digest=f"{recipe}-{precision}"))
            made = sidecar(sha256=f"{recipe}-{precision}", bytes=1)
            results.append(EngineResult(ids[precision], verdict, (), sidecar=made))  # type: ignore[arg-type]
        run.finish(texts={"plan.json": text})
        return BuildResult(recipe, run.run_id, tuple(results), (), StepCounts(), not_selected=missed)


def test_engines_that_only_left_out_are_neither_gone_nor_new_and_are_compared_with_their_own_last(
    tracking: Tracking,
) -> None:
    several(tracking, "only", {"fp32": "pass", "int8": "pass"})
    some = several(tracking, "only", {"int8": "pass"}, ("fp32",))
    found = gather_background(some, plan("entropy"), tracking).before
    assert found is not None
    assert found.changes == ()
    assert found.apart == ("Not part of this run, because --only left them out: only/fp32/cpu.",)
    every = several(tracking, "only", {"fp32": "fail", "int8": "pass", "fp16": "pass"})
    found = gather_background(every, plan("entropy"), tracking).before
    assert found is not None
    assert found.changes == ("only/fp32/cpu: pass → fail", "only/fp16/cpu: new, pass")
    assert len(found.apart) == 1
    assert found.apart[0].startswith("only/fp32/cpu was not part of the build before")
    text = render_markdown(some, gather_background(some, plan("entropy"), tracking))
    assert "1 pass, 1 not part of this run." in text
    assert "Not part of this run, because --only left them out: only/fp32/cpu." in text


def test_the_first_build_of_an_engine_after_others_only_has_nothing_to_be_compared_with(tracking: Tracking) -> None:
    several(tracking, "late", {"int8": "pass"}, ("fp32",))
    both = several(tracking, "late", {"fp32": "pass", "int8": "pass"})
    found = gather_background(both, plan("entropy"), tracking).before
    assert found is not None
    assert found.changes == ("late/fp32/cpu: pass, not compared: not part of the run before",)
    assert "there is nothing to compare it with" in found.apart[0]


def test_a_champion_that_is_missing_is_told(tracking: Tracking) -> None:
    result = several(tracking, "bare", {"int8": "pass"})
    client = by_hand(tracking)
    client.create_registered_model("bare", tags={"engineworks.champions.cpu-int8": "[4]"})
    found = gather_background(result, plan("entropy"), tracking)
    assert found.lost == ("bare/int8/cpu: the champion is missing: version 4 was deleted in MLflow.",)
    assert found.lost[0] in render_markdown(result, found)
    planned = {**plan("entropy"), "engines": [{"id": "bare/int8/cpu", "champion_lost": "version 3 was deleted"}]}
    found = gather_background(result, planned, tracking)
    assert found.lost == ("bare/int8/cpu: the champion is missing: version 3 was deleted.",)


def test_a_limit_that_was_moved_is_a_cause_too(tracking: Tracking) -> None:
    record(tracking, "limit", "entropy", 1.0, "pass", "1.30")
    result = record(tracking, "limit", "entropy", 1.0, "fail", "1.30")
    found = gather_background(result, plan("entropy", limit=0.999), tracking)
    assert found.before is not None
    assert found.before.causes == ("accuracy.limits.int8.cosine: 0.9 → 0.999",)


def test_without_mlflow_the_report_says_what_it_lacks(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Any:
        raise TrackingError("MLflow does not answer")

    result = record(tracking, "gone", "entropy", 1.0, "pass", "1.30")
    monkeypatch.setattr(Tracking, "get_run", refuse)
    found = gather_background(result, plan("entropy"), tracking)
    assert "MLflow does not answer" in found.missing[0]
    assert found.facts == {"recipe file": "recipes/tiny.yaml"}


def test_links_lead_to_the_run_the_report_and_the_view(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    result = record(tracking, "linked", "entropy", 1.0, "pass", "1.30")
    here = gather_background(result, plan("entropy"), tracking)
    assert here.links == (), "no server shows these pages"
    assert result.run in here.facts["MLflow's page"]
    monkeypatch.setattr(Tracking, "has_pages", True)
    links = {link.name: link.url for link in gather_background(result, plan("entropy"), tracking).links}
    assert links["MLflow run"].endswith(f"/runs/{result.run}")
    assert links["this report in MLflow"].endswith(f"{result.run}/artifacts/report.html")
    assert links["all builds' engines in MLflow"].endswith("viewStateShareKey=recipe-linked")


# --- MLflow's columns


def test_views_are_saved_once_and_written_again_only_when_they_differ(tracking: Tracking) -> None:
    def tags() -> dict[str, str]:
        return tracking._connect().experiment_tags()

    tracking.save_views("tiny", ["latency_ms_p50/one"])
    first = tags()
    view = json.loads(first[VIEW_TAG + view_key("tiny")])
    state = json.loads(view["state"])
    assert (view["name"], view["createdAt"]) == ("Engines of tiny", 0)
    assert "metrics.`latency_ms_p50/one`" in state["selectedColumns"]
    assert {f"metrics.`{name}`" for name in HEADLINE} <= set(state["selectedColumns"])
    assert "tags.`engineworks.recipe` = 'tiny'" in state["searchFilter"]
    assert "viewStateShareKey=recipe-tiny" in first["mlflow.note.content"]
    tracking.save_views("tiny", ["latency_ms_p50/one"])
    assert tags() == first
    tracking.save_views("other", [])
    assert {VIEW_TAG + ALL_ENGINES, VIEW_TAG + "recipe-tiny", VIEW_TAG + "recipe-other"} <= set(tags())
    assert "recipe-tiny" in tags()["mlflow.note.content"]


def test_a_search_of_a_view_finds_what_it_names(tracking: Tracking) -> None:
    record(tracking, "found", "entropy", 1.0, "pass", "1.30")
    search = json.loads(json.loads(recipe_view("found", []))["state"])["searchFilter"]
    link = tracking._connect()
    found = link.client.search_runs([link.experiment_id], search)
    assert [run.info.run_name for run in found] == ["found/int8/cpu"]


def test_a_view_keeps_within_the_limit_of_a_tag() -> None:
    assert len(recipe_view("r", [f"latency_ms_p50/shape_{i}" for i in range(200)])) <= 5000
    assert len(engines_view()) <= 5000


def test_a_key_is_fit_for_an_address() -> None:
    assert view_key("Déjà vu_2") == "recipe-D-j-vu-2"
    pages = Pages("http://m", "1")
    assert pages.compare(["a"]) == "http://m/#/compare-runs?runs=%5B%22a%22%5D&experiments=%5B%221%22%5D"


def test_every_measured_engine_has_the_headline(repository: Path) -> None:
    from report_example import measured

    assert set(_headline(measured("fp16", "h100"))) | {"metric"} == set(HEADLINE)
