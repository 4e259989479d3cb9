"""Work of other threads is heard of; waiting, and work of the thread that measures, is none."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from engineworks.steps.measure import BackgroundWork

BLOCK = bytes(1 << 20)


def work(until: threading.Event) -> None:
    while not until.is_set():
        hashlib.sha256(BLOCK).digest()  # without Python's lock


@pytest.fixture
def worker() -> Iterator[threading.Thread]:
    """A thread that hashes, as a compiler would compile, until the test is over."""
    over = threading.Event()
    thread = threading.Thread(target=work, args=(over,))
    yield thread
    over.set()
    if thread.is_alive():
        thread.join()


def test_another_thread_at_work_is_heard_of(worker: threading.Thread) -> None:
    at_work = BackgroundWork()
    worker.start()
    deadline = time.monotonic() + 30
    while not at_work():
        assert time.monotonic() < deadline, "nothing was heard of a thread that works all the time"
        time.sleep(0.1)


OWN_WORK = """
import hashlib, threading
from engineworks.steps.measure import BackgroundWork
threading.Thread(target=threading.Event().wait, daemon=True).start()
at_work = BackgroundWork()
for _ in range(50):
    hashlib.sha256(bytes(1 << 20)).digest()
raise SystemExit(at_work())
"""


def test_own_work_and_waiting_threads_are_none() -> None:
    """In a process of its own: what other tests left at work here would be heard of."""
    subprocess.run([sys.executable, "-c", OWN_WORK], check=True)
