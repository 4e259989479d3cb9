"""Progress of builds on stderr: a bar on a terminal, lines elsewhere. Long steps say how much time is left."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from engineworks.builds.progress import Listener, listen
from engineworks.plan.plan import Plan
from engineworks.plan.steps import Step
from engineworks.report.words import many
from engineworks.settings import Settings

LONG_S = 5.0
"""Seconds after which a running step reports its time."""

EVERY_S = 10.0
"""Seconds between two such reports in a log."""

Expected = Callable[[Step], float | None]
"""Seconds that a step took the last time, None if it never ran here: then a like step of this build tells."""


@contextlib.contextmanager
def progress(settings: Settings, *, quiet: bool, verbose: bool) -> Iterator[None]:
    """Show the progress of builds on stderr: a bar on a terminal, lines elsewhere, nothing if quiet."""
    if quiet:
        yield
        return
    shown = _Bar() if sys.stderr.isatty() and not verbose else _Lines(verbose)
    clock = Clock(shown, _last_seconds(settings))
    with contextlib.closing(shown), contextlib.closing(clock):
        listen(clock)
        yield


def time_words(seconds: float, expected: float | None) -> str:
    """'12 s so far, about 30 s left'; without an earlier run, the time so far alone."""
    so_far = f"{seconds:.0f} s so far"
    if expected is None:
        return so_far
    left = expected - seconds
    return f"{so_far}, about {left:.0f} s left" if left >= 1 else f"{so_far}, {expected:.0f} s expected"


class Shown(Listener):
    """Where progress appears. ticking: called about once a second for each step that runs longer than `LONG_S`."""

    def ticking(self, step: Step, seconds: float, expected: float | None) -> None: ...

    def close(self) -> None: ...


class Clock(Listener):
    """A listener that passes everything on, and reports the time of long steps from a thread of its own."""

    def __init__(self, shown: Shown, expected: Expected, now: Callable[[], float] = time.monotonic) -> None:
        self._shown, self._expected, self._now = shown, expected, now
        self._running: dict[str, tuple[Step, float, float | None]] = {}
        self._took: dict[str, float] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engineworks-progress", daemon=True)

    def close(self) -> None:
        self._stop.set()
        if self._thread.ident:
            self._thread.join()

    def planned(self, plan: Plan) -> None:
        self._shown.planned(plan)

    def started(self, step: Step) -> None:
        expected = self._expected(step)
        with self._lock:
            if not self._thread.ident:
                self._thread.start()
            self._running[step.key] = step, self._now(), expected
        self._shown.started(step)

    def finished(self, step: Step, seconds: float) -> None:
        self._forget(step)
        with self._lock:
            self._took[step.kind] = seconds
        self._shown.finished(step, seconds)

    def failed(self, step: Step, message: str) -> None:
        self._forget(step)
        self._shown.failed(step, message)

    def echo(self, line: str) -> None:
        self._shown.echo(line)

    def tick(self) -> None:
        """Report every step that has run for longer than `LONG_S`."""
        with self._lock:
            running = [(s, since, self._took.get(s.kind) if e is None else e) for s, since, e in self._running.values()]
        for step, since, expected in running:
            if (seconds := self._now() - since) >= LONG_S:
                self._shown.ticking(step, seconds, expected)

    def _forget(self, step: Step) -> None:
        with self._lock:
            self._running.pop(step.key, None)

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            self.tick()


class _Lines(Shown):
    """Plain lines for a log."""

    def __init__(self, verbose: bool) -> None:
        self._verbose = verbose
        self._lock = threading.Lock()
        self._next: dict[str, float] = {}

    def planned(self, plan: Plan) -> None:
        cached = sum(1 for s in plan.steps.values() if s.state == "cached")
        engines, steps = many(len(plan.engines), "engine"), many(len(plan.to_do), "step")
        self.echo(f"{plan.recipe}: {engines}, {steps} to do, {cached} cached")

    def started(self, step: Step) -> None:
        if self._verbose:
            self.echo(f"{step.id}: started ({step.reason})")

    def finished(self, step: Step, seconds: float) -> None:
        self.echo(f"{step.id}: done in {seconds:.2f} s")

    def failed(self, step: Step, message: str) -> None:
        self.echo(f"{step.id}: FAILED: {message}")

    def ticking(self, step: Step, seconds: float, expected: float | None) -> None:
        if seconds >= self._next.get(step.key, LONG_S):
            self._next[step.key] = seconds + EVERY_S
            self.echo(f"{step.id}: {time_words(seconds, expected)}")

    def echo(self, line: str) -> None:
        with self._lock:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()


class _Bar(Shown):
    """One progress bar per recipe, failures above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.fields[recipe]}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("{task.description}"), console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self._tasks: dict[str, Any] = {}

    def close(self) -> None:
        self._progress.stop()

    def planned(self, plan: Plan) -> None:
        self._progress.start()  # and its thread: until here, this process may be forked
        self._tasks[plan.recipe] = self._progress.add_task("", total=len(plan.to_do), recipe=plan.recipe)

    def started(self, step: Step) -> None:
        self._progress.update(self._task(step), description=step.id)

    def finished(self, step: Step, seconds: float) -> None:
        self._advance(step)

    def failed(self, step: Step, message: str) -> None:
        self._advance(step)
        self._progress.console.print(f"[bold red]failed[/] {_escaped(step.id)}: {_escaped(message)}", highlight=False)

    def ticking(self, step: Step, seconds: float, expected: float | None) -> None:
        self._progress.update(self._task(step), description=f"{step.id}: {time_words(seconds, expected)}")

    def echo(self, line: str) -> None:
        self._progress.console.print(_escaped(line), highlight=False)

    def _advance(self, step: Step) -> None:
        """After the last step, the bar says that the build evaluates and records."""
        task = self._task(step)
        self._progress.update(task, advance=1)
        if self._progress.tasks[task].finished:
            self._progress.update(task, description="evaluating and recording")

    def _task(self, step: Step) -> Any:
        return self._tasks[step.id.partition("/")[0]]


def _last_seconds(settings: Settings) -> Expected:
    """Return a function that reads how long the newest artifact of the same step took."""
    from engineworks.fingerprint import digest_of
    from engineworks.store.artifact import read_manifest
    from engineworks.store.shared import open_store

    store = open_store(settings)

    def seconds(step: Step) -> float | None:
        document = store.latest(step.id)
        artifact = read_manifest(store.place(digest_of(document))) if document else None
        return artifact.seconds if artifact else None

    return seconds


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
