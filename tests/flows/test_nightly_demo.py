"""`make nightly-demo`: servers, S3 and three workers for two nights; and nothing of it is left afterwards."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = [pytest.mark.s3, pytest.mark.xdist_group("flows"), pytest.mark.timeout(900)]
for library in ("moto", "s3fs", "boto3"):
    pytest.importorskip(library)

ROOT = Path(__file__).parents[2]
MARK = "TEST_OF_THE_NIGHTLY_DEMO"
"""A variable that all processes of the demo inherit, by which those that are left are found."""


@contextmanager
def started(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo; one that a failed test leaves alone is interrupted, and stops what it started."""
    environment = os.environ | {"TMPDIR": str(folder), MARK: str(folder)}
    command = [sys.executable, str(ROOT / "benchmarks" / "nightly_demo.py")]
    demo = subprocess.Popen(
        command, cwd="/", env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        yield demo
    finally:
        if demo.poll() is None:
            demo.send_signal(signal.SIGINT)
            demo.communicate(timeout=120)


def left_over(folder: Path) -> list[str]:
    """Processes of the demo that still live."""
    mark, found = f"{MARK}={folder}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text(encoding="utf-8", errors="replace").replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not in pytest's own folder, which root's PostgreSQL may not enter."""
    with tempfile.TemporaryDirectory(prefix="engineworks-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_two_nights_build_what_changed_and_leave_nothing_behind(folder: Path) -> None:
    with started(folder) as demo:
        said = demo.communicate(timeout=850)[0]
    assert demo.returncode == 0, said
    nights = said.split("# Night of ")[1:]
    assert len(nights) == 2
    assert "No night before this one is on record." in nights[0]
    assert "| steady/int8/rtx40 | unmeasured |" in nights[0]
    rebuilt = nights[1].split("## Rebuilt, and why")[1].split("## Slowest")[0]
    assert "batch changed from [1, 4, 16] to [1, 4, 32]" in rebuilt
    assert "changing/fp32/rtx40/build" in rebuilt
    assert "steady" not in rebuilt
    assert re.search(r"stopped: 0 processes left", said)
    assert left_over(folder) == []
    assert list(folder.iterdir()) == []


def test_ctrl_c_stops_everything(folder: Path) -> None:
    with started(folder) as demo:
        assert demo.stdout is not None
        lines = iter(demo.stdout)
        for line in lines:
            if "first night" in line:
                break
        time.sleep(5)  # the workers and the night's run are starting
        assert len(left_over(folder)) > 6, "three servers, three workers, the database, the demo itself"
        demo.send_signal(signal.SIGINT)
        said = "".join(lines)
        assert demo.wait(120) == 130, said
    assert "Traceback" not in said
    assert left_over(folder) == []
    assert list(folder.iterdir()) == []
