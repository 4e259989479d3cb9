"""Shell completion: the script that a shell loads, and what it completes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engineworks.commands.completion import engine_ids, one_of, peers, precisions, recipe_files, target_names

PROGRAM = Path(sys.executable).parent / "engineworks"
ROOT = Path(__file__).parents[2]


def completed(folder: Path, *words: str) -> list[str]:
    """What bash is told when TAB is hit after these words."""
    asked = {
        "_ENGINEWORKS_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(("engineworks", *words)),
        "COMP_CWORD": str(len(words)), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        [PROGRAM], cwd=folder, env={**os.environ, **asked}, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_recipe_files_are_completed_and_files_that_are_none_are_not(repository: Path) -> None:
    assert recipe_files("") == ["recipes/", "recipes/tiny.yaml"]
    assert recipe_files("recipes/t") == ["recipes/tiny.yaml"]
    assert recipe_files("elsewhere/") == []


def test_engines_targets_precisions_and_peers(repository: Path) -> None:
    assert engine_ids("tiny/i") == ["tiny/int8/cpu"]
    assert target_names("") == ["cpu", "rtx40"]
    assert precisions("int") == ["int8", "int8_weights", "int4_weights"]
    assert peers("pytorch,ort-cp") == ["pytorch,ort-cpu"]
    assert one_of("recipes", "targets")("t") == ["targets"]


def test_a_broken_file_completes_to_nothing(repository: Path) -> None:
    (repository / "recipes" / "tiny.yaml").write_text("recipe: [", encoding="utf-8")
    (repository / "recipes" / "_targets.yaml").write_text("targets: [", encoding="utf-8")
    assert engine_ids("") == []
    assert target_names("") == []


def test_bash_asks_the_program(repository: Path) -> None:
    assert "sensitivity" in completed(repository, "sens")
    assert completed(repository, "build", "recipes/t") == ["recipes/tiny.yaml"]
    assert completed(repository, "build", "recipes/tiny.yaml", "--only", "tiny/f") == ["tiny/fp32/cpu"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_shown_for_every_shell(shell: str) -> None:
    asked = {"_ENGINEWORKS_COMPLETE": f"source_{shell}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([PROGRAM], env={**os.environ, **asked}, capture_output=True, text=True, check=True)
    assert "_ENGINEWORKS_COMPLETE" in done.stdout


def test_the_script_for_bash_is_one_that_bash_reads() -> None:
    asked = {"_ENGINEWORKS_COMPLETE": "source_bash", "PYTHONPATH": str(ROOT)}
    script = subprocess.run([PROGRAM], env={**os.environ, **asked}, capture_output=True, text=True, check=True).stdout
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
