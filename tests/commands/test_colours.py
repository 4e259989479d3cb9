"""Colours on a terminal, none where NO_COLOR, a pipe or a dumb terminal asks for that."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(sys.executable).parent / "engineworks"
ROOT = Path(__file__).parents[2]
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(3[0-7]|9[0-7])m")


def on_a_terminal(folder: Path, **variables: str) -> str:
    """What `plan` shows on a terminal of 100 columns."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "CI")}
    given = {**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "100", **variables}
    parent, child = pty.openpty()
    with subprocess.Popen([PROGRAM, "plan", "recipes/tiny.yaml"], cwd=folder, env=given, stdout=child, stderr=child):
        os.close(child)
        said = b""
        try:
            while part := os.read(parent, 65536):
                said += part
        except OSError:  # how Linux says that the other side was closed
            pass
    os.close(parent)
    return said.decode()


def test_states_are_coloured_on_a_terminal(repository: Path) -> None:
    said = on_a_terminal(repository)
    assert COLOUR.search(said)
    assert "never built" in said


def test_no_color_is_heeded(repository: Path) -> None:
    said = on_a_terminal(repository, NO_COLOR="1")
    assert not COLOUR.search(said)
    assert "never built" in said


def test_a_dumb_terminal_gets_plain_text(repository: Path) -> None:
    assert "\x1b" not in on_a_terminal(repository, TERM="dumb")


def test_a_pipe_gets_plain_lines_of_their_own_length(repository: Path) -> None:
    given = {**os.environ, "PYTHONPATH": str(ROOT), "FORCE_COLOR": "1"}
    done = subprocess.run(
        [PROGRAM, "plan", "recipes/tiny.yaml"], cwd=repository, env=given, capture_output=True, text=True, check=True
    )
    assert "\x1b" not in done.stdout
    assert all(line == line.rstrip() for line in done.stdout.splitlines())
