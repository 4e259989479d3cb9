"""Ends a build's record with its block, wherever the record is written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypedDict, Unpack

from engineworks.errors import EngineworksError, Interrupted
from engineworks.tracking.records import ERROR

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]


class Values(TypedDict, total=False):
    """What a run gets with its end."""

    metrics: Mapping[str, float] | None
    tags: Mapping[str, str] | None
    texts: Mapping[str, str] | None


class Ending(ABC):
    """A record that ends once: by `finish` or `fail`, else with its block: KILLED when interrupted, FAILED at any other
    error, FINISHED without one."""

    _ended: bool

    if TYPE_CHECKING:  # an attribute in one subclass, a property in the other

        @property
        def run_id(self) -> str: ...

    @abstractmethod
    def finish(self, status: EndStatus = "FINISHED", **values: Unpack[Values]) -> None: ...

    def fail(self, message: str, log: str = "") -> None:
        """End the run as FAILED: `message` becomes a tag, `log` the artifact `log.txt`."""
        self.finish("FAILED", tags={ERROR: message}, texts={"log.txt": log} if log else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ended:
            return
        if error is None:
            self.finish()
            return
        try:
            if not isinstance(error, Exception) or isinstance(error, Interrupted):  # Ctrl-C, or Prefect cancels it
                self.finish("KILLED")
            else:
                self.fail(str(error) or type(error).__name__, str(getattr(error, "log", "")))
        except EngineworksError as second:  # report the error that ended the build, not this one
            error.add_note(f"and the end of run {self.run_id} could not be recorded: {second}")
