"""Every message of the catalogue is as it stands in tests/golden/messages.txt, which was read aloud and corrected.

`UPDATE_MESSAGES=1 pytest tests/messages` writes the file anew: read what changed.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import RECIPE

from engineworks.builds.step import run_step
from engineworks.cli import run_command
from engineworks.engines.verified import verified_engine
from engineworks.errors import EngineworksError, TrustError
from engineworks.fingerprint import digest_of
from engineworks.host.child import default_pool
from engineworks.host.file_digests import FileDigests
from engineworks.plan.plan import plan_recipe
from engineworks.recipe.load import load_recipe
from engineworks.store.store import Store
from tests.typed_reports import write_sidecar

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden" / "messages.txt"


def _catalogue() -> ModuleType:
    spec = importlib.util.spec_from_file_location("messages_catalogue", HERE / "catalogue.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


CATALOGUE = _catalogue()
CASES = {case.title: case for case in CATALOGUE.all_cases()}
BUILDS = {case.title: case for case in CATALOGUE.BUILD_CASES}
LIBRARY = ("an engine that was altered", "an engine without its sidecar", "a damaged artifact in the store")
TITLES = (*CASES, *BUILDS, *LIBRARY)


def masked(text: str, root: Path) -> str:
    """Without what differs between hosts and days."""
    text = text.replace(str(root), "/repository").replace(sys.prefix, "/venv")
    text = re.sub(r"\b[0-9a-f]{12,64}\b", "DIGEST", text)
    text = re.sub(r"(?<![/.\d])\b\d+\.\d+\.\d+(\.\d+)*\b", "VERSION", text)
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def rendered(case: object, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The case as it is on the terminal: the command, both streams, the exit code."""
    monkeypatch.delenv("COLUMNS", raising=False)  # the same width wherever the tests run
    monkeypatch.delenv("PREFECT_API_URL", raising=False)  # of the server that tests/flows keep in this process
    monkeypatch.setattr("sys.stdin", io.StringIO())
    case.prepare()  # type: ignore[attr-defined]
    for name, value in case.environment.items():  # type: ignore[attr-defined]
        monkeypatch.setenv(name, value)
    code = run_command(list(case.command))  # type: ignore[attr-defined]
    captured = capsys.readouterr()
    command = " ".join(case.command)  # type: ignore[attr-defined]
    variables = "".join(f"{k}={v} " for k, v in case.environment.items())  # type: ignore[attr-defined]
    said = masked(captured.out + captured.err, root)
    return f"$ {variables}engineworks {command}\n{said}\n[exit {code}]"


def golden() -> dict[str, str]:
    text = GOLDEN.read_text(encoding="utf-8") if GOLDEN.is_file() else ""
    found = re.split(r"^## (.*)\n", text, flags=re.M)[1:]
    return dict(zip(found[::2], (body.strip("\n") for body in found[1::2]), strict=True))


def put(title: str, text: str) -> None:
    """Into the golden file, in the catalogue's order."""
    known = {**golden(), title: text}
    ordered = [t for t in TITLES if t in known]
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text("".join(f"## {t}\n\n{known[t]}\n\n" for t in ordered).rstrip("\n") + "\n", encoding="utf-8")


def compare(title: str, text: str) -> None:
    if os.environ.get("UPDATE_MESSAGES"):
        put(title, text)
    assert golden().get(title) == text


@pytest.mark.parametrize("title", CASES, ids=list(CASES))
def test_the_message_is_the_one_that_was_read(
    title: str, repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "recipes" / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    compare(title, rendered(CASES[title], repository, capsys, monkeypatch))


@pytest.mark.parametrize("title", BUILDS, ids=list(BUILDS))
def test_the_message_of_a_failed_step_is_the_one_that_was_read(title: str, repository: Path) -> None:
    case = BUILDS[title]
    case.prepare()
    store = Store(repository / "artifacts" / "store")
    plan = plan_recipe(load_recipe(Path("recipes/tiny.yaml")), store, FileDigests(None), only=f"*/{case.command[0]}/*")
    said = ""
    for step in plan.to_do:
        try:
            run_step(step, store, default_pool(), echo=lambda _: None)
        except EngineworksError as error:
            said = f"{step.id}: FAILED: {error}\n[exit {error.exit_code}]"
            break
    compare(title, f"$ engineworks build recipes/tiny.yaml\n{masked(said, repository)}")


def test_messages_about_what_was_built_are_those_that_were_read(repository: Path) -> None:
    folder = repository / "engine"
    folder.mkdir()
    (folder / "engine").write_bytes(b"engine")
    write_sidecar(folder, sha256="0" * 64)
    with pytest.raises(TrustError) as altered, verified_engine(folder):
        pass
    compare(LIBRARY[0], masked(str(altered.value), repository))
    (folder / "engine.json").unlink()
    with pytest.raises(TrustError) as alone, verified_engine(folder):
        pass
    compare(LIBRARY[1], masked(str(alone.value), repository))
    store, lines = Store(repository / "store"), list[str]()
    key = digest_of({"step": "fold"})
    with store.writing(key, {"step": "fold"}, "tiny/fold") as writing:
        (writing.folder / "model.onnx").write_bytes(b"model")
    file = store.place(key) / "model.onnx"
    file.chmod(0o644)
    file.write_bytes(b"madel")
    assert Store(repository / "store").get(key, echo=lines.append) is None
    compare(LIBRARY[2], masked("\n".join(lines), repository))


def test_the_golden_file_holds_nothing_else() -> None:
    assert list(golden()) == list(TITLES)


def test_no_message_shows_a_traceback_or_a_defect() -> None:
    for title, text in golden().items():
        assert "Traceback" not in text, title
        assert "[exit 70]" not in text, title
        assert "defect of Engineworks" not in text, title
