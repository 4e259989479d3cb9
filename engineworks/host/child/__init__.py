"""Runs functions in child processes: logs their output, reports how they end, and kills them with the parent.

A job is a function of an importable module, `module:function`, that takes and returns a JSON object. Jobs need a
process, not a thread: C++ builders cannot be interrupted, swallow Ctrl-C, print on descriptors and may crash.

- Children stay warm between jobs: an interpreter and a vendor library cost more than a small build.
- `on_line` gets every line of a child's two output descriptors; answers use a separate pipe.
- A child stays in our process group, ignores SIGINT and dies with the parent, by PR_SET_PDEATHSIG. The kernel sends
  that signal when the *thread* that started the child ends, so one thread of the parent's lifetime starts all children.
- The first children of a process without threads are forks of it: its imports serve all.
- Each child has a supervisor (`supervise`), which ends whatever the child started and left, however the child ended.
- Waiting callers wake every `POLL_S`, so that they soon see an exception thrown into their thread.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from engineworks.errors import ChildDefect, Interrupted, StepError, TimeLimitError
from engineworks.host.child.serve import decode_error, import_early
from engineworks.host.child.start import Child, Command, search_path, start_child, working_folder
from engineworks.host.child.supervise import may_fork
from engineworks.host.child.wait import LineAnswer, Lines, Stopped, TimeUp, wait_for_answer
from engineworks.host.collector import not_collected

MAX_IDLE = 2
"""Maximum number of idle children."""

MAX_JOBS = 100
"""Jobs after which a child is replaced: vendor libraries leak a little with each job."""

MAX_IDLE_MIB = 1024.0
"""Resident memory above which a child is replaced."""


class ChildPool:
    """Warm children and their jobs. Thread-safe."""

    def __init__(
        self, *, max_idle: int = MAX_IDLE, max_jobs: int = MAX_JOBS, max_idle_mib: float = MAX_IDLE_MIB
    ) -> None:
        self._max_idle, self._max_jobs, self._max_idle_mib = max_idle, max_jobs, max_idle_mib
        self._lock = threading.Lock()
        self._idle: list[Child] = []
        self._busy: list[Child] = []
        self._cancellations = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        function: str,
        payload: Mapping[str, Any],
        *,
        time_limit_s: float | None = None,
        on_line: Callable[[str], object] | None = None,
        on_peak: Callable[[float], object] | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        fresh: bool = False,
        what: str = "",
        error: type[StepError] = StepError,
        cancel: threading.Event | None = None,
    ) -> dict[str, Any]:
        """Return the object that `function` (module:function) returns for `payload`.

        on_line: gets every line of the job's output, in the caller's thread. on_peak: gets the maximum resident memory
        of the job, in MiB. env: added to our environment. fresh: use
        a child that has no job before or after. what: the job's name in messages. cancel: an event that kills the child
        once set.

        Raises: an `EngineworksError` of the job, as the same class (a `StepError` without a log gets the last lines);
        `TimeLimitError`; `error` if the child crashed; `Interrupted` after `cancel` or `cancel_all`; `ChildDefect` for
        any other exception of the job. Any other exception in the caller, such as KeyboardInterrupt, kills the child
        and propagates.
        """
        what = what or function
        message = _message(function, payload, what, cwd)
        lines, before, start, pending = Lines(on_line), self._cancellations, time.monotonic(), LineAnswer()
        answer = None

        def stop() -> bool:
            return self._cancellations != before or (cancel is not None and cancel.is_set())

        child = self._take({**os.environ, **(env or {})}, fresh)
        try:
            wait_for_answer(child, [message], pending, lines, time_limit_s=time_limit_s, stop=stop)
            answer = pending.value()
        except TimeUp:
            text = f"{what} did not end within {time_limit_s:g} s and was killed (peak memory {child.peak_mib:.0f} MiB)"
            raise TimeLimitError(text, hint="raise its time limit or see its log", log=lines.text()) from None
        except Stopped:
            raise Interrupted(f"{what} was stopped") from None
        finally:
            self._give_back(child, answer, keep=not fresh)
        if answer is None:
            raise _crash(child, what, error, time.monotonic() - start, lines)
        value = _value(answer, what, lines)
        if on_peak is not None:
            on_peak(max(answer["memory_mib_peak"], child.peak_mib))
        return value

    def prestart(self, shared: Sequence[str] = (), imports: Sequence[str] = (), *, count: int = 1) -> None:
        """Start missing children and let them import modules in the background.

        shared: imported here first, if the children are forks of this process. imports: only in the children.
        """
        with self._lock:
            missing = min(count, self._max_idle) - len(self._idle)
        fork = missing > 0 and may_fork()
        if fork:
            with not_collected():
                import_early(shared)
        for _ in range(missing):
            child = start_child(Command(dict(os.environ), fork=fork))
            child.send_early({"imports": [*shared, *imports], "sys_path": search_path()})
            self._keep(child)

    def cancel_all(self) -> None:
        """Kill every child; the threads that wait for one raise `Interrupted`."""
        with self._lock:
            self._cancellations += 1
            busy = list(self._busy)
        for child in busy:
            child.kill()
        self.close()

    def close(self) -> None:
        """Kill the idle children."""
        with self._lock:
            children, self._idle = self._idle, []
        for child in children:
            child.end()

    def _take(self, env: Mapping[str, str], fresh: bool) -> Child:
        """Return the most recently used idle child with the same environment, else a new one."""
        with self._lock:
            dead = [c for c in self._idle if not c.listens()]
            self._idle = [c for c in self._idle if c not in dead]
            fitting = [] if fresh else [c for c in self._idle if c.env == env]
            if fitting:
                self._idle.remove(fitting[-1])
                self._busy.append(fitting[-1])
        for child in dead:
            child.end()
        if fitting:
            return fitting[-1]
        child = start_child(Command(dict(env)))
        with self._lock:
            self._busy.append(child)
        return child

    def _give_back(self, child: Child, answer: Mapping[str, Any] | None, *, keep: bool) -> None:
        """Keep the child for the next job, or kill it. One without an answer may still be working; one whose job failed
        may be unusable (after some CUDA errors every later call of the process fails)."""
        child.jobs += 1
        with self._lock:
            self._busy.remove(child)
        if (
            keep
            and answer
            and "value" in answer
            and child.jobs < self._max_jobs
            and answer["memory_mib"] <= self._max_idle_mib
        ):
            self._keep(child)
        else:
            child.end()

    def _keep(self, child: Child) -> None:
        with self._lock:
            self._idle.append(child)
            surplus = [self._idle.pop(0) for _ in range(len(self._idle) - self._max_idle)]
        for old in surplus:
            old.end()


def _message(function: str, payload: Mapping[str, Any], what: str, cwd: Path | None) -> memoryview:
    """Return the job as a line of JSON; each job sets the child's search path and folder again."""
    where = {"sys_path": search_path(), "cwd": str(cwd or working_folder())}
    message = {"function": function, "payload": dict(payload), "what": what, **where}
    return memoryview(json.dumps(message).encode() + b"\n")


def _value(answer: Mapping[str, Any], what: str, lines: Lines) -> dict[str, Any]:
    if "error" in answer:
        raised = decode_error(answer["error"])
        if isinstance(raised, StepError) and not raised.log:
            raised.log = lines.text()
        raise raised
    if "defect" in answer:
        defect = answer["defect"]
        raise ChildDefect(
            f"{what} raised {defect['type']}: {defect['message']}",
            hint="this is a defect of Engineworks; please report it with the log",
            log=defect["traceback"],
        )
    value: dict[str, Any] = answer["value"]
    return value


CAUSES: Mapping[int, str] = {
    signal.SIGSEGV: "it touched memory that is not its own",
    signal.SIGBUS: "it touched memory that is not there; is a disk full?",
    signal.SIGABRT: "it gave up by itself",
    signal.SIGILL: "it was built for another processor",
    signal.SIGKILL: "it was killed from outside: most likely memory ran out",
    signal.SIGTERM: "it was asked to end from outside",
}


FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGBUS)
BY_ITSELF = (signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)


def how_it_ended(child: Child) -> str:
    """Return how a child ended, as the predicate of a sentence."""
    code = child.exit_code
    if code >= 0:
        return f"ended with exit code {code} and no answer"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"crashed with {name}" + (f" ({CAUSES[-code]})" if -code in CAUSES else "")


def _crash(child: Child, what: str, error: type[StepError], seconds: float, lines: Lines) -> StepError:
    """Return the error of a child that ended without an answer."""
    code, how = child.exit_code, how_it_ended(child)
    last = lines.last_before_crash()
    return error(
        f"{what} {how} after {seconds:.1f} s"
        + (f", peak memory {child.peak_mib:.0f} MiB" if child.peak_mib else "")
        + (f"; its last line: {last}" if last else ""),
        log=lines.text(),
        crash="outside" if -code in FROM_OUTSIDE else "library" if -code in BY_ITSELF else "",
    )


_pool: ChildPool | None = None
_pool_lock = threading.Lock()


def default_pool() -> ChildPool:
    """Return the pool of this process, created on first use."""
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ChildPool()
            atexit.register(_pool.close)
        return _pool


def run_in_child(function: str, payload: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Call `ChildPool.run` of this process's pool."""
    return default_pool().run(function, payload, **options)


def _forget_pool() -> None:
    """Drop the pool after a fork: its children belong to the parent."""
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_pool)
