"""JSON files of ours, read fast: reports hold tens of thousands of figures, and a night reads hundreds of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic_core import from_json


def read_json_file(path: Path | str) -> Any:
    """The value in a UTF-8 file, as `json.loads` gives it, NaN and infinities too.

    Raises `OSError` where it can not be read, `ValueError` where it is no JSON.
    """
    with open(path, "rb") as file:  # noqa: PTH123 - a store asks for thousands
        return parse_json(file.read())


def parse_json(data: bytes) -> Any:
    """The value of UTF-8 text. Pydantic's parser takes a quarter of the time of Python's own, which is asked again
    where it refuses (lone surrogates, very deep nesting) and whose error is the one that is raised."""
    try:
        return from_json(data, cache_strings="keys")
    except ValueError:
        return json.loads(data.decode())
