"""A remote store that may be away or slow: the build goes on with the local one, and what was made is published later.

    <artifacts>/store/unpublished/<key>    an empty file for each artifact that the remote store does not have yet

Every call has a time limit, for a network that swallows packets never says no. After one that failed the remote store
is left alone for `RETRY_S`: a build with a hundred steps waits once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from engineworks.errors import StoreError, TimeLimitError
from engineworks.store_remote import RemoteStore

R = TypeVar("R")

ANSWER_S = 15.0
"""Seconds for a question."""

LEAST_MIB_PER_S = 1.0
"""A transfer that is slower is given up."""

FETCH_S = 600.0
"""Seconds for fetching an artifact, whose size is not known before."""

RETRY_S = 60.0


class LastingRemote:
    """A `RemoteStore` whose failures are misses. Safe for use by several threads."""

    def __init__(
        self, remote: RemoteStore, unpublished: Path, *, answer_s: float = ANSWER_S, retry_s: float = RETRY_S
    ) -> None:
        self._remote, self._unpublished = remote, unpublished
        self._answer_s, self._retry_s = answer_s, retry_s
        self._trouble = ""
        self._away_since = 0.0

    @property
    def outage(self) -> str:
        """One sentence where the last call failed, else ''."""
        if not self._trouble:
            return ""
        waiting = len(self.waiting())
        kept = f"{waiting} results are kept here: the next build publishes them, or 'engineworks sync'"
        return f"{self._trouble}; {kept if waiting else 'what it holds was not used'}"

    def has(self, key: str) -> bool:
        return bool(self._try(lambda: self._remote.has(key), self._answer_s))

    def fetch(self, key: str, into: Path) -> bool:
        if not self.has(key):
            return False
        return bool(self._try(lambda: self._remote.fetch(key, into), FETCH_S))

    def expect(self, key: str) -> None:
        """Note that the artifact is about to be there: whoever is killed before `publish` leaves it to the next."""
        self._unpublished.mkdir(parents=True, exist_ok=True)
        (self._unpublished / key).touch()

    def publish(self, key: str, folder: Path) -> bool:
        """Whether it is there now; if not, `waiting` names it."""
        self.expect(key)
        mib = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 2**20

        def publish() -> bool:
            self._remote.publish(key, folder)
            return True

        done = bool(self._try(publish, self._answer_s + mib / LEAST_MIB_PER_S))
        if done:
            (self._unpublished / key).unlink(missing_ok=True)
        return done

    def publish_late(self, key: str, folder: Path) -> bool:
        """`publish` of what waits; an artifact that is gone from here waits no longer."""
        if folder.is_dir():
            return self.publish(key, folder)
        (self._unpublished / key).unlink(missing_ok=True)
        return False

    def waiting(self) -> list[str]:
        """Keys that are here and not there."""
        return sorted(file.name for file in self._unpublished.glob("*"))

    def remove(self, key: str) -> None:
        self._try(lambda: self._remote.remove(key), self._answer_s)

    def _try(self, call: Callable[[], R], limit_s: float) -> R | None:
        """The call's answer; None where it failed, took too long, or one before did so a moment ago."""
        if self._trouble and time.monotonic() - self._away_since < self._retry_s:
            return None
        try:
            answer = within(call, limit_s)
        except StoreError as error:
            message = error.message
        except TimeLimitError:
            message = f"the store {self._remote.url} did not answer within {limit_s:g} s"
        else:
            self._trouble = ""
            return answer
        self._trouble, self._away_since = message, time.monotonic()
        return None


def within(call: Callable[[], R], limit_s: float) -> R:
    """The call's answer. Raises `TimeLimitError` after `limit_s` seconds, and then the call itself goes on in a thread
    that keeps no process alive; `StoreError` for whatever the call raises, for every driver has errors of its own."""
    answers: list[R] = []
    errors: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(call())
        except Exception as error:  # noqa: BLE001 - the outer boundary of a thread; raised again below
            errors.append(error)

    thread = threading.Thread(target=ask, daemon=True, name="remote store")
    thread.start()
    thread.join(limit_s)
    if answers:
        return answers[0]
    if not errors:
        raise TimeLimitError(f"no answer within {limit_s:g} s")
    if isinstance(errors[0], StoreError):
        raise errors[0]
    raise StoreError(f"the remote store failed: {type(errors[0]).__name__}: {errors[0]}")
