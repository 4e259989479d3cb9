"""The newest statement of every role that this host has seen: an older one is refused from then on.

    <folder>/<model>/<precision>@<target>.json     the statement; names are percent-encoded

The folder is ENGINEWORKS_KNOWN_STATEMENTS, by default `known-statements` under the artifacts. It is written only where
keys are trusted. Who deletes it makes this host believe the next statement that is signed, of whatever age.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from engineworks.engines.statements import Statement, Statements
from engineworks.engines.strict_json import parse_document, read_bytes
from engineworks.errors import TrustError
from engineworks.host.atomic_write import write_atomically
from engineworks.host.lock import locked
from engineworks.settings import KNOWN_STATEMENTS, read_settings


@dataclass(frozen=True)
class KnownStatements:
    """The folder."""

    folder: Path

    def newest(self, role: tuple[str, str, str]) -> Statement | None:
        """Return the newest statement of the role that was seen here. Raises `TrustError` where it cannot be read."""
        place = self._place(role)
        if not place.exists():
            return None
        return Statement.from_json(parse_document(read_bytes(place), str(place)), str(place))

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
