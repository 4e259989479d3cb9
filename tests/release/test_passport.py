"""Passports: all that is known of an engine; an engine that is not what its passport says is not loaded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from release_keys import trust_mine

from engineworks.cli import run_command
from engineworks.commands.verification import verify_anything
from engineworks.engines.engine_session import load_engine
from engineworks.engines.passport import read_passport, verify_folder
from engineworks.engines.signing import Trust
from engineworks.errors import TrustError
from engineworks.host.file_digests import digest_file


def folder_with_passport(built: Any, to: Path) -> Path:
    engine = built.engine()
    shutil.copytree(engine.path.parent, to)
    to.chmod(0o755)
    (to / "manifest.json").unlink()
    shutil.copy(engine.passport, to / "passport.json")
    (to / "passport.json").chmod(0o644)
    return to


def test_a_passport_says_all_that_is_known(built: Any) -> None:
    engine = built.engine()
    body = read_passport(engine.passport, Trust()).body
    recipes = built.root / "recipes"
    assert body["engine"]["id"] == "tiny/int8/cpu"
    assert body["engine"]["sha256"] == digest_file(engine.path) == body["engine"]["files"]["engine"]["sha256"]
    assert body["recipe"]["sha256"] == digest_file(built.recipe)
    assert body["recipe"]["files"]["_targets.yaml"] == digest_file(recipes / "_targets.yaml")
    assert body["digests"]["export"] == {"tiny.onnx": digest_file(recipes / "tiny.onnx")}
    assert body["digests"]["calibrate"] == {"calibration": digest_file(recipes / "calib.npz")}
    assert body["digests"]["compare"]["evaluation"] == digest_file(recipes / "test.npz")
    assert {"engineworks", "onnxruntime"} <= body["versions"].keys()
    assert body["hardware"]["measure"]["processor"]
    assert [p["name"] for p in body["profiles"]] == ["default"]
    assert {"accuracy.json", "latency.json"} <= body["reports"].keys() & body["report_digests"].keys()
    assert body["verdict"]["verdict"] == "pass"
    assert all(c["message"] for c in body["verdict"]["checks"])
    assert len(json.dumps(body)) < 20_000  # raw samples stay in the reports


def test_the_same_engine_with_the_same_verdict_has_one_passport_and_another_recipe_text_another(built: Any) -> None:
    first = built.engine().passport
    assert built.engine().passport == first
    built.recipe.write_text(built.recipe.read_text(encoding="utf-8") + "# a note\n", encoding="utf-8")
    assert built.engine().passport != first


def test_the_commit_of_the_recipe_and_what_differs_from_it_are_in_the_passport(built: Any) -> None:
    import subprocess

    shutil.rmtree(built.root / ".git")
    git = ["git", "-C", str(built.root), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "recipes"], ["commit", "-qm", "recipes"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    body = read_passport(built.engine().passport, Trust()).body
    assert (body["recipe"]["commit"], body["recipe"]["changed"]) == (head, [])
    built.recipe.write_text(built.recipe.read_text(encoding="utf-8") + "# a note\n", encoding="utf-8")
    body = read_passport(built.engine().passport, Trust()).body
    assert (body["recipe"]["commit"], body["recipe"]["changed"]) == (head, ["recipes/tiny.yaml"])


def test_a_signed_passport_is_believed_and_an_altered_one_refused(
    built: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust = trust_mine(tmp_path, monkeypatch)
    folder = folder_with_passport(built, tmp_path / "engine")
    assert verify_folder(folder, trust).signed_by in trust.keys
    body = json.loads((folder / "passport.json").read_text())
    body["verdict"]["checks"][0]["message"] = "All is well."
    (folder / "passport.json").write_text(json.dumps(body))
    with pytest.raises(TrustError, match="was altered: it is not what was signed"):
        verify_folder(folder, trust)


@pytest.mark.parametrize("file", ["engine", "engine.json"])
def test_an_altered_file_is_refused_by_its_digest_without_any_key(built: Any, tmp_path: Path, alter, file: str) -> None:
    folder = folder_with_passport(built, tmp_path / "engine")
    assert verify_folder(folder, Trust()).id == "tiny/int8/cpu"
    alter(folder / file)
    with pytest.raises(TrustError, match=rf"{file}: was altered: its sha256 is [0-9a-f]{{12}}…, its passport says"):
        verify_folder(folder, Trust())


def test_a_missing_file_and_a_missing_passport_are_told(built: Any, tmp_path: Path) -> None:
    folder = folder_with_passport(built, tmp_path / "engine")
    (folder / "engine").unlink()
    with pytest.raises(TrustError, match="cannot be read: No such file"):
        verify_folder(folder, Trust())
    (folder / "passport.json").unlink()
    with pytest.raises(TrustError, match=r"passport\.json: does not exist; an engine without a passport is not loaded"):
        verify_folder(folder, Trust())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "is no passport of version 1"),
        ('{"passport": 1}', "'engine' is missing"),
        ('{"passport": 1, "passport": 1}', "duplicate key 'passport'"),
        ('{"passport": NaN}', "holds NaN, which is no number in JSON"),
        ('{"passport": "\\ud800"}', "is not JSON: .* surrogates not allowed"),
        ('{"passport": 1, "x": ' + "[" * 99_999, "is nested deeper than 32 levels"),
        ('{"passport": 1' + "0" * 5000 + "}", "is not JSON: Exceeds the limit"),
    ],
)
def test_what_is_no_passport_is_told(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "passport.json").write_text(text)
    with pytest.raises(TrustError, match=message):
        read_passport(tmp_path / "passport.json", Trust())


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("more",), 1, "unknown key 'more'"),
        (("engine", "inputs", 0, "more"), 1, r"unknown key 'engine\.inputs\.0\.more'"),
        (("serving",), {"kernels": "lazy"}, r"'serving\.cuda_graphs' is missing"),
        (("engine", "sha256"), "0", r"'engine\.sha256' is not as documented"),
        (("engine", "sha256"), "0" * 64, "does not list its engine 000000000000… among the files"),
        (("engine", "files"), [], r"'engine\.files' is not as documented: input should be an object"),
        (
            ("serving", "cuda_graphs"),
            1,
            r"'serving\.cuda_graphs' is not as documented: input should be a valid boolean",
        ),
        (("engine", "id"), "tiny/fp32/cpu", "names the engine tiny/fp32/cpu, but another recipe, precision or target"),
        (("verdict", "verdict"), "great", r"'verdict\.verdict' is not as documented"),
    ],
)
def test_a_passport_that_is_not_as_documented_is_refused_by_its_place(
    built: Any, tmp_path: Path, place: tuple[Any, ...], value: object, message: str
) -> None:
    body = json.loads(built.engine().passport.read_text())
    part = body
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    (tmp_path / "passport.json").write_text(json.dumps(body))
    with pytest.raises(TrustError, match=message):
        read_passport(tmp_path / "passport.json", Trust())


def test_a_file_next_to_an_engine_that_is_not_its_own_is_refused(built: Any, tmp_path: Path) -> None:
    folder = folder_with_passport(built, tmp_path / "engine")
    (folder / "engine.data").write_bytes(b"")
    with pytest.raises(TrustError, match=r"engine/engine\.data: is no file of the engine; it was added later"):
        verify_folder(folder, Trust())


def test_a_pipe_in_place_of_a_passport_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "passport.json")
    with pytest.raises(TrustError, match="not a regular file"):
        read_passport(tmp_path / "passport.json", Trust())


def test_a_passport_can_not_name_files_outside_of_its_folder(built: Any, tmp_path: Path) -> None:
    folder = folder_with_passport(built, tmp_path / "engine")
    body = json.loads((folder / "passport.json").read_text())
    body["engine"]["files"]["../secret"] = body["engine"]["files"]["engine"]
    (folder / "passport.json").write_text(json.dumps(body))
    with pytest.raises(TrustError, match="leaves the folder"):
        verify_folder(folder, Trust())


def test_the_pipelines_own_loader_refuses_an_altered_engine(built: Any, alter: Callable[[Path], None]) -> None:
    engine = built.engine()
    folder = engine.path.parent
    load_engine(folder, engine.sidecar.target).close()
    alter(engine.path)
    with pytest.raises(TrustError, match="was altered"):
        load_engine(folder, engine.sidecar.target)


def test_verify_takes_an_id_a_file_a_folder_and_a_passport(built: Any, tmp_path: Path) -> None:
    engine = built.engine()
    copied = folder_with_passport(built, tmp_path / "engine")
    names = ["tiny/int8/cpu", engine.path, engine.path.parent, engine.passport, copied, copied / "engine"]
    for name in [*names, copied / "passport.json"]:
        (passport,) = verify_anything(str(name), built.settings)
        assert passport.id == "tiny/int8/cpu"


def test_the_command_says_what_it_found_and_refuses_with_one_message(
    built,
    alter: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = built.engine()
    assert run_command(["verify", "tiny/int8/cpu"]) == 0
    assert capsys.readouterr().out == (
        "tiny/int8/cpu: the bytes are those of its passport, not signed; verdict pass\n"
        "this is the latest build; it has no champion\n"
    )
    assert run_command(["keygen", str(tmp_path / "keys"), "--json"]) == 0
    monkeypatch.setenv("ENGINEWORKS_TRUSTED_KEYS", json.loads(capsys.readouterr().out)["public"])
    assert run_command(["verify", "tiny/int8/cpu", "--json"]) == 2
    assert "is not signed, and ENGINEWORKS_TRUSTED_KEYS asks for a signature" in capsys.readouterr().err
    monkeypatch.setenv("ENGINEWORKS_SIGNING_KEY", str(tmp_path / "keys" / "engineworks.key"))
    built.engine()
    assert run_command(["verify", "tiny/int8/cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engines"][0]["signed_by"]
    alter(engine.path)
    assert run_command(["verify", "tiny/int8/cpu"]) == 2
    err = capsys.readouterr().err
    assert "was altered" in err
    assert err.count("\n") == 1
    assert run_command(["verify", "tiny/fp32/cpu"]) == 2  # it has no passport yet
    assert "was not built here" in capsys.readouterr().err
