"""A release: what passed becomes champion and an MLflow model that runs; what did not changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from by_hand import by_hand
from release_keys import trust_mine

from engineworks.builds.results import BuildResult, EngineResult, EngineVerdict
from engineworks.cli import run_command
from engineworks.errors import InputError, RunError, TrustError
from engineworks.measure.check import Check
from engineworks.measure.gates.gates import Verdict
from engineworks.measure.waivers import apply_waivers
from engineworks.package.package import write_package
from engineworks.recipe.recipe import Waiver
from engineworks.release.promotion import ReleaseResult, champions_before, example_feeds, release_build, roll_back
from engineworks.release.sources import champion_engines
from engineworks.tracking.aliases import Slot
from engineworks.tracking.runs import Tracking, default_uri, open_tracking

mlflow = pytest.importorskip("mlflow")
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

INT8 = Slot("tiny", "cpu", "int8")


@pytest.fixture
def world(recorded: tuple[Any, BuildResult], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, BuildResult, Tracking]:
    """A recorded build. Tests give the recipe a registered model of their own, so that they share one database."""
    built, result = recorded
    for name in ("ENGINEWORKS_STORE", "ENGINEWORKS_SIGNING_KEY", "ENGINEWORKS_TRUSTED_KEYS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", default_uri(built.settings.artifacts))  # MLflow's own loader reads it
    monkeypatch.setenv("ENGINEWORKS_ARTIFACTS", str(built.settings.artifacts))
    monkeypatch.chdir(built.root)
    return built, result, open_tracking(built.settings.artifacts, None)


def named(built: Any, model: str) -> Any:
    """The plan with another registered model; the recipe's name goes along, for it owns the model."""
    recipe = built.plan.loaded.recipe
    recipe = recipe.model_copy(update={"release": recipe.release.model_copy(update={"model": model})})
    return replace(built.plan, loaded=replace(built.plan.loaded, recipe=recipe))


def release(plan: Any, result: BuildResult, tracking: Tracking) -> ReleaseResult:
    return release_build(plan, result, tracking, champions_before(plan.loaded, tracking.registry()))


def judged(result: BuildResult, word: EngineVerdict, sentence: str = "0.5 is too little.") -> BuildResult:
    """The same build where int8 was evaluated differently."""

    def change(engine: EngineResult) -> EngineResult:
        checks = (Check("cosine[logits]", "fail" if word == "fail" else "inconclusive", sentence),)
        return replace(engine, verdict=word, checks=checks) if "/int8/" in engine.id else engine

    return replace(result, engines=tuple(map(change, result.engines)))


def test_what_passed_is_champion_and_a_second_release_changes_nothing(world: Any) -> None:
    built, result, tracking = world
    first = release(named(built, "twice"), result, tracking)
    assert [e.action for e in first.engines] == ["promoted", "promoted"]
    assert first.engines[0].message == "champion-cpu-fp32 is version 1, the first"
    assert first.exit_code() == 0
    second = release(named(built, "twice"), result, tracking)
    assert [(e.action, e.version) for e in second.engines] == [("already champion", 1), ("already champion", 2)]
    assert json.dumps(second.to_json())


@pytest.mark.parametrize(
    ("word", "code"), [("fail", 1), ("inconclusive", 3), ("unmeasured", 3), ("failed", 0)], ids=str
)
def test_what_did_not_pass_moves_nothing_and_gets_no_version(world: Any, word: EngineVerdict, code: int) -> None:
    built, result, tracking = world
    plan = named(built, f"no-{word}")
    found = release(plan, judged(result, word), tracking)
    assert [(e.action, e.version) for e in found.engines] == [("promoted", 1), ("kept", None)]
    assert found.engines[1].message == f"{word}: there is no champion-cpu-int8"
    if word != "failed":  # its exit code is that of the step
        assert found.exit_code() == code
    assert tracking.registry().get(Slot(f"no-{word}", "cpu", "int8"), "candidate") is None


def test_a_failing_candidate_leaves_the_champion_where_it_is(world: Any) -> None:
    built, result, tracking = world
    plan = named(built, "stays")
    release(plan, result, tracking)
    found = release(plan, judged(result, "fail"), tracking)
    assert found.engines[1].message == "fail: champion-cpu-int8 stays at version 2"
    assert tracking.registry().get(Slot("stays", "cpu", "int8")).version == 2
    assert found.exit_code() == 1


def test_who_was_judged_against_an_old_champion_is_overtaken(world: Any) -> None:
    built, result, tracking = world
    plan = named(built, "overtaken")
    before = champions_before(plan.loaded, tracking.registry())
    other = replace(
        result, engines=tuple(replace(e, sidecar=replace(e.sidecar, sha256="f" * 64)) for e in result.engines)
    )
    release(plan, other, tracking)
    late = release_build(plan, result, tracking, before)
    assert {e.action for e in late.engines} == {"overtaken"}
    assert "another release moved champion-cpu-fp32 meanwhile" in late.engines[0].message
    assert late.exit_code() == 3
    assert [e.action for e in release(plan, result, tracking).engines] == ["promoted", "promoted"]
    moved = roll_back(plan.loaded, tracking.registry(), "*/int8/*")
    assert [(m.id, m.message) for m in moved] == [
        ("tiny/int8/cpu", "champion-cpu-int8 moved back from version 4 to version 2")
    ]
    both = roll_back(plan.loaded, tracking.registry(), None)
    assert [(m.action, m.message) for m in both] == [
        ("promoted", "champion-cpu-fp32 moved back from version 3 to version 1"),
        ("kept", "champion-cpu-int8 stays at version 2: there is none before it"),
    ]
    with pytest.raises(InputError, match=r"no champion of tiny that '\*/int8/\*' selects has one before it"):
        roll_back(plan.loaded, tracking.registry(), "*/int8/*")
    with pytest.raises(InputError, match="matches no engine of tiny"):
        roll_back(plan.loaded, tracking.registry(), "*/int9/*")


def other_engine(result: BuildResult, letter: str) -> BuildResult:
    """The same build, with other bytes by its sidecars: a version of its own."""
    engines = (replace(e, sidecar=replace(e.sidecar, sha256=letter * 64)) for e in result.engines)
    return replace(result, engines=tuple(engines))


def test_a_champion_that_was_deleted_is_rolled_back_and_never_called_the_first(world: Any) -> None:
    built, result, tracking = world
    plan, client = named(built, "deleted"), by_hand(tracking)
    release(plan, other_engine(result, "e"), tracking)
    release(plan, other_engine(result, "f"), tracking)
    client.delete_model_version("deleted", "4")
    kept = release(plan, judged(result, "fail"), tracking).engines[1]
    assert kept.message == "fail: champion-cpu-int8 is missing: version 4 was deleted in MLflow"
    moved = roll_back(plan.loaded, tracking.registry(), "*/int8/*")
    assert [(m.action, m.before, m.version, m.message) for m in moved] == [
        ("promoted", 4, 2,
         "champion-cpu-int8 moved back from version 4 to version 2; version 4 was deleted in MLflow")
    ]  # fmt: skip
    client.delete_model_version("deleted", "2")
    both = roll_back(plan.loaded, tracking.registry(), None)
    assert [(m.action, m.message) for m in both][1] == (
        "kept",
        "champion-cpu-int8 is missing (version 2 was deleted in MLflow): there is none before it; "
        "run 'engineworks release'",
    )
    with pytest.raises(InputError, match=r"has one before it: tiny/int8/cpu: .* \(version 2 was deleted in MLflow\)"):
        roll_back(plan.loaded, tracking.registry(), "*/int8/*")
    found = release(plan, result, tracking).engines[1]
    assert found.message == "champion-cpu-int8 is version 6; before it, version 2 was deleted in MLflow"
    client.delete_model_version("deleted", "6")
    words = "no version before it is left (version 2 was deleted in MLflow)"
    with pytest.raises(InputError, match=r"no version before it is left \(version 2 was deleted in MLflow\)"):
        roll_back(plan.loaded, tracking.registry(), "*/int8/*")
    assert words in roll_back_words(plan, tracking)


def roll_back_words(plan: Any, tracking: Tracking) -> str:
    with pytest.raises(InputError) as caught:
        roll_back(plan.loaded, tracking.registry(), "*/int8/*")
    return str(caught.value)


def test_where_nothing_was_released_or_the_model_was_deleted_a_rollback_says_so(world: Any) -> None:
    built, result, tracking = world
    plan = named(built, "model-gone")
    assert "there is no registered model 'model-gone' in MLflow" in roll_back_words(plan, tracking)
    release(plan, judged(result, "fail"), tracking)
    assert "there is no champion-cpu-int8: it was never released" in roll_back_words(plan, tracking)
    release(plan, result, tracking)
    by_hand(tracking).delete_registered_model("model-gone")
    gone = "registered model 'model-gone' was deleted in MLflow, with version 2, its champion"
    assert f"there is no champion-cpu-int8: {gone}" in roll_back_words(plan, tracking)
    assert gone in {c.lost for c in tracking.champions("tiny")}
    cpu = replace(result, engines=result.engines[:1])
    assert release(plan, cpu, tracking).engines[0].message == (
        "champion-cpu-fp32 is version 1; before it, " + gone.replace("version 2", "version 1")
    )
    found = release(plan, result, tracking)  # the model is there again, without this slot's champions
    assert found.engines[1].message == f"champion-cpu-int8 is version 2; before it, {gone}"
    assert gone not in {c.lost for c in tracking.champions("tiny")}


def test_verify_and_inspect_say_whether_the_latest_build_is_the_champion(
    world: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    built, result, tracking = world
    plan, client = named(built, "which"), by_hand(tracking)

    def said() -> str:
        assert run_command(["verify", "tiny/int8/cpu"]) == 0
        verified = capsys.readouterr().out.splitlines()[-1].removeprefix("this is ")
        assert verified.startswith("the latest build; ")
        assert run_command(["inspect", "tiny/int8/cpu", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["which"] == verified
        assert run_command(["verify", "tiny/int8/cpu", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["engines"][0]["which"] == verified
        return verified

    release(plan, other_engine(result, "e"), tracking)
    release(plan, result, tracking)
    assert "it is the champion too, version 4 of which" in said()
    roll_back(plan.loaded, tracking.registry(), None)
    assert f"the champion is another engine: version 2 of which, sha256 {'e' * 12}" in said()
    client.delete_model_version("which", "2")
    assert "the champion of which is missing: version 2 was deleted in MLflow" in said()


def test_a_package_of_champions_says_which_are_missing(world: Any, tmp_path: Path) -> None:
    built, result, tracking = world
    plan = named(built, "lost")
    release(plan, result, tracking)
    by_hand(tracking).delete_model_version("lost", "2")
    shutil.rmtree(stored_engine(tracking, "lost", "fp32").parent)
    none, left = champion_engines(plan.loaded, tracking.registry(), None, tmp_path)
    assert none == []
    assert [one.exit_code for one in left] == [3, 3]
    assert "the files of version 1 are missing in MLflow" in left[0].message
    assert "version 2 was deleted in MLflow" in left[1].message


def test_a_waived_pass_is_released_and_its_version_says_so(world: Any) -> None:
    built, result, tracking = world
    waiver = Waiver(check="cosine[logits]", owner="ana@x.org", reason="old camera", expires=date(2999, 1, 1))
    (int8,) = (e for e in judged(result, "fail").engines if "/int8/" in e.id)
    verdict = apply_waivers(Verdict("fail", int8.checks), [waiver], int8.id, date(2027, 1, 1))
    waived = replace(int8, verdict=verdict.verdict, checks=verdict.checks)
    found = release(named(built, "waived"), replace(result, engines=(waived,)), tracking)
    assert "waived: cosine[logits] waived by ana@x.org until 2999-01-01: old camera" in found.engines[0].message
    version = tracking.registry().get(Slot("waived", "cpu", "int8"))
    assert version.tags["engineworks.verdict"] == "pass"
    assert "ana@x.org" in version.tags["engineworks.waived"]


def test_the_champion_is_an_mlflow_model_that_gives_the_engines_outputs(world: Any) -> None:
    built, result, tracking = world
    release(named(built, "runs"), result, tracking)
    model = mlflow.pyfunc.load_model("models:/runs@champion-cpu-int8")
    feeds = example_feeds(built.plan)
    assert feeds["image"].shape == (2, 1, 4, 4)
    from engineworks.engines.backends import onnxruntime

    session = onnxruntime.load(result.engines[1].path, {})
    np.testing.assert_array_equal(model.predict(feeds)["logits"], session.run(feeds)["logits"])
    np.testing.assert_array_equal(model.input_example["image"], feeds["image"])
    assert [t.to_dict()["tensor-spec"] for t in model.metadata.signature.inputs.inputs] == [
        {"dtype": "float32", "shape": (-1, 1, 4, 4)}
    ]
    assert [t.name for t in model.metadata.signature.outputs.inputs] == ["logits"]
    assert model.metadata.get_model_info().run_id
    with pytest.raises(Exception, match="float64 does not match expected dtype float32"):
        model.predict({"image": feeds["image"].astype(np.float64)})


def stored_engine(tracking: Tracking, model: str, precision: str = "int8") -> Path:
    version = tracking.registry().get(Slot(model, "cpu", precision))
    assert version is not None
    uri = by_hand(tracking).get_model_version_download_uri(model, str(version.version))
    return Path(uri.removeprefix("file://")) / "data" / "files" / "engine"


def test_a_model_that_was_tampered_with_is_not_loaded(world: Any, alter: Callable[[Path], None]) -> None:
    built, result, tracking = world
    release(named(built, "tampered"), result, tracking)
    mlflow.pyfunc.load_model("models:/tampered@champion-cpu-int8")
    alter(stored_engine(tracking, "tampered"))
    with pytest.raises(TrustError, match="engine: was altered"):
        mlflow.pyfunc.load_model("models:/tampered@champion-cpu-int8")


def test_where_keys_are_trusted_a_model_must_be_signed_by_one(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, result, tracking = world
    release(named(built, "unsigned"), result, tracking)
    trust_mine(tmp_path, monkeypatch)
    with pytest.raises(TrustError, match="is not signed, and ENGINEWORKS_TRUSTED_KEYS asks for a signature"):
        mlflow.pyfunc.load_model("models:/unsigned@champion-cpu-int8")
    signed = replace(result, engines=tuple(built.engine(e.id) for e in built.plan.engines))
    release(named(built, "signed"), signed, tracking)
    assert mlflow.pyfunc.load_model("models:/signed@champion-cpu-int8").predict(example_feeds(built.plan))[
        "logits"
    ].shape == (2, 3)
    assert tracking.registry().get(Slot("signed", "cpu", "int8")).tags["engineworks.signed_by"]
    trust_mine(tmp_path / "another", monkeypatch)
    with pytest.raises(TrustError, match="which is not trusted here"):
        mlflow.pyfunc.load_model("models:/signed@champion-cpu-int8")


def test_on_a_host_of_another_target_the_error_says_so(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    built, result, tracking = world
    release(named(built, "elsewhere"), result, tracking)
    monkeypatch.setattr("engineworks.engines.backends.onnxruntime.why_not_run", lambda _: "there is no such GPU here")
    with pytest.raises(RunError) as caught:
        mlflow.pyfunc.load_model("models:/elsewhere@champion-cpu-int8")
    assert str(caught.value) == (
        "tiny/int8/cpu cannot be run here: there is no such GPU here; load it on a host of target 'cpu', "
        "or load another engine of this model"
    )


def test_the_commands_release_and_roll_back(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A recorded build with nothing to do needs no flow."""
    _, _, tracking = world
    assert run_command(["release", "recipes/tiny.yaml", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["model"] == "tiny"
    assert [(e["id"], e["action"]) for e in said["releases"]] == [
        ("tiny/fp32/cpu", "promoted"), ("tiny/int8/cpu", "promoted")
    ]  # fmt: skip
    assert run_command(["rollback", "recipes/tiny.yaml"]) == 2
    assert "no champion of tiny has one before it; nothing was changed" in capsys.readouterr().err
    assert tracking.registry().get(INT8).version == 2


def test_the_champions_of_the_registry_can_be_packaged(
    world: Any, tmp_path: Path, alter: Callable[[Path], None]
) -> None:
    built, result, tracking = world
    plan, into = named(built, "packaged"), iter(range(9))

    def champions() -> tuple[Any, Any]:
        return champion_engines(plan.loaded, tracking.registry(), "*/int8/*", tmp_path / str(next(into)))

    none, left = champions()
    assert none == []
    assert [(one.id, one.message) for one in left] == [("tiny/int8/cpu", "has no champion: it was never released")]
    release(plan, result, tracking)
    engines, _ = champions()
    (model,) = write_package(plan.loaded, engines, tmp_path / "models")
    assert model.name == "packaged-int8-cpu"
    assert (model / "1" / "model.onnx").read_bytes() == result.engines[1].path.read_bytes()  # type: ignore[union-attr]
    alter(stored_engine(tracking, "packaged"))
    with pytest.raises(TrustError, match="was altered"):
        champions()
