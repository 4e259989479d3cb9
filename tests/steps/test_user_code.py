"""Every kind of code that a recipe can name, misbehaving in every way: it ends its own sandbox and is named."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engineworks.errors import EXIT_BAD_INPUT, EXIT_STEP_FAILED, EngineworksError, TimeLimitError
from engineworks.host import sandbox
from engineworks.host.child.start import Child, start_child, working_folder
from engineworks.host.sandbox import sandbox_command
from engineworks.steps import export, peer, user_metric
from engineworks.steps.job import StepJob

ROWS = {"y": np.eye(3, dtype=np.float32)}
LABELS = np.arange(3)
INTERFACE: dict[str, Any] = {"inputs": [], "outputs": [], "profiles": [], "opset": 18}
SOURCE: dict[str, Any] = {"source": "torch", "factory": "own:code", "task": None, "interface": INTERFACE}
BASELINE: dict[str, Any] = {
    "peer": "pytorch", "precision": "fp32", "samples": {"arrays": {}, "count": 3, "total": 3, "specs": []}, **SOURCE,
}  # fmt: skip

RAISES = [
    "raise SystemExit(0)",
    "raise KeyboardInterrupt",
    "raise GeneratorExit",
    "raise RuntimeError('\\ud800')",
    "raise BaseExceptionGroup('all', [SystemExit()])",
    "raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})()",
    "from engineworks.errors import ModelError; raise ModelError('all is well')",
    "return code()",
    "return 10**400",
    "return '\\ud800'",
    "return None",
]

ENDS = [
    "os._exit(0)",
    "os.kill(os.getpid(), signal.SIGKILL)",
    r"""[os.write(fd, b'{"value": {"names": 1}}\n') for fd in range(3, 9) if os.path.exists(f"/dev/fd/{fd}")]""",
    "shutil.rmtree(os.environ['TMPDIR'], True); os.fork() or (os.setsid(), os.fork() or time.sleep(600)); sys.exit()",
]
"""They take the sandbox with them, or write into its answer."""


def job(folder: Path, limit_s: float, params: dict[str, Any]) -> StepJob:
    for name in ("out", "reference"):
        (folder / name).mkdir()
    (folder / "reference" / "outputs.npz").touch()
    places = {"folder": str(folder), "files": [], "source": str(folder / "own.py"), "evaluation": str(folder)}
    inputs = {"reference": folder / "reference"}
    return StepJob("x", params, inputs, places, folder / "out", lambda _: None, time_limit_s=limit_s / 0.95)


def metric(folder: Path, limit_s: float) -> object:
    return user_metric.evaluate_in_sandbox(
        "own:code", folder, ROWS, ROWS, ROWS, LABELS, echo=lambda _: None, time_limit_s=limit_s
    )


def slices(folder: Path, limit_s: float) -> object:
    return user_metric.names_in_sandbox("own:code", folder, ROWS, LABELS, echo=lambda _: None, time_limit_s=limit_s)


def factory(folder: Path, limit_s: float) -> object:
    return export.export_in_sandbox(job(folder, limit_s, SOURCE))


def baseline(folder: Path, limit_s: float) -> None:
    peer.run(job(folder, limit_s, BASELINE))


Kind = Callable[[Path, float], object]
KINDS: list[Kind] = [metric, slices, factory, baseline]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes the recipe's code. Stand-ins of PyTorch's packages come before them: no module is exported here."""
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "torch.py").write_text(
        "class nn:\n class Module: pass\n"
        "class cuda:\n is_available = staticmethod(lambda: False)\n"
        "set_num_threads = manual_seed = lambda n: None\n",
        encoding="ascii",
    )
    (packages / "onnxscript.py").touch()
    monkeypatch.setattr(sys, "path", [str(packages), *sys.path])
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))

    def write(body: str) -> Path:
        folder = tmp_path / "recipes"
        folder.mkdir()
        source = f"import os, shutil, signal, sys, time\ndef code(*_):\n    {body}\n"
        (folder / "own.py").write_text(source, encoding="ascii")
        return folder

    return write


def assert_named(caught: EngineworksError) -> None:
    assert caught.exit_code in (EXIT_BAD_INPUT, EXIT_STEP_FAILED)
    assert "own:code" in caught.message or "the baseline PyTorch eager" in caught.message
    assert "\n" not in caught.message
    str(caught).encode()


@pytest.fixture(scope="module")
def one_sandbox() -> Iterator[Child]:
    """A real sandbox for all that only raises: such code leaves its process able to answer."""
    with tempfile.TemporaryDirectory() as scratch:
        child = start_child(sandbox_command(os.environ, working_folder(), Path(scratch)))
        end, child.end = child.end, lambda: None  # type: ignore[method-assign]
        yield child
        end()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("body", RAISES)
def test_what_raises_is_named(
    own: Callable[[str], Path], one_sandbox: Child, monkeypatch: pytest.MonkeyPatch, kind: Kind, body: str
) -> None:
    monkeypatch.setattr(sandbox, "start_child", lambda _: one_sandbox)
    with pytest.raises(EngineworksError) as caught:
        kind(own(body), 60)
    assert_named(caught.value)


@pytest.mark.parametrize(
    ("kind", "body"),
    [*((factory, body) for body in ENDS), *((kind, body) for kind in (slices, baseline) for body in ENDS[::2])],
)
def test_what_ends_its_sandbox_or_writes_into_its_answer_is_named(
    own: Callable[[str], Path], kind: Kind, body: str
) -> None:
    with pytest.raises(EngineworksError) as caught:
        kind(own(body), 60)
    assert_named(caught.value)


def test_a_factory_that_hangs_is_named(own: Callable[[str], Path]) -> None:
    with pytest.raises(TimeLimitError, match="the factory 'own:code' did not end within 1 s"):
        factory(own("time.sleep(600)"), 1)


def test_only_what_a_sandbox_calls_loads_a_recipes_code() -> None:
    """Who loads code that a recipe names: the functions that sandboxes call, and what these call."""
    loads = re.compile(r"\b(load_function|load_pytorch|load_module|export_torch)\(")
    root = Path(sandbox.__file__).parents[2]
    found = {path.relative_to(root).as_posix() for path in root.rglob("*.py") if loads.search(path.read_text("utf-8"))}
    assert found == {
        "engines/peers/pytorch.py", "model/export/from_huggingface.py", "model/export/from_torch.py",
        "model/export/source_code.py", "steps/export.py", "steps/user_metric.py",
        "tracking/sources.py",
    }  # fmt: skip
