"""The one tree of errors, and the format of a place in a file.

EngineworksError                 70  an internal error unless a subclass says otherwise
├── InputError                    2  wrong user input; nothing was started
│   ├── RecipeError               2  one or more problems in a recipe, defaults or targets file, each with its place
│   ├── ModelError                2  the model file, factory or folder cannot be used
│   ├── SamplesError              2  calibration or evaluation data does not fit the model
│   ├── TargetError               2  unknown target, or one that cannot do what was asked
│   └── TrustError                2  an engine is altered, lacks a required signature, or has a foreign one: not loaded
├── StepError                     4  a step of the plan failed
│   ├── ExportError               4
│   ├── PreparationError          4  text or images could not be made into samples
│   ├── FoldError                 4
│   ├── CalibrationError          4
│   ├── LoweringError             4
│   │   ├── PatternError          2  a pattern of the recipe names no node, or two formats name the same node
│   │   └── PrecisionError        2  the model cannot be computed in the precision that the recipe asks for
│   ├── BuildError                4  the builder refused or crashed; `log` holds its last lines
│   │   └── UnsupportedError      2  the builder cannot do what the model asks: building again changes nothing
│   ├── RunError                  4  an engine that was built could not be loaded or run
│   └── TimeLimitError            4  a child process exceeded its limit and was killed
├── StoreError                    4  the store cannot be read or written
├── TrackingError                 4  MLflow cannot be reached or refused a record
├── ChildDefect                  70  a job in a child raised an error of no class here; `log` holds its traceback
└── Interrupted                 130  the user stopped the run

A failed gate is not here: it is a verdict (`measure.gates.gates.Verdict`), recorded like any other, and the command's
exit code is 1.

Wording of messages: what happened with the value, where, what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

EXIT_PASSED = 0
EXIT_GATE_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INCONCLUSIVE = 3
EXIT_STEP_FAILED = 4
EXIT_DEFECT = 70
EXIT_INTERRUPTED = 130
EXIT_UNREAD = 141
"""The reader of the output ended first, as `head` does. It is the shell's exit code for SIGPIPE."""


Keys = tuple[str | int, ...]
"""Keys and indices that lead to a value of a file."""


@dataclass(frozen=True, order=True)
class Place:
    """A place in a text file; `line` and `column` count from 1, 0 means that only the file is known."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True)
class Problem:
    """One problem: its place, a message, and a fix.

    about: path of another part of the recipe that the message refers to; if that part is wrong, this problem only
    follows from it. missing: a file that the recipe names and that is not on this host.
    """

    place: Place
    message: str
    hint: str = ""
    about: Keys = ()
    missing: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" + (f"; {self.hint}" if self.hint else "")


class EngineworksError(Exception):
    """Base of all errors that Engineworks raises; `str()` is the whole message for the user, including the hint."""

    exit_code = EXIT_DEFECT

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class InputError(EngineworksError):
    exit_code = EXIT_BAD_INPUT


class RecipeError(InputError):
    """All problems of one file (or of several), sorted by place; never just the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda p: p.place))
        super().__init__("\n".join(str(p) for p in self.problems))


class ModelError(InputError):
    pass


class SamplesError(InputError):
    """key: the affected key of the recipe's data entry. model_input: the affected input. Both are '' if unknown."""

    def __init__(self, message: str, *, hint: str = "", key: str = "", model_input: str = "") -> None:
        super().__init__(message, hint=hint)
        self.key = key
        self.model_input = model_input

    @property
    def about(self) -> Keys:
        """As in `Problem`."""
        return ("inputs", self.model_input) if self.model_input else ()


class TargetError(InputError):
    pass


class TrustError(InputError):
    pass


Crash = Literal["", "outside", "library"]
"""The kind of signal that ended a step's process, '' for none.

outside: from the kernel (lack of memory or disk) or an operator; the same step may succeed later. library: a library's
crash, which recurs unless the library runs differently.
"""


class StepError(EngineworksError):
    """A step failed. `log` holds the last lines of the tool that failed, for the record, not for the message."""

    exit_code = EXIT_STEP_FAILED

    def __init__(self, message: str, *, hint: str = "", log: str = "", crash: Crash = "") -> None:
        super().__init__(message, hint=hint)
        self.log = log
        self.crash: Crash = crash


class ExportError(StepError):
    pass


class PreparationError(StepError):
    pass


class FoldError(StepError):
    pass


class CalibrationError(StepError):
    pass


class LoweringError(StepError):
    pass


class PatternError(LoweringError):
    """The user must fix the recipe. Unlike a `PrecisionError` it implies nothing about the model."""

    exit_code = EXIT_BAD_INPUT


class PrecisionError(LoweringError):
    """The precision overflows, loses too much, needs a newer opset, or has no node to lower.

    `precisions: auto` drops such a precision; otherwise the user must change the recipe.
    """

    exit_code = EXIT_BAD_INPUT


class BuildError(StepError):
    pass


class UnsupportedError(BuildError):
    """A known reason with a fix: change the recipe or the model. `plan` remembers it."""

    exit_code = EXIT_BAD_INPUT


class RunError(StepError):
    pass


class TimeLimitError(StepError):
    pass


class StoreError(EngineworksError):
    exit_code = EXIT_STEP_FAILED


class TrackingError(EngineworksError):
    exit_code = EXIT_STEP_FAILED


class ChildDefect(EngineworksError):
    """A job raised an error that no class here covers: an internal error. `log` holds its traceback."""

    def __init__(self, message: str, *, hint: str = "", log: str = "") -> None:
        super().__init__(message, hint=hint)
        self.log = log


class Interrupted(EngineworksError):
    exit_code = EXIT_INTERRUPTED


ALIASES = {
    "float": "float32", "fp32": "float32", "single": "float32", "half": "float16", "fp16": "float16",
    "double": "float64", "fp64": "float64", "int": "int32", "long": "int64", "float32": "fp32", "float16": "fp16",
    "bfloat16": "bf16", "accuracy": "top1", "acc": "top1", "min_max": "minmax", "kl": "entropy",
    "w8a16": "int8_weights", "w4a16": "int4_weights", "int4_int8": "w4a8",
}  # fmt: skip
"""Names in other tools; an alias counts only if its meaning is one of the known words."""


def did_you_mean(name: str, known: Iterable[str], *, many: int = 12) -> str:
    """A hint for a mistyped word: the closest known one, else the list of known words (shortened)."""
    names = sorted(known)
    if ALIASES.get(name.lower()) in names:
        return f"did you mean '{ALIASES[name.lower()]}'?"
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    if not names:
        return "there are none"
    shown = ", ".join(names[:many]) + (f", … ({len(names)} in all)" if len(names) > many else "")
    return f"known: {shown}"
