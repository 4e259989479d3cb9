"""The one tree of errors, and how a place in a file is written.

EngineworksError                 70  a defect of ours unless a subclass says otherwise
├── InputError                    2  what the user gave is wrong; nothing was started
│   ├── RecipeError               2  one or more problems in a recipe, defaults or targets file, each with its place
│   ├── ModelError                2  the model file, factory or folder cannot be used
│   ├── SamplesError              2  calibration or evaluation data does not fit the model
│   ├── TargetError               2  unknown target, or one that cannot do what was asked
│   └── TrustError                2  an engine is altered, unsigned where it must be, or a stranger's: not loaded
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
│   └── TimeLimitError            4  a child process outlived its limit and was killed
├── StoreError                    4  the store cannot be read or written
├── TrackingError                 4  MLflow cannot be reached or refused a record
├── ChildDefect                  70  a job in a child raised what no class here covers; `log` holds its traceback
└── Interrupted                 130  the user stopped the run

A failed gate is not here: it is a verdict (`gates.Verdict`), recorded like any other, and the command's exit code is 1.

Wording: what happened with the value, where, what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

EXIT_PASSED = 0
EXIT_GATE_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INCONCLUSIVE = 3
EXIT_STEP_FAILED = 4
EXIT_DEFECT = 70
EXIT_INTERRUPTED = 130


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
    """One thing that is wrong: where, what, and what to do about it. about: path of another part of the recipe that
    the message refers to; where that part is wrong itself, this problem only follows from it. missing: a file that the
    recipe names is not on this host."""

    place: Place
    message: str
    hint: str = ""
    about: tuple[str | int, ...] = ()
    missing: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" + (f"; {self.hint}" if self.hint else "")


class EngineworksError(Exception):
    """Base of all errors that we raise; `str()` is the whole message for the user, hint included."""

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
    """key: which key of the recipe's data entry it is about, and model_input: which input; '' where not known."""

    def __init__(self, message: str, *, hint: str = "", key: str = "", model_input: str = "") -> None:
        super().__init__(message, hint=hint)
        self.key = key
        self.model_input = model_input

    @property
    def about(self) -> tuple[str | int, ...]:
        """As in `Problem`."""
        return ("inputs", self.model_input) if self.model_input else ()


class TargetError(InputError):
    pass


class TrustError(InputError):
    pass


Crash = Literal["", "outside", "library"]
"""Which signal ended a step's process, '' for none. outside: one of the kernel, for want of memory or disk, or of an
operator; the same step may succeed later. library: a library's crash, which comes again unless it works otherwise."""


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
    """The recipe's to correct: unlike a `PrecisionError` it says nothing of the model."""

    exit_code = EXIT_BAD_INPUT


class PrecisionError(LoweringError):
    """It overflows, loses too much, is of too old an opset, or has nothing to lower. `precisions: auto` drops such a
    precision; otherwise the recipe is to change."""

    exit_code = EXIT_BAD_INPUT


class BuildError(StepError):
    pass


class UnsupportedError(BuildError):
    """A reason that is known, with what to do: the recipe's or the model's to change. `plan` remembers it."""

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
    """A job raised what no error of ours covers: a defect. `log` holds its traceback."""

    def __init__(self, message: str, *, hint: str = "", log: str = "") -> None:
        super().__init__(message, hint=hint)
        self.log = log


class Interrupted(EngineworksError):
    exit_code = EXIT_INTERRUPTED
