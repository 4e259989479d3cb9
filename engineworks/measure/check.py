"""One limit compared with one measurement: its verdict and the reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from engineworks.typed_json import Record

CheckVerdict = Literal["pass", "fail", "inconclusive", "unmeasured"]


def message_of(value: Mapping[str, Any]) -> str:
    """Return the message of a check or refusal on record, '' for none. Until 0.1.0 its key was `sentence`."""
    return str(value.get("message") or value.get("sentence", ""))


@dataclass(frozen=True)
class Check(Record):
    """One limit compared with one measurement.

    waived: who accepts the failure, until when and why; '' without a waiver.
    """

    name: str
    verdict: CheckVerdict
    message: str
    waived: str = ""

    @classmethod
    def from_json(cls, value: Any, what: str = "") -> Check:
        """Read what `to_json` wrote; `waived` may be missing, and `message` have its old name."""
        return cls(value["name"], cast("CheckVerdict", value["verdict"]), message_of(value), value.get("waived", ""))

    @property
    def text(self) -> str:
        """The reason, followed by the waiver if there is one."""
        return f"{self.message} [{self.waived}]" if self.waived else self.message


def checked(name: str, good: bool, message: str) -> Check:
    """A check that passes or fails."""
    return Check(name, "pass" if good else "fail", message)


def worst(checks: Iterable[Check]) -> CheckVerdict:
    """The most severe verdict of the checks without a waiver."""
    verdicts = {c.verdict for c in checks if not c.waived}
    return next((verdict for verdict in _SEVERITY if verdict in verdicts), "pass")


def deciding(checks: Iterable[Check]) -> Check | None:
    """The first check with the most severe verdict, those with a waiver last; None if all pass."""
    open_checks = [c for c in checks if c.verdict != "pass"]
    return min(open_checks, key=lambda c: (bool(c.waived), _SEVERITY.index(c.verdict)), default=None)


_SEVERITY: tuple[CheckVerdict, ...] = ("fail", "inconclusive", "unmeasured")
