"""Reads this project's JSON files fast: a report holds tens of thousands of numbers, a nightly run reads hundreds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from engineworks.errors import EngineworksError

SAMPLES = b'samples": ['
NOT_NUMBERS = (b"[", b"{", b'"')
"""First characters of values that may contain commas."""


def read_json_file(path: Path | str) -> Any:
    """Return the value in a UTF-8 file, as `json.loads` does, including NaN and infinities.

    Raises `OSError` where it cannot be read, `ValueError` where it is not JSON.
    """
    with open(path, "rb") as file:  # noqa: PTH123 - a store asks for thousands
        return parse_json(file.read())


def read_json_object(path: Path, error: type[EngineworksError]) -> dict[str, Any]:
    """Return the object in a file that others wrote. Raises `error` where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise error(f"{path}: cannot be read as JSON: {reason}") from None
    if not isinstance(value, dict):
        raise error(f"{path}: is not a JSON object")
    return value


def without_samples(data: bytes, longest: int) -> bytes:
    """Return a report's text without raw samples, which take most of it and of the time to parse it.

    A list of more than `longest` numbers whose key ends in 'samples' becomes its length: {"values": 52991}. Lists are
    found by the quote that ends a key: inside a text it would be escaped, and different text would follow.
    """
    parts: list[bytes] = []
    done = at = 0
    while (at := data.find(SAMPLES, at)) >= 0:
        begin, end = at + len(SAMPLES), data.find(b"]", at)
        values = data[begin:end]
        at = begin
        if end < 0 or any(mark in values for mark in NOT_NUMBERS):
            continue
        count = values.count(b",") + 1
        if count > longest:
            parts += (data[done : begin - 1], b'{"values": %d}' % count)
            done = at = end + 1
    return b"".join((*parts, data[done:]))


def parse_json(data: bytes) -> Any:
    """Parse UTF-8 text. Pydantic's parser takes a quarter of the time of Python's own. Where it fails (lone surrogates,
    very deep nesting), Python's parser tries again and raises its own `ValueError`."""
    try:
        return from_json(data, cache_strings="keys")
    except ValueError:
        try:
            return json.loads(data.decode())
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
