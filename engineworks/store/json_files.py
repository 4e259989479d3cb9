"""This project's JSON files, read fast: a report holds tens of thousands of numbers, a nightly run reads hundreds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic_core import from_json

SAMPLES = b'samples": ['
NOT_NUMBERS = (b"[", b"{", b'"')
"""What begins a value that may hold commas of its own."""


def read_json_file(path: Path | str) -> Any:
    """The value in a UTF-8 file, as `json.loads` gives it, NaN and infinities too.

    Raises `OSError` where it cannot be read, `ValueError` where it is no JSON.
    """
    with open(path, "rb") as file:  # noqa: PTH123 - a store asks for thousands
        return parse_json(file.read())


def read_figures(path: Path | str, longest: int) -> Any:
    """As `read_json_file`, but for raw samples: a list of more than `longest` numbers whose key ends in 'samples' is
    replaced by its length, {"values": 52991}. They are most of a report's text, and its parsing.

    Raises the same.
    """
    with open(path, "rb") as file:  # noqa: PTH123
        return parse_json(_without_samples(file.read(), longest))


def _without_samples(data: bytes, longest: int) -> bytes:
    """Found by the quote that ends a key: within a text it would be escaped, and what follows another."""
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
    """The value of UTF-8 text. Pydantic's parser takes a quarter of the time of Python's own, which is asked again
    where it refuses (lone surrogates, very deep nesting) and whose error is the one that is raised."""
    try:
        return from_json(data, cache_strings="keys")
    except ValueError:
        return json.loads(data.decode())
