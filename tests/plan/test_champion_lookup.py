"""Champions are found by their alias; their engines by the store or their run, and only with the right digest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from by_hand import by_hand
from conftest import RECIPE

from engineworks.fingerprint import digest_of
from engineworks.host.file_digests import FileDigests, digest_file
from engineworks.measure.champion import Champion, Champions
from engineworks.measure.gates.regression import regression_checks
from engineworks.plan.champion_comparison import conditions_of
from engineworks.plan.champion_lookup import ChampionError, engine_of, find_champions, history_of
from engineworks.plan.plan import Plan, plan_recipe
from engineworks.plan.steps import Step
from engineworks.recipe.load import LoadedRecipe, load_recipe
from engineworks.settings import Settings, read_settings
from engineworks.store.shared import open_store
from engineworks.store.store import Store
from engineworks.tracking.records import EngineRecord
from engineworks.tracking.runs import open_tracking
from tests.typed_reports import accuracy, comparison_json, write_sidecar

ENGINE = "tiny/int8/cpu"
REGRESSION = "  regression: {latency: 5%, accuracy: 0.5%}\n"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests, each of which has a model of its own: making one takes a second."""
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture
def settings(repository: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("ENGINEWORKS_ARTIFACTS", str(database))
    monkeypatch.setenv("ENGINEWORKS_STORE", str(repository / "store"))
    return read_settings()


def loaded(repository: Path, name: str = "tiny") -> LoadedRecipe:
    path = repository / "recipes/tiny.yaml"
    text = path.read_text(encoding="utf-8").replace("recipe: tiny", f"recipe: {name}")
    path.write_text(text.replace("performance:\n", f"performance:\n{REGRESSION}"), encoding="utf-8")
    return load_recipe(path)


def put_engine(folder: Path, content: bytes = b"engine") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "engine").write_bytes(content)
    digest = digest_file(folder / "engine")
    write_sidecar(folder, sha256=digest)
    return digest


def release(settings: Settings, folder: Path, model: str, build_key: str = "0" * 64, **tags: str) -> tuple[str, str]:
    """Record an engine and make it the champion: its run and digest."""
    digest = put_engine(folder, model.encode())  # one that no other run holds
    tracking = open_tracking(settings.artifacts)
    with tracking.start_build(model, "k", {}, {}) as run:
        texts = {
            "accuracy.json": json.dumps(accuracy().to_json()),
            "fingerprints/compare.json": json.dumps({"params": {}}),
        }
        texts["fingerprints/build.json"] = json.dumps({"key": build_key})
        files = {f"engine/{f.name}": f for f in folder.iterdir()}
        record = EngineRecord(f"{model}/int8/cpu", tags=tags, texts=texts, files=files, engine_digest=digest)
        engine_run = run.record_engine(record)
    client = by_hand(tracking)
    client.create_registered_model(model)
    version = client.create_model_version(
        model, source=f"runs:/{engine_run}/engine", run_id=engine_run,
        tags={"engineworks.engine": f"{model}/int8/cpu", "engineworks.engine_digest": digest},
    )  # fmt: skip
    client.set_registered_model_alias(model, "champion-cpu-int8", str(version.version))
    return engine_run, digest


def test_nothing_is_opened_where_nothing_is_asked_or_was_recorded(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engineworks.tracking.opening.connect", lambda *_: pytest.fail("opened"))
    settings = Settings(tmp_path / "none", str(tmp_path / "store"))
    assert find_champions(load_recipe(repository / "recipes/tiny.yaml"), settings) == Champions()
    assert find_champions(loaded(repository), settings).by_engine == {}


def test_the_champion_is_found_by_its_alias_with_its_figures(
    repository: Path, settings: Settings, tmp_path: Path
) -> None:
    recipe = loaded(repository, "found")
    assert find_champions(recipe, settings).by_engine == {}
    run, digest = release(settings, tmp_path / "engine", "found")
    found = find_champions(recipe, settings)
    assert set(found.by_engine) == {"found/int8/cpu"}
    champion = found.by_engine["found/int8/cpu"]
    assert (champion.run, champion.digest, champion.version) == (run, digest, "1")
    assert (champion.accuracy, champion.compare) == (accuracy(), {"params": {}})


def test_a_champion_that_is_missing_is_not_no_champion(repository: Path, settings: Settings, tmp_path: Path) -> None:
    """Where its version was deleted in MLflow, the alias is gone, but the list of champions names it."""
    recipe = loaded(repository, "missing")
    release(settings, tmp_path / "engine", "missing")
    client = by_hand(open_tracking(settings.artifacts))
    client.set_registered_model_tag("missing", "engineworks.champions.cpu-int8", "[1]")
    assert find_champions(recipe, settings).lost == {}
    client.delete_model_version("missing", "1")
    champions = find_champions(recipe, settings)
    assert champions.by_engine == {}
    assert champions.lost == {"missing/int8/cpu": "version 1 was deleted in MLflow"}
    planned_engines = {e.id: e for e in planned(repository, champions, open_store(settings)).engines}
    engine = planned_engines["missing/int8/cpu"]
    assert engine.champion_lost == "version 1 was deleted in MLflow"
    checks = regression_checks(recipe.recipe.performance.regression, None, champion_lost=engine.champion_lost)
    assert [c.verdict for c in checks] == ["inconclusive", "inconclusive"]
    assert "the champion is missing: version 1 was deleted in MLflow" in checks[0].message
    assert planned_engines["missing/fp32/cpu"].champion_lost == ""


def test_its_engine_comes_from_the_store_or_else_from_its_run(
    repository: Path, settings: Settings, tmp_path: Path
) -> None:
    document = {"step": "build", "n": 1}
    key = digest_of(document)
    release(settings, tmp_path / "engine", "fetched", key)
    champions = find_champions(loaded(repository, "fetched"), settings)
    champion = champions.by_engine["fetched/int8/cpu"]
    with engine_of(champion, champions.places) as folder:
        assert (folder / "engine").read_bytes() == b"fetched"
        assert (folder / "engine.json").is_file()
    assert not folder.exists()
    with open_store(settings).writing(key, document, "x/build") as writing:
        put_engine(writing.folder, b"fetched")
    with engine_of(champion, champions.places) as folder:
        assert folder == open_store(settings).require(key).path


def test_other_bytes_under_its_key_are_not_the_champion(repository: Path, settings: Settings, tmp_path: Path) -> None:
    """Engines are not built twice alike: after a gc the same key may hold another one."""
    document = {"step": "build", "n": 2}
    key = digest_of(document)
    run, _ = release(settings, tmp_path / "engine", "other", key)
    with open_store(settings).writing(key, document, "x/build") as writing:
        put_engine(writing.folder, b"another")
    champions = find_champions(loaded(repository, "other"), settings)
    champion = champions.by_engine["other/int8/cpu"]
    with engine_of(champion, champions.places) as folder:
        assert (folder / "engine").read_bytes() == b"other"
    at = next((settings.artifacts / "mlartifacts").glob(f"**/{run}/artifacts/engine/engine"))
    at.chmod(0o644)
    at.write_bytes(b"altered")
    with pytest.raises(ChampionError, match="in place of its engine"), engine_of(champion, champions.places):
        pass
    shutil.rmtree(at.parent)
    gone = "its engine is neither in the store nor in MLflow"
    with pytest.raises(ChampionError, match=gone), engine_of(champion, champions.places):
        pass


def test_history_is_that_of_the_same_conditions_each_measurement_once(
    repository: Path, settings: Settings, tmp_path: Path
) -> None:
    tracking = open_tracking(settings.artifacts)
    for conditions, ms, digest in [
        ("c", 1.0, "a"),
        ("c", 1.0, "a"),
        ("c", 1.1, "a"),
        ("other", 5.0, "a"),
        ("c", 2.0, "b"),
    ]:
        with tracking.start_build("old", "k", {}, {}) as run:
            tags, metrics = {"engineworks.conditions": conditions}, {"latency_ms_p50/one": ms, "load_ms": 3.0}
            run.record_engine(EngineRecord("past/int8/cpu", tags=tags, metrics=metrics, engine_digest=digest))
    release(settings, tmp_path / "engine", "past")
    champions = find_champions(loaded(repository, "past"), settings)
    champion = champions.by_engine["past/int8/cpu"]
    found = history_of(champion, champions.places, "c")
    assert found == {"one": [("a", 1.0), ("a", 1.1), ("b", 2.0)]}


def planned(repository: Path, champions: Champions, store: Store) -> Plan:
    return plan_recipe(load_recipe(repository / "recipes/tiny.yaml"), store, FileDigests(None), champions=champions)


def publish(store: Store, plan: Plan, report: dict[str, Any]) -> str:
    key = next(e for e in plan.engines if e.id == ENGINE).steps["compare_champion"]
    with store.writing(key, plan.steps[key].document, "compare_champion") as writing:
        (writing.folder / "champion_comparison.json").write_text(
            json.dumps(comparison_json(**report)), encoding="utf-8"
        )
    return key


def test_a_champion_comparison_is_planned_where_there_is_a_champion_and_tried_again_until_it_decides(
    repository: Path, settings: Settings, tmp_path: Path
) -> None:
    recipe = loaded(repository)
    store = open_store(settings)
    without = planned(repository, find_champions(recipe, settings), store)
    assert not any("compare_champion" in e.steps for e in without.engines)
    release(settings, tmp_path / "engine", "tiny")
    champions = find_champions(recipe, settings)
    first = planned(repository, champions, store)
    assert {e.id for e in first.engines if "compare_champion" in e.steps} == {ENGINE}
    assert first.build_key != without.build_key
    key = publish(store, first, {"method": "measured", "shapes": {"one": {"verdict": "inconclusive"}}})
    second = planned(repository, champions, store)
    again = publish(store, second, {"method": "measured", "shapes": {"one": {"verdict": "fail"}}})
    assert again != key
    third = planned(repository, champions, store)
    assert third.steps[again].state == "cached"
    assert (first.steps[key].params["confidence"], third.steps[again].params["confidence"]) == (0.99, 0.995)
    assert [e["key"] for e in third.steps[again].unkeyed["earlier"]] == [key]


def one_champion() -> Champions:
    return Champions({ENGINE: Champion(ENGINE, "tiny", "1", "d" * 64, "b" * 64, "run")}, "artifacts", "store")


def comparison_step(repository: Path, store: Store) -> Step:
    (repository / "recipes/tiny.yaml").write_text(RECIPE + REGRESSION, encoding="utf-8")
    plan = planned(repository, one_champion(), store)
    return plan.steps[next(e for e in plan.engines if e.id == ENGINE).steps["compare_champion"]]


def test_more_time_is_another_attempt_and_no_new_start(repository: Path) -> None:
    store = Store(repository / "store")
    comparison_step(repository, store)
    key = publish(store, planned(repository, one_champion(), store), UNDECIDED)
    recipe = repository / "recipes/tiny.yaml"
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text.replace("latency: 5%", "latency: 5%, max_s: 100"), encoding="utf-8")
    longer = planned(repository, one_champion(), store)
    again = longer.steps[next(e for e in longer.engines if e.id == ENGINE).steps["compare_champion"]]
    assert (again.params["attempt"], again.params["confidence"], again.unkeyed["max_s"]) == (1, 0.995, 100.0)
    assert again.unkeyed["earlier"][0]["key"] == key


UNDECIDED = {"method": "measured", "shapes": {"one": {"verdict": "inconclusive"}}}


@pytest.mark.parametrize(
    ("report", "attempt", "confidence"),
    [
        (UNDECIDED, 1, 0.995),
        ({"method": "history"}, 1, 0.99),  # nothing was measured: nothing to pay for
        ({"method": "identical"}, 0, 0.99),
        ({"method": "measured", "shapes": {"a": {"verdict": "fail"}, "b": {"verdict": "inconclusive"}}}, 0, 0.99),
    ],
)
def test_a_regression_that_was_found_stays_found(
    repository: Path, report: Any, attempt: int, confidence: float
) -> None:
    """A fail at one shape is not measured again because another shape was left open."""
    store = Store(repository / "store")
    comparison_step(repository, store)
    publish(store, planned(repository, one_champion(), store), report)
    params = comparison_step(repository, store).params
    assert (params["attempt"], params["confidence"]) == (attempt, confidence)
    assert comparison_step(repository, store).unkeyed["by_history"] is (report["method"] == "history")


def test_a_version_that_somebody_registered_by_hand_is_no_champion_to_run(repository: Path) -> None:
    stranger = Champion(ENGINE, "tiny", "7", "", "", "")
    places = {"artifacts": str(repository), "store": str(repository / "store"), "tracking_uri": None}
    told = "version 7 of tiny is no engine that Engineworks registered"
    with pytest.raises(ChampionError, match=told), engine_of(stranger, places):
        pass


def test_what_a_p99_needs_is_no_part_of_the_conditions(repository: Path) -> None:
    def conditions(text: str) -> str:
        (repository / "recipes/tiny.yaml").write_text(text, encoding="utf-8")
        plan = planned(repository, Champions(), Store(repository / "store"))
        return conditions_of(plan.steps[plan.engines[0].steps["measure"]].document)

    text = (repository / "recipes/tiny.yaml").read_text(encoding="utf-8")
    first = conditions(text)
    assert conditions(f"{text}  budget: {{one: {{p99_ms: 5}}}}\n") == first
    assert conditions(text.replace("one: {batch: 1}", "one: {batch: 2}")) != first
