"""Statements of releases: which engine took which role, in which order. Reads and checks them; `release.issuer` signs.

    statements.json   {"statements": [{"statement": 1, "model", "recipe", "precision", "target", "engine": sha256,
                      "verdict": "pass", "number", "previous": sha256 of the statement before, "issued_at",
                      "signature"}, …]}    oldest first

A role is one precision and target of a registered model. Its statements are numbered from 1, and each names the digest
of the one before: nothing can be removed from the middle, put in, or exchanged. The newest is the signed word; those
before it are vouched for by the digests. The newest that this host has seen is remembered: an older one is refused from
then on.

    <folder>/<model>/<precision>@<target>.json     the statement; names are percent-encoded

The folder is ENGINEWORKS_KNOWN_STATEMENTS, by default `known-statements` under the artifacts. It is written only where
keys are trusted. Who deletes it makes this host believe the next statement that is signed, of whatever age.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import Field

from engineworks.engines.engine_files import STATEMENTS_FILE
from engineworks.engines.passport import Passport, SignatureFacts
from engineworks.engines.signing import Trust
from engineworks.engines.strict_json import Digest, parse_document, read_bytes, typed
from engineworks.errors import TrustError
from engineworks.fingerprint import digest_of
from engineworks.host.atomic_write import write_atomically
from engineworks.host.lock import locked
from engineworks.settings import KNOWN_STATEMENTS, read_settings
from engineworks.typed_json import Document

LONGEST = 100
"""Statements of a role that are kept; a host that has missed more releases must be told by hand what it may trust."""

RELEASE_AGAIN = "run 'engineworks release' where the signing key is"


@dataclass(frozen=True)
class Statement(Document):
    """One release: the engine (sha256 of its main file) became champion of the role. number: from 1. previous: digest
    of the statement before it, None for the first. issued_at: ISO 8601, UTC."""

    statement: Literal[1]
    model: str
    recipe: str
    precision: str
    target: str
    engine: Digest
    verdict: str
    number: Annotated[int, Field(ge=1, lt=2**53)]
    previous: Digest | None
    issued_at: str
    signature: SignatureFacts | None = None

    @property
    def role(self) -> tuple[str, str, str]:
        """Return model, precision and target."""
        return self.model, self.precision, self.target

    @property
    def name(self) -> str:
        """Return the statement's name in messages."""
        return f"statement {self.number} of {self.model} {self.precision}/{self.target}"

    @property
    def digest(self) -> str:
        """Return the sha256 of the statement with its signature, which the next one names."""
        return digest_of(self.to_json())


@dataclass(frozen=True)
class Statements(Document):
    """The statements of one role, oldest first; at least one."""

    statements: Annotated[tuple[Statement, ...], Field(min_length=1)]

    @property
    def newest(self) -> Statement:
        return self.statements[-1]

    def and_then(self, statement: Statement) -> Statements:
        """Return the statements with one more, of which the newest `LONGEST` are kept."""
        return Statements((*self.statements, statement)[-LONGEST:])


def check_order(statements: Sequence[Statement], what: str) -> None:
    """Raises `TrustError` unless each statement follows the one before it."""
    first = statements[0]
    if (first.number == 1) != (first.previous is None):
        raise TrustError(f"{what}: {first.name} names a wrong predecessor", hint=RELEASE_AGAIN)
    for before, after in pairwise(statements):
        if after.role != before.role:
            raise TrustError(f"{what}: {before.name} is followed by {after.name}", hint=RELEASE_AGAIN)
        if after.number != before.number + 1:
            raise TrustError(f"{what}: {before.name} is followed by number {after.number}", hint=RELEASE_AGAIN)
        if after.previous != before.digest:
            raise TrustError(
                f"{what}: {after.name} follows another statement {before.number}",
                hint="two releases were signed at once, or one was exchanged: " + RELEASE_AGAIN,
            )


def read_statements(folder: Path) -> Statements | None:
    """Return the statements next to an engine, None where there are none. Raises `TrustError`."""
    path = folder / STATEMENTS_FILE
    return read_statements_file(path) if path.exists() or path.is_symlink() else None


def read_statements_file(path: Path) -> Statements:
    """Raises `TrustError`, also for a gap, a foreign predecessor or another role."""
    statements = typed(Statements, parse_document(read_bytes(path), str(path)), str(path))
    check_order(statements.statements, str(path))
    return statements


def check_statement(statement: Statement, passport: Passport, trust: Trust, what: str) -> None:
    """Compare a release's newest statement with the engine's passport. Raises `TrustError`: unsigned where a signature
    is required, a verdict other than pass, or another engine or role.

    what: where the statement is, for messages.
    """
    trust.check(statement.to_json(), f"{what}: {statement.name}")
    if statement.verdict != "pass":
        raise TrustError(f"{what}: the verdict of {statement.name} is {statement.verdict}", hint=RELEASE_AGAIN)
    engine = passport.facts.engine
    agree(
        f"{what}: {statement.name}",
        {
            "recipe": (statement.recipe, passport.facts.recipe.name),
            "precision": (statement.precision, engine.precision),
            "target": (statement.target, engine.target.name),
            "engine": (statement.engine, engine.sha256),
        },
    )


def agree(what: str, facts: Mapping[str, tuple[str, str]]) -> None:
    """Raises `TrustError` for the first fact that differs. facts: name → what is said there, what the passport says."""
    for fact, (stated, issued) in facts.items():
        if stated != issued:
            raise TrustError(
                f"{what} is for {fact} {stated[:80]}, the engine's passport is for {issued[:80]}",
                hint="another engine was put in its place, or an older one put back: do not use it",
            )


@dataclass(frozen=True)
class KnownStatements:
    """The folder."""

    folder: Path

    def newest(self, role: tuple[str, str, str]) -> Statement | None:
        """Return the newest statement of the role that was seen here. Raises `TrustError` where it cannot be read."""
        place = self._place(role)
        if not place.exists():
            return None
        return typed(Statement, parse_document(read_bytes(place), str(place)), str(place))

    def accept(self, statements: Statements, what: str) -> None:
        """Check that the statements go on from the newest known one, and remember their newest.

        Check everything else before. Raises `TrustError`: older than the known one, or not its successor; also where
        nothing can be remembered. what: where the statements are, for messages.
        """
        place = self._place(statements.newest.role)
        try:
            with locked(place.with_suffix(".lock")):
                known = self.newest(statements.newest.role)
                self.check(statements, what)
                if known is None or known.number < statements.newest.number:
                    text = json.dumps(statements.newest.to_json(), indent=1) + "\n"
                    write_atomically(place, text.encode(), durable=True)
        except OSError as error:
            raise TrustError(
                f"{place}: the newest release cannot be remembered: {error.strerror}",
                hint=f"let {KNOWN_STATEMENTS} name a folder that outlives this process",
            ) from None

    def check(self, statements: Statements, what: str) -> None:
        """Check as `accept`, and remember nothing."""
        known, newest = self.newest(statements.newest.role), statements.newest
        if known is None:
            return
        if newest.number < known.number:
            raise TrustError(
                f"{what}: {newest.name} is older than number {known.number}, which was seen here before",
                hint="an older champion was put back; 'engineworks rollback' goes back by a new statement",
            )
        first = statements.statements[0]
        same = next((s for s in statements.statements if s.number == known.number), None)
        follows = first.number == known.number + 1 and first.previous == known.digest
        if (same is None and not follows) or (same is not None and same.digest != known.digest):
            why = "another statement has its number" if same else "statements between them are missing"
            raise TrustError(
                f"{what}: {newest.name} does not go on from number {known.number}, which was seen here before: {why}",
                hint=f"one was exchanged, or two registries share a name; to trust it delete {self._place(known.role)}",
            )

    def _place(self, role: tuple[str, str, str]) -> Path:
        model, precision, target = (quote(part, safe="").replace(".", "%2E") for part in role)
        return self.folder / model / f"{precision}@{target}.json"


def read_known_statements() -> KnownStatements:
    """Return this host's, by the environment."""
    return KnownStatements(read_settings().known_statements)
