"""The lock between processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from engineworks.host.lock import is_locked, locked

HOLD = "import sys, pathlib; from engineworks.host.lock import locked\nwith locked(pathlib.Path(sys.argv[1])): " + (
    "print('held', flush=True); sys.stdin.read()"
)


def test_a_lock_is_held_until_its_block_ends_and_its_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "one.lock"
    assert not is_locked(path)
    with pytest.raises(ZeroDivisionError), locked(path):
        assert is_locked(path)
        raise ZeroDivisionError
    assert not is_locked(path)
    assert path.exists()


def test_a_second_holder_waits_for_the_first(tmp_path: Path) -> None:
    path, order = tmp_path / "lock", list[str]()

    def second() -> None:
        with locked(path):
            order.append("second")

    with locked(path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_locked(path)
        os.kill(holder.pid, signal.SIGKILL)
    assert not is_locked(path)


def test_a_place_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), locked(tmp_path / "file" / "lock"):
        pass
