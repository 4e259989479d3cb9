"""Every command's help has an example, the example is a command line of ours, and the cheap ones work."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import typer

from engineworks.cli import app, run_command

REPOSITORY = Path(__file__).parents[1]

COMMANDS = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]

CHEAP = ("validate", "plan", "doctor", "inspect", "keygen", "list", "init")
"""Commands whose example runs in a second or two, without a build before it."""


def examples(name: str) -> list[list[str]]:
    """The command lines below a command's help."""
    return [shlex.split(line) for line in COMMANDS[name].examples]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_an_example_of_itself(name: str) -> None:
    found = examples(name)
    assert found
    assert all(words[:2] == ["engineworks", name] for words in found)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_help_of_every_example_is_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in examples(name):
        assert run_command([*words[1:], "--help"]) == 0
        shown = capsys.readouterr().out
        assert f"{name} [OPTIONS]" in shown
        assert all(f"  {line}\n" in shown for line in COMMANDS[name].examples), "an example is wrapped"


@pytest.mark.parametrize("name", CHEAP)
def test_cheap_examples_work(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("recipes/models", "recipes/data"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    for file in ("digits.yaml", "_targets.yaml", "_defaults.yaml"):
        shutil.copy(REPOSITORY / "recipes" / file, tmp_path / "recipes" / file)
    shutil.copy(REPOSITORY / "recipes/models/digits_cnn.onnx", tmp_path / "model.onnx")
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    for variable in ("ENGINEWORKS_ARTIFACTS", "ENGINEWORKS_STORE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    for words in examples(name):
        arguments = [str(tmp_path / "keys") if "~" in word else word for word in words[1:]]
        assert run_command(arguments) == 0, capsys.readouterr().err
