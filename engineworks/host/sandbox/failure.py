"""How user code failed, as an error: from text that it may have forged, so nothing of it decides but its words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engineworks import errors
from engineworks.errors import EXIT_BAD_INPUT, EXIT_STEP_FAILED, EngineworksError, RecipeError, StepError
from engineworks.host.child.wait import Lines
from engineworks.host.sandbox.wire import GarbledError

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
