"""As a new user would: from an unknown ONNX file to a gated engine with `init`, `build`, `report`; a recipe with six
mistakes corrected from its messages alone; the reason of a changed verdict by `why` alone."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

from engineworks.cli import run_command

ROOT = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).parent / "engineworks"
pytestmark = pytest.mark.xdist_group("docs")  # their server

MISTAKES = (
    ("dtype: float32", "dtype: fp32"),
    ("batch: [1, 4", "batch: [9, 4"),
    ("precisions:", "precison:"),
    ("stand-in-evaluation.npz", "stand-in-evalution.npz"),
    ("targets: [cpu]", "targets: [cup]"),
    ("{cosine: 0.99999}", "{cosin: 0.99999}"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder outside of any repository, but for a model that nobody described."""
    made = tmp_path_factory.mktemp("newcomer")
    shutil.copy(ROOT / "recipes/models/digits_cnn.onnx", made / "mystery.onnx")
    return made


@dataclass(frozen=True)
class Said:
    stdout: str
    stderr: str


def in_a_shell(folder: Path, *words: str) -> Said:
    """Run the program as it is installed; it ends with exit code 0."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ENGINEWORKS_", "MLFLOW_", "PREFECT_"))}
    own = {"TMPDIR": str(folder.parent)}  # and so a lock for measuring of its own
    given = {**kept, **own, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CI": "true"}
    done = subprocess.run([PROGRAM, *words], cwd=folder, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return Said(done.stdout, done.stderr)


def typed(folder: Path, *words: str, code: int = 0, given: Mapping[str, str] = MappingProxyType({})) -> Said:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name in [name for name in os.environ if name.startswith(("ENGINEWORKS_", "MLFLOW_", "PREFECT_"))]:
            patch.delenv(name)
        for name, value in {"OMP_NUM_THREADS": "1", **given}.items():
            patch.setenv(name, value)
        patch.chdir(folder)
        ended = run_command(words)
    assert ended == code, f"{out.getvalue()}\n{err.getvalue()}"
    assert "Traceback" not in out.getvalue() + err.getvalue()
    return Said(out.getvalue(), err.getvalue())


def test_from_an_unknown_model_to_a_verdict_and_a_page(folder: Path) -> None:
    said = in_a_shell(folder, "init", "mystery.onnx").stdout.splitlines()
    assert said[-1] == "next: engineworks build mystery.yaml"
    assert "yaml-language-server" not in (folder / "mystery.yaml").read_text(encoding="utf-8")  # no schema is here
    built = in_a_shell(folder, *said[-1].removeprefix("next: engineworks ").split())
    assert re.search(r"mystery/fp16/cpu +pass", built.stdout)
    page = Path(typed(folder, "report", "mystery").stdout.strip())
    assert "mystery/fp16/cpu" in page.read_text(encoding="utf-8")
    plain(built)


def plain(built: Said) -> None:
    """In a pipe: no colours, no blanks at the end, and nothing said twice, by Prefect's logger or ours."""
    both = built.stdout + built.stderr
    assert "Traceback" not in both
    assert "\x1b" not in both
    assert all(line == line.rstrip() for line in both.splitlines())
    lines = [line for line in both.splitlines() if line]
    assert len(lines) == len(set(lines)), both
    steps = [line.split(": done")[0] for line in built.stderr.splitlines() if ": done in" in line]
    assert sorted(steps) == sorted(set(steps))
    assert len(steps) == 13
    assert not re.search(r"\| (INFO|DEBUG|WARNING|ERROR) ", both)  # Prefect's own lines


def test_six_mistakes_are_mended_from_their_messages_alone(folder: Path) -> None:
    text = (folder / "mystery.yaml").read_text(encoding="utf-8")
    broken = text
    for right, wrong in MISTAKES:
        assert right in broken
        broken = broken.replace(right, wrong, 1)
    file = folder / "mystery.yaml"
    file.write_text(broken, encoding="utf-8")
    try:
        mend(folder, file)
    finally:
        file.write_text(text, encoding="utf-8")


def mend(folder: Path, file: Path) -> None:
    messages = typed(folder, "validate", "mystery.yaml", code=2).stderr.splitlines()
    assert len(messages) == len(MISTAKES)
    for message in messages:
        place = re.match(r"mystery\.yaml:(\d+):(\d+): ", message)
        assert place
        line, column = int(place[1]) - 1, int(place[2]) - 1
        lines = file.read_text(encoding="utf-8").split("\n")
        lines[line] = lines[line][:column] + corrected(message, lines[line][column:])
        file.write_text("\n".join(lines), encoding="utf-8")
    assert typed(folder, "validate", "mystery.yaml").stdout.endswith("valid\n")


def corrected(message: str, rest: str) -> str:
    """What a person does who reads nothing but the message."""
    meant = re.search(r"did you mean '([^']+)'", message)
    if meant:
        return re.sub(r"^[\w.-]+", meant[1], rest)
    assert "min ≤ opt ≤ max" in message
    numbers = sorted(map(int, re.findall(r"\d+", rest.split("]")[0])))
    return f"{numbers}{rest.partition(']')[2]}"


def test_why_alone_names_the_reason_of_a_changed_verdict(folder: Path, prefect_server: dict[str, str]) -> None:
    file = folder / "mystery.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("fp16: {cosine: 0.9999}", "fp16: {cosine: 0.9999999999}"), encoding="utf-8")
    built = typed(folder, "build", "mystery.yaml", code=1, given=prefect_server)
    assert not re.search(r"is 1, limit at least 1\.", built.stdout)
    said = typed(folder, "why", "mystery/fp16/cpu").stdout
    assert said.startswith("mystery/fp16/cpu: pass → fail")
    assert re.search(r"accuracy\.limits\.fp16\.cosine: 0\.9999 → 0\.9999999999 .*\(mystery\.yaml:\d+:\d+\)", said)
    assert "check cosine[logits]: pass → fail" in said
