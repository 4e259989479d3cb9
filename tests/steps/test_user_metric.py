"""A metric that misbehaves ends its own sandbox, and is named in one sentence."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from engineworks.errors import (
    EXIT_BAD_INPUT,
    EXIT_STEP_FAILED,
    EngineworksError,
    ExportError,
    InputError,
    TimeLimitError,
)
from engineworks.host.sandbox import sandbox_command
from engineworks.host.sandbox.serve import landlock_version
from engineworks.steps.user_metric import evaluate_in_sandbox

LABELS = np.arange(6) % 3
RIGHT = {"y": np.eye(3, dtype=np.float32)[LABELS]}
WRONG = {"y": 1 - RIGHT["y"]}


def evaluated(folder: Path, body: str, *, time_limit_s: float = 60) -> tuple[float, float, float]:
    source = f"import ctypes, os, shutil, signal, sys, threading, time\ndef score(outputs, labels, inputs):\n{body}\n"
    (folder / "own.py").write_text(source, encoding="utf-8", errors="surrogatepass")
    said: list[str] = []
    numbers, _ = evaluate_in_sandbox(
        "own:score", folder, RIGHT, WRONG, RIGHT, LABELS, echo=said.append, time_limit_s=time_limit_s
    )
    assert sum(map(len, said)) < 1.1 * (1 << 20)
    return numbers


@pytest.mark.parametrize(
    "body",
    [
        "    os._exit(0)",
        "    ctypes.string_at(0)",
        "    os.kill(os.getpid(), signal.SIGKILL)",
        "    os.kill(os.getppid(), signal.SIGKILL); time.sleep(600)",
        "    os.kill(os.getppid(), signal.SIGTERM); time.sleep(600)",
        "    os.killpg(0, signal.SIGKILL)",
        "    os.closerange(0, 256); return 1.0",
        "    [os.write(fd, b'garbage\\n') for fd in range(3, 9) if os.path.exists(f'/proc/self/fd/{fd}')]; return 1.0",
        '    [os.write(fd, b\'{"value": {"numbers": [1, 2]}}\\n\') for fd in range(3, 9)'
        " if os.path.exists(f'/proc/self/fd/{fd}')]; return 1.0",
        "    import builtins, traceback, json; json.dumps = builtins.print = traceback.format_exc = None; return 1.0",
    ],
)
def test_a_metric_that_misbehaves_is_named_in_one_sentence(tmp_path: Path, body: str) -> None:
    with pytest.raises(EngineworksError) as caught:
        evaluated(tmp_path, body)
    message = str(caught.value)
    assert caught.value.exit_code in (EXIT_BAD_INPUT, EXIT_STEP_FAILED)
    assert "own:score" in message
    assert "\n" not in message
    message.encode()


@pytest.mark.parametrize(
    "body",
    [
        "    os.chdir('/')",
        "    shutil.rmtree(os.environ['TMPDIR'], True); shutil.rmtree(os.path.dirname(__file__), True)",
        "    threading.Thread(target=time.sleep, args=(600,)).start()",
        "    os.fork() or (os.setsid(), os.fork() or time.sleep(600), os._exit(0))",
        "    np = sys.modules['numpy']; np.isfinite = np.array_equal = lambda *a, **k: True",
        "    print('x' * (3 << 20)); os.write(2, b'\\xff\\n' * (1 << 16))",
        "    sys.stdout.close(); os.closerange(0, 3)",
    ],
)
def test_what_a_metric_does_to_its_process_is_nobody_elses(tmp_path: Path, body: str) -> None:
    where = Path.cwd()
    own = tmp_path / "own"
    own.mkdir()
    right = "    return float((outputs['y'].argmax(axis=1) == labels).mean())"
    assert evaluated(own, f"{body}\n{right}") == (1.0, 0.0, 1.0)
    assert Path.cwd() == where
    assert not np.isfinite(np.nan)


@pytest.mark.skipif(landlock_version() < 6, reason="this kernel has no Landlock, or one without signals")
def test_a_metric_can_write_and_signal_nothing_of_ours(tmp_path: Path) -> None:
    tries = [
        "open(os.path.dirname(__file__) + '/accuracy.json', 'w')",
        "os.truncate(__file__, 0)",
        "os.rename(__file__, __file__ + '2')",
        "shutil.rmtree(os.path.dirname(__file__))",
        "os.kill(os.getppid(), signal.SIGKILL)",
        "open(f'/proc/{os.getppid()}/mem', 'rb')",
    ]
    body = f"""    for i, tried in enumerate({tries!r}):
        try: exec(tried)
        except PermissionError: continue
        return float(i)
    {tries[0]}"""
    with pytest.raises(ExportError, match=r"raised PermissionError: .*may write below its temporary folder only"):
        evaluated(tmp_path, body)
    assert [path.name for path in tmp_path.iterdir()] == ["own.py"]
    assert (tmp_path / "own.py").read_text(encoding="utf-8").endswith(f"{body}\n")


def test_a_metric_has_a_temporary_folder(tmp_path: Path) -> None:
    body = "    import tempfile; f = tempfile.NamedTemporaryFile('w+'); f.write('1'); f.seek(0)\n    return float(f.read())"
    assert evaluated(tmp_path, body) == (1.0, 1.0, 1.0)


def test_a_metric_that_hangs_is_named(tmp_path: Path) -> None:
    with pytest.raises(TimeLimitError, match="the metric 'own:score' did not end within 1 s"):
        evaluated(tmp_path, "    ctypes.PyDLL(None).sleep(600)", time_limit_s=1)


def test_not_finite_numbers_come_back_as_they_are(tmp_path: Path) -> None:
    numbers = evaluated(tmp_path, "    return -float('inf') if outputs['y'][0, 0] else float('nan')")
    assert (numbers[0], np.isnan(numbers[1])) == (-np.inf, True)


def test_no_variable_that_names_a_place_of_ours_or_holds_a_key_reaches_a_sandbox(tmp_path: Path) -> None:
    secret = {"ENGINEWORKS_STORE": "s", "AWS_ACCESS_KEY_ID": "k", "MY_TOKEN": "t", "MLFLOW_TRACKING_URI": "u"}
    env = sandbox_command({**secret, "HF_HOME": "/hf", "PATH": "/bin"}, tmp_path, tmp_path).env
    assert env == {"HF_HOME": "/hf", "PATH": "/bin", "TMPDIR": str(tmp_path)}


def test_bubblewrap_is_used_where_asked_for_and_refused_where_it_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ENGINEWORKS_SANDBOX=bwrap: bubblewrap is not installed; install it"):
        sandbox_command({"ENGINEWORKS_SANDBOX": "bwrap", "PATH": str(tmp_path)}, tmp_path, tmp_path)
    with pytest.raises(InputError, match="ENGINEWORKS_SANDBOX=docker: unknown sandbox; set it to 'bwrap' or 'process'"):
        sandbox_command({"ENGINEWORKS_SANDBOX": "docker", "PATH": ""}, tmp_path, tmp_path)
    bwrap = tmp_path / "bwrap"
    bwrap.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n', encoding="ascii")
    bwrap.chmod(0o755)
    environ = {"ENGINEWORKS_SANDBOX": "bwrap", "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = sandbox_command(environ, tmp_path, tmp_path)
    assert command.prefix[0] == str(bwrap)
    assert {"--unshare-all", "--die-with-parent", "--new-session", "--ro-bind"} <= set(command.prefix)


def test_a_metric_runs_below_bubblewrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of its interface in its place, where it is not installed."""
    if not (Path("/usr/bin/bwrap").is_file()):
        bwrap = tmp_path / "bwrap"
        bwrap.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n', encoding="ascii")
        bwrap.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("ENGINEWORKS_SANDBOX", "bwrap")
    assert evaluated(tmp_path, "    return float(labels[1])") == (1.0, 1.0, 1.0)
