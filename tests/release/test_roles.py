"""Where keys are required, an engine is loaded only in the role that it was released for, and only while it has it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from by_hand import by_hand
from release_keys import trust_mine

import engineworks
from engineworks.builds.results import BuildResult, EngineResult
from engineworks.engines.signing import Signer, Trust, read_signer
from engineworks.engines.statements import KnownStatements, Statement
from engineworks.engines.strict_json import typed
from engineworks.errors import EngineworksError, InputError, TrustError
from engineworks.host.file_digests import digest_file
from engineworks.model.ort import FORMS, sign
from engineworks.package.package import write_package
from engineworks.package.triton_engines import open_packaged
from engineworks.release.promotion import ReleaseResult, champions_before, release_build, roll_back
from engineworks.release.sources import champion_engines
from engineworks.settings import KNOWN_STATEMENTS
from engineworks.tracking.aliases import Slot
from engineworks.tracking.runs import Tracking, default_uri, open_tracking

mlflow = pytest.importorskip("mlflow")
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

NUMBERS = count()
"""Registered models of the tests, which share one database."""

FEEDS = {"image": np.ones((2, 1, 4, 4), np.float32)}


class World:
    """A recipe whose registered model is the test's own, a key pair, and its releases."""

    def __init__(self, built: Any, result: BuildResult, trust: Trust, folder: Path, model: str) -> None:
        recipe = built.plan.loaded.recipe
        recipe = recipe.model_copy(update={"release": recipe.release.model_copy(update={"model": model})})
        self.plan = replace(built.plan, loaded=replace(built.plan.loaded, recipe=recipe))
        self.trust, self.folder, self.model, self.slot = trust, folder, model, Slot(model, "cpu", "int8")
        fp32, int8 = (built.engine(f"tiny/{precision}/cpu") for precision in ("fp32", "int8"))
        self.old, self.fp32 = replace(result, engines=(int8,)), replace(result, engines=(fp32,))
        self.new = replace(result, engines=(self._another(int8),))
        self.tracking: Tracking = open_tracking(built.settings.artifacts, None)
        self.registry = self.tracking.registry()
        self.client = by_hand(self.tracking)

    def _another(self, engine: EngineResult) -> EngineResult:
        """The engine with one more entry of metadata: other bytes, the same outputs."""
        folder = self.folder / "another"
        assert engine.path is not None
        assert engine.passport is not None
        shutil.copytree(engine.path.parent, folder)
        for file in (folder, *folder.iterdir()):
            file.chmod(0o755)
        sign(folder / "engine", FORMS[0])
        sidecar = replace(engine.sidecar, sha256=digest_file(folder / "engine"))
        (folder / "engine.json").write_text(json.dumps(sidecar.to_json()), encoding="utf-8")
        body = json.loads(engine.passport.read_text(encoding="utf-8"))
        for name, facts in body["engine"]["files"].items():
            facts["sha256"] = digest_file(folder / name)
        body["engine"]["sha256"] = sidecar.sha256
        passport = self.folder / "passport" / "passport.json"
        passport.parent.mkdir()
        passport.write_text(json.dumps(key().sign(body)), encoding="utf-8")
        return replace(engine, path=folder / "engine", sidecar=sidecar, passport=passport)

    def release(self, result: BuildResult) -> ReleaseResult:
        return release_build(self.plan, result, self.tracking, champions_before(self.plan.loaded, self.registry))

    def roll_back(self) -> str:
        (moved,) = roll_back(self.plan.loaded, self.registry, "*/int8/*")
        return moved.message

    def tag(self, number: int) -> str:
        return f"{self.slot.statement_tags}{number}"

    def statement(self, number: int) -> Statement:
        tags = self.client.get_registered_model(self.model).tags
        return typed(Statement, json.loads(tags[self.tag(number)]), "tag")

    def restate(self, statement: Statement, **changes: Any) -> Statement:
        """The statement with changes, signed again and put into its tag."""
        document = {**statement.to_json(), **changes}
        document.pop("signature")
        signed = typed(Statement, key().sign(document), "tag")
        self.client.set_registered_model_tag(self.model, self.tag(signed.number), json.dumps(signed.to_json()))
        return signed

    def stored(self, precision: str = "int8") -> Path:
        """The folder of the champion's MLflow model."""
        version = self.registry.get(Slot(self.model, "cpu", precision))
        assert version is not None
        uri = self.client.get_model_version_download_uri(self.model, str(version.version))
        return Path(uri.removeprefix("file://"))

    def load(self) -> None:
        engineworks.load(self.slot.uri()).close()

    def load_by_mlflow(self) -> None:
        mlflow.pyfunc.load_model(self.slot.uri())

    def package(self) -> Path:
        folder = self.folder / f"champions-{len(list(self.folder.iterdir()))}"
        engines, _ = champion_engines(self.plan.loaded, self.registry, "*/int8/*", folder)
        return write_package(self.plan.loaded, engines, folder / "models")[0]

    def refused(self, message: str, *loaders: str) -> None:
        for name in loaders or ("load", "load_by_mlflow", "package"):
            with pytest.raises(TrustError, match=message):
                getattr(self, name)()


def key() -> Signer:
    signer = read_signer()
    assert signer is not None
    return signer


@pytest.fixture
def world(recorded: tuple[Any, BuildResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    built, result = recorded
    monkeypatch.delenv("ENGINEWORKS_STORE", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", default_uri(built.settings.artifacts))  # MLflow's own loader reads it
    monkeypatch.setenv("ENGINEWORKS_ARTIFACTS", str(built.settings.artifacts))
    monkeypatch.setenv(KNOWN_STATEMENTS, str(tmp_path / "known"))
    monkeypatch.chdir(built.root)
    return World(built, result, trust_mine(tmp_path, monkeypatch), tmp_path, f"roles-{next(NUMBERS)}")


def test_every_change_of_a_champion_is_a_signed_statement_that_names_the_one_before(world: World) -> None:
    assert {e.action for e in world.release(world.old).engines} == {"promoted"}
    assert {e.action for e in world.release(world.old).engines} == {"already champion"}
    world.release(world.new)
    assert world.roll_back() == "champion-cpu-int8 moved back from version 2 to version 1"
    first, second, third = (world.statement(number) for number in (1, 2, 3))
    with pytest.raises(KeyError):
        world.statement(4)
    assert (first.recipe, first.role, first.verdict, first.previous) == (
        "tiny",
        (world.model, "int8", "cpu"),
        "pass",
        None,
    )
    assert (second.previous, third.previous) == (first.digest, second.digest)
    assert first.engine == third.engine != second.engine
    for statement in (first, second, third):
        assert world.trust.check(statement.to_json(), "it")
    loaded = engineworks.load(world.slot.uri())
    assert [spec.name for spec in (*loaded.inputs, *loaded.outputs)] == ["image", "logits"]
    assert loaded.run(FEEDS)["logits"].shape == (2, 3)
    np.testing.assert_array_equal(loaded.predict(FEEDS)["logits"], loaded.run(FEEDS)["logits"])
    loaded.close()
    world.load_by_mlflow()
    open_packaged(world.package()).close()


def test_without_the_key_nothing_is_released_or_rolled_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.release(world.old)
    world.release(world.new)
    monkeypatch.delenv("ENGINEWORKS_SIGNING_KEY")
    for action in (world.roll_back, lambda: world.release(world.old)):
        with pytest.raises(
            InputError, match=r"asks for signed releases, and ENGINEWORKS_SIGNING_KEY is not set; .*nothing was changed"
        ):
            action()
    trust_mine(world.folder / "other", monkeypatch)
    monkeypatch.setenv("ENGINEWORKS_TRUSTED_KEYS", str(world.folder / "keys" / "mine.pub"))
    with pytest.raises(InputError, match="which ENGINEWORKS_TRUSTED_KEYS does not name"):
        world.roll_back()
    assert world.registry.versions_at("champion", [world.slot])[world.slot] == 2
    world.load()


def test_a_failed_engine_and_the_signed_files_of_another_precision_are_refused(world: World) -> None:
    world.release(world.old)
    world.release(world.fp32)
    passport = world.stored() / "data" / "files" / "passport.json"
    body = json.loads(passport.read_text())
    body["verdict"]["verdict"] = "fail"
    passport.write_text(json.dumps(key().sign(body)))
    world.refused("the verdict of tiny/int8/cpu is fail")
    place, other = world.stored() / "data" / "files", world.stored("fp32") / "data" / "files"
    shutil.rmtree(place)
    shutil.copytree(other, place)
    world.refused("engineworks.engine tiny/int8/cpu, the engine's passport is for tiny/fp32/cpu")
    for name, value in (
        ("engine", "tiny/fp32/cpu"),
        ("engine_digest", digest_file(place / "engine")),
        ("precision", "fp32"),
    ):
        world.client.set_model_version_tag(world.model, "1", f"engineworks.{name}", value)
    world.refused("is asked for as champion-cpu-int8, and holds tiny/fp32/cpu", "load", "load_by_mlflow")


def test_an_older_state_of_the_registry_is_refused_by_a_host_that_has_seen_a_newer_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.release(world.old)
    old_package = world.package()
    open_packaged(old_package).close()
    world.release(world.new)
    world.client.set_registered_model_alias(world.model, world.slot.alias("champion"), "1")
    world.refused("is for engine [0-9a-f]{64}, the engine's passport is for [0-9a-f]{64}; another engine was put in")
    world.client.delete_registered_model_tag(world.model, world.tag(2))
    message = "statement 1 of .* is older than number 2, which was seen here before"
    world.refused(message)
    with pytest.raises(TrustError, match=message):
        open_packaged(old_package)
    with pytest.raises(TrustError, match=message):
        world.roll_back()
    monkeypatch.setenv(KNOWN_STATEMENTS, str(world.folder / "another host"))
    world.load()  # what a registry that withholds news can still do, to a host that has not seen them


def test_a_statement_with_a_gap_or_another_predecessor_is_refused(world: World) -> None:
    world.release(world.old)
    world.release(world.new)
    second = world.statement(2)
    world.restate(second, previous="0" * 64)
    world.refused("follows another statement 1")
    world.client.delete_registered_model_tag(world.model, world.tag(2))
    third = world.restate(second, number=3)
    world.refused("is followed by number 3", "load")
    world.client.delete_registered_model_tag(world.model, world.tag(1))
    world.client.set_registered_model_tag(world.model, world.tag(4), json.dumps(third.to_json()))
    world.refused("tag .*: holds statement 3 of", "load")
    world.client.delete_registered_model_tag(world.model, world.tag(4))
    world.refused(
        "does not go on from number 2, which was seen here before: statements between them are missing", "load"
    )
    world.restate(third, number=2, previous=world.statement(3).digest)
    world.client.delete_registered_model_tag(world.model, world.tag(3))
    world.refused("does not go on from number 2, which was seen here before: another statement has its number", "load")


OTHERS: tuple[tuple[dict[str, Any] | str, str], ...] = (
    ({"verdict": "fail"}, "the verdict of statement 1 of .* is fail"),
    ({"recipe": "other"}, "is for recipe other, the engine's passport is for tiny"),
    ({"model": "other"}, "statement 1 of other int8/cpu is of another registered model"),
    ({"target": "gpu"}, "is for target gpu, the engine's passport is for cpu"),
    ({"previous": "0" * 64}, "statement 1 of .* names a wrong predecessor"),
    ({"number": 2, "previous": None}, "tag .*: holds statement 2 of"),
    ("{", "tag .*: is not JSON"),
    ('{"statement": 1, "statement": 1}', "tag .*: duplicate key 'statement'"),
    ('{"statement": 2}', "tag .*: 'statement' is not as documented: input should be 1"),
    ('{"statement": 1}', "tag .*: 'model' is missing"),
    ("[" * 5000 + "]" * 5000, "tag .*: is nested deeper than 32 levels"),
)
"""What a key's holder may have signed, or anybody written, in place of a statement."""


def test_statements_for_something_else_or_without_sense_or_signature_are_refused(world: World) -> None:
    world.release(world.old)
    right = world.statement(1)
    for given, message in OTHERS:
        if isinstance(given, dict):
            document = {k: v for k, v in {**right.to_json(), **given}.items() if k != "signature"}
            given = json.dumps(key().sign(document))
        world.client.set_registered_model_tag(world.model, world.tag(1), given)
        world.refused(message, "load")
    unsigned = {k: v for k, v in right.to_json().items() if k != "signature"}
    world.client.set_registered_model_tag(world.model, world.tag(1), json.dumps(unsigned))
    world.refused("statement 1 of .*: is not signed, and ENGINEWORKS_TRUSTED_KEYS asks for a signature")
    world.client.delete_registered_model_tag(world.model, world.tag(1))
    world.refused("holds no statement of a release; run 'engineworks release' where the signing key is")


def test_a_version_whose_tag_differs_from_its_passport_is_refused(world: World) -> None:
    world.release(world.old)
    wrong = {"engine": "tiny/fp32/cpu", "engine_digest": "0" * 64, "precision": "fp32", "target": "gpu", "recipe": "o",
             "verdict": "fail", "signed_by": "0" * 16}  # fmt: skip
    for tag, value in wrong.items():
        right = world.client.get_model_version(world.model, "1").tags[f"engineworks.{tag}"]
        world.client.set_model_version_tag(world.model, "1", f"engineworks.{tag}", value)
        loaders = ("load", "load_by_mlflow", "package") if tag == "verdict" else ("load",)
        world.refused(f"by its tag it is for engineworks.{tag} {value}, the engine's passport is for ", *loaders)
        world.client.set_model_version_tag(world.model, "1", f"engineworks.{tag}", right)
    world.load()


def test_a_file_beside_the_engine_and_an_mlmodel_that_names_other_code_are_refused(world: World) -> None:
    world.release(world.old)
    mlmodel = world.stored() / "MLmodel"
    text = mlmodel.read_text()
    ran = world.folder / "ran"
    code = world.stored() / "code"
    code.mkdir()
    (code / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    for altered in (
        text.replace("engineworks.tracking.engine_model", "evil").replace("code: null", "code: code"),
        text.replace("code: null", "code: code"),
        text.replace("python_function:", "sklearn: {}\n  python_function:"),
        text.replace("data: data/files", "data: data"),
        "flavors: [",
    ):
        mlmodel.write_text(altered)
        world.refused("MLmodel: (names something else than Engineworks' loader|cannot be read)", "load")
    assert not ran.exists()
    mlmodel.write_text(text)
    world.load()
    (world.stored() / "data" / "files" / "libonnx.so").write_bytes(b"")
    world.refused(r"libonnx\.so: is no file of the engine")


def test_of_two_statements_with_one_number_the_second_gets_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another host whose lock is not ours writes its statement 2 straight after ours."""
    world.release(world.old)
    client = world.registry._client
    write: Callable[..., None] = client.set_registered_model_tag
    theirs: list[str] = []

    def race(model: str, name: str, value: str) -> None:
        write(model, name, value)
        if name == world.tag(2) and not theirs:
            theirs.append(json.dumps(key().sign({**json.loads(value), "engine": "0" * 64})))
            write(model, name, theirs[0])

    monkeypatch.setattr(client, "set_registered_model_tag", race)
    released = release_build(world.plan, world.new, _with(world.tracking, world.registry), {"tiny/int8/cpu": 1})
    assert released.engines[0].action == "promoted"
    assert json.dumps(world.statement(2).to_json()) == theirs[0]
    assert world.statement(3).previous == world.statement(2).digest
    world.load()


def _with(tracking: Tracking, registry: Any) -> Any:
    """The tracking store whose registry is this one."""

    class Same:
        def registry(self) -> Any:
            return registry

        def __getattr__(self, name: str) -> Any:
            return getattr(tracking, name)

    return Same()


@pytest.mark.slow
def test_numbers_go_on_after_the_registered_model_was_deleted(world: World) -> None:
    world.release(world.old)
    world.client.delete_registered_model(world.model)
    world.release(world.new)
    assert world.statement(2).number == 2
    world.load()


def test_a_rollback_signs_only_what_was_released_before(world: World) -> None:
    world.release(world.old)
    world.release(world.new)
    world.client.set_model_version_tag(world.model, "1", "engineworks.engine_digest", "0" * 64)
    with pytest.raises(
        TrustError, match="no statement says that engine 000000000000… was released; nothing was changed"
    ):
        world.roll_back()
    assert world.registry.versions_at("champion", [world.slot])[world.slot] == 2


@pytest.mark.slow
def test_what_this_host_has_seen_is_never_forgotten_without_a_word(world: World) -> None:
    world.release(world.old)
    known = KnownStatements(world.folder / "known")
    (place,) = (world.folder / "known" / world.model).glob("int8*.json")
    text = place.read_text()
    assert known.newest((world.model, "int8", "cpu")) == world.statement(1)
    place.write_text("{")
    world.refused(r"int8@cpu\.json: is not JSON")
    place.write_text(text)
    world.load()
    shutil.rmtree(world.folder / "known")
    (world.folder / "known").write_text("")
    world.refused("the newest release cannot be remembered: .*let ENGINEWORKS_KNOWN_STATEMENTS name a folder")


@pytest.mark.slow
def test_without_keys_releases_are_stated_unsigned_and_nothing_is_asked_of_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ENGINEWORKS_SIGNING_KEY")
    monkeypatch.delenv("ENGINEWORKS_TRUSTED_KEYS")
    world.release(world.old)
    assert world.statement(1).signature is None
    world.client.delete_registered_model_tag(world.model, world.tag(1))
    world.load()
    world.load_by_mlflow()
    open_packaged(world.package()).close()


@pytest.mark.parametrize(
    "uri", ["digits", "runs:/1/model", "models:/a", "models:/a@b/c", "models:/a/0", "models:/a/-1"]
)
def test_a_uri_that_names_no_registered_engine_is_told(uri: str) -> None:
    with pytest.raises(InputError, match="names no registered engine; write models:/digits@champion-cpu-fp16"):
        engineworks.load(uri)


@pytest.mark.slow
def test_a_model_alias_or_version_that_does_not_exist_is_told(world: World) -> None:
    world.release(world.old)
    for uri, message in (
        ("models:/none@champion-cpu-int8", "there is no registered model 'none' in MLflow"),
        (
            f"models:/{world.model}@champion-gpu-int8",
            "has no alias champion-gpu-int8; its aliases: candidate-cpu-int8, ",
        ),
        (f"models:/{world.model}/9", "has no version 9"),
    ):
        with pytest.raises(EngineworksError, match=message) as caught:
            engineworks.load(uri)
        assert caught.value.exit_code == 2
    engineworks.load(f"models:/{world.model}/1").close()
