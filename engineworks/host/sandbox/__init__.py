"""Runs the code that a recipe names in a process of its own.

A sandbox runs a function of ours, `module:function`, that loads and calls the user's code. It takes plain values and
arrays, and returns them over one pipe. The reader trusts nothing from it: the user's code may write there too.

- Its process does nothing before and nothing after: no other recipe, no other step. It knows no folder of the store,
  and no variable that names one or holds a key.
- It has its own session, so that signals to its process group end it alone, and a supervisor, which ends whatever it
  started.
- Where the kernel has Landlock, it can write below its temporary folder alone, and signal no process but its own.
- With ENGINEWORKS_SANDBOX=bwrap, bubblewrap puts it into namespaces of its own: no network, no other process, and no
  file that it can write but those of its scratch folder.

What code of the same user can do without bubblewrap is in docs/security.md.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from engineworks import errors
from engineworks.errors import (
    EXIT_BAD_INPUT,
    EXIT_STEP_FAILED,
    EngineworksError,
    InputError,
    RecipeError,
    StepError,
    TimeLimitError,
)
from engineworks.host.child import how_it_ended
from engineworks.host.child.start import Command, search_path, start_child, working_folder
from engineworks.host.child.wait import Lines, TimeUp, wait_for_answer
from engineworks.host.sandbox.wire import Answer, Array, GarbledError, array_frame, end_frame

SETTING = "ENGINEWORKS_SANDBOX"
BWRAP, PROCESS = "bwrap", "process"
"""Its values: bubblewrap, or a process of its own that may write what we may. By default the kernel (Landlock)
refuses writes outside of the temporary folder, where it can."""

BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from engineworks.host.sandbox.serve import serve; serve(int(sys.argv[2]), int(sys.argv[3]))"
)

_WITHHELD = re.compile(
    r"(?:ENGINEWORKS|MLFLOW|PREFECT|AWS|AZURE|GOOGLE|FSSPEC)_|.*(?:KEY|TOKEN|SECRET|PASSW|CREDENTIAL)", re.IGNORECASE
)
"""Names of variables that user code does not get: places of ours, and whatever may open something."""


def sandbox_command(environ: Mapping[str, str], cwd: Path, scratch: Path) -> Command:
    """Return how to start a sandbox whose temporary files lie in `scratch`. Raises `InputError` as `bubblewrap`."""
    env = {name: value for name, value in environ.items() if not _WITHHELD.match(name)}
    asked = {SETTING: environ[SETTING]} if environ.get(SETTING) else {}
    return Command(env | asked | {"TMPDIR": str(scratch)}, BOOTSTRAP, bubblewrap(environ, scratch), cwd)


def bubblewrap(environ: Mapping[str, str], scratch: Path | None = None) -> tuple[str, ...]:
    """Return the call of bubblewrap, () where the setting does not ask for it.

    Raises `InputError` for another setting, and where bubblewrap is not installed.
    """
    asked = environ.get(SETTING, "")
    if asked in ("", PROCESS):
        return ()
    if asked != BWRAP:
        raise InputError(
            f"{SETTING}={asked}: unknown sandbox", hint=f"set it to '{BWRAP}' or '{PROCESS}', or leave it out"
        )
    program = shutil.which(BWRAP, path=environ.get("PATH"))
    if program is None:
        raise InputError(
            f"{SETTING}={BWRAP}: bubblewrap is not installed", hint=f"install it, or run without {SETTING}"
        )
    writable = () if scratch is None else ("--bind", str(scratch), str(scratch))
    return (
        program, "--unshare-all", "--die-with-parent", "--new-session", "--ro-bind", "/", "/", "--dev-bind", "/dev",
        "/dev", "--tmpfs", "/dev/shm", "--proc", "/proc", *writable, "--",
    )  # fmt: skip


MAX_OUTPUT_BYTES = 1 << 20
"""Output of the user's code that is passed on, in characters; a log must not fill the disk."""


class Sandbox:
    """One process for one piece of user code. Not thread-safe.

    what: names the code in messages, e.g. "the metric 'm:f'". error: the class of its failures. echo: gets every line
    of its output. time_limit_s: for all questions together.
    """

    def __init__(
        self, function: str, *, what: str, echo: Callable[[str], object], error: type[StepError] = StepError,
        time_limit_s: float | None = None,
    ) -> None:  # fmt: skip
        self._function, self._what, self._error = function, what, error
        self._say, self._room = echo, MAX_OUTPUT_BYTES
        self._limit_s, self._begin = time_limit_s, time.monotonic()
        self._cleanup = contextlib.ExitStack()
        scratch = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="engineworks-sandbox-")))
        self._child = start_child(sandbox_command(os.environ, working_folder(), scratch))
        self._cleanup.callback(self._child.end)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        """End the process and all that it started."""
        self._cleanup.close()

    @contextlib.contextmanager
    def ask(
        self, value: Mapping[str, Any], arrays: Mapping[str, Array] | None = None, *, max_bytes: int = 0,
        scratch: Path | None = None,
    ) -> Iterator[Answer]:  # fmt: skip
        """Call the function with a value and arrays, and yield what it answers.

        max_bytes: of the answer's arrays. scratch: a folder for them. Raises what the function raised, if it is an
        error of bad input or of a step; `TimeLimitError`; `error` for anything else, also for an answer that the
        caller cannot use (a `GarbledError` in the block).
        """
        where = {"function": self._function, "sys_path": search_path(), "what": self._what}
        frames = chain.from_iterable(array_frame(name, array) for name, array in (arrays or {}).items())
        lines, answer = Lines(self._output), Answer(max_bytes, scratch)
        left_s = None if self._limit_s is None else max(0.0, self._limit_s - (time.monotonic() - self._begin))
        try:
            message = chain(frames, [end_frame({"value": dict(value), **where})])
            wait_for_answer(self._child, message, answer, lines, time_limit_s=left_s, stop=lambda: False)
            if not answer.complete:
                raise self._error(f"{self._what} {how_it_ended(self._child)}", log=lines.text())
            self._child.jobs += 1
            if (failure := failure_of(answer.value, self._what, lines)) is not None:
                raise failure
            yield answer
        except GarbledError as error:
            raise self._error(f"{self._what}: its answer {error}", log=lines.text()) from None
        except TimeUp:
            text = f"{self._what} did not end within {self._limit_s:.3g} s and was ended"
            raise TimeLimitError(
                text, hint="make it faster, or raise the step's time limit", log=lines.text()
            ) from None
        finally:
            answer.close()

    def _output(self, line: str) -> None:
        if self._room > 0:
            self._room -= len(line) + 1
            self._say(line if self._room > 0 else f"{self._what}: its further output is not kept")


MAX_MESSAGE = 500
"""Characters of a message."""


def failure_of(answer: Mapping[str, Any], what: str, lines: Lines) -> EngineworksError | None:
    """Return the error that an answer holds, None for a value. lines: the output of the code, for a step's log.

    Only bad input and failed steps can come from there: no defect of ours, no interruption. A message that does not
    name the code gets its name. Raises `GarbledError` where the answer is neither.
    """
    if isinstance(answer.get("value"), dict):
        return None
    encoded = answer.get("error")
    if not isinstance(encoded, dict):
        raise GarbledError("holds no value")
    kind = getattr(errors, str(encoded.get("class")), None)
    if not (isinstance(kind, type) and issubclass(kind, EngineworksError)) or issubclass(kind, RecipeError):
        kind = StepError
    if kind.exit_code not in (EXIT_BAD_INPUT, EXIT_STEP_FAILED):
        kind = StepError
    message = one_line(str(encoded.get("message", ""))) or "failed without a message"
    if (what.split("'")[1:2] or [what])[0] not in message:
        message = f"{what}: {message}"
    error = kind(message, hint=one_line(str(encoded.get("hint", ""))))
    if isinstance(error, StepError):
        error.log = str(encoded.get("log", "")) or lines.text()
    return error


def one_line(text: str) -> str:
    """Return printable text of one line, shortened."""
    shown = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return shown if len(shown) <= MAX_MESSAGE else shown[: MAX_MESSAGE - 2] + " …"
