"""Reads JSON that came from elsewhere: passports, statements, manifests of packages. What is not exactly as documented
is one `TrustError`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import StringConstraints

from engineworks.errors import TrustError
from engineworks.fingerprint import canonical_json
from engineworks.host.regular_files import read_regular
from engineworks.typed_json import parse

T = TypeVar("T")

LARGEST_BYTES = 64 * 2**20
DEEPEST = 32

Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
"""sha256, 64 hex digits."""

_FETCH_AGAIN = "fetch it again from where it was made"


def read_bytes(path: Path, missing: str = "") -> bytes:
    """Return the bytes of a regular file, read once. missing: what to do where there is none. Raises `TrustError`."""
    try:
        return read_regular(path, LARGEST_BYTES)
    except FileNotFoundError:
        raise TrustError(f"{path}: does not exist", hint=missing or _FETCH_AGAIN) from None
    except OSError as error:
        raise TrustError(f"{path}: cannot be read: {error.strerror}", hint=_FETCH_AGAIN) from None


def parse_document(data: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object. Raises `TrustError` for duplicate keys, NaN, text that is not Unicode, and deep nesting.

    what: its name in messages, such as the file's path.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise TrustError(f"{what}: duplicate key {twice[:80]!r}", hint=_FETCH_AGAIN)
        return found

    def refuse(constant: str) -> Any:
        raise TrustError(f"{what}: holds {constant}, which is no number in JSON", hint=_FETCH_AGAIN)

    try:
        document = json.loads(data.decode(), object_pairs_hook=unique, parse_constant=refuse)
        if _depth(document) > DEEPEST:
            raise RecursionError
        canonical_json(document).encode()
    except RecursionError:
        raise TrustError(f"{what}: is nested deeper than {DEEPEST} levels", hint=_FETCH_AGAIN) from None
    except ValueError as error:  # also UnicodeError
        raise TrustError(f"{what}: is not JSON: {str(error)[:120]}", hint=_FETCH_AGAIN) from None
    if not isinstance(document, dict):
        raise TrustError(f"{what}: is not a JSON object", hint=_FETCH_AGAIN)
    return document


def typed(kind: type[T], document: Any, what: str) -> T:
    """Return the document as the frozen dataclass `kind`. Raises `TrustError` for the first unknown or missing key, or
    value of another type."""
    return parse(kind, json.dumps(document), what, error=TrustError, hint=_FETCH_AGAIN)


def _depth(value: Any) -> int:
    """Count levels of nesting without recursion."""
    depth, level = 0, [value]
    while level := [v for v in level if isinstance(v, dict | list)]:
        depth += 1
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
        if depth > DEEPEST:
            break
    return depth
