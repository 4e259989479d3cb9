"""JSON is read as Python's own parser reads it; without raw samples it is read as passports tell it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineworks.builds.passport import _shortened
from engineworks.store.json_files import parse_json, read_json_file, without_samples

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
KEYS = st.sampled_from(["samples", "device_samples", "of", '"samples": [', "a\\", 'x"samples', "samples\\"]) | st.text()
VALUES = st.recursive(
    SCALARS | st.lists(st.floats(allow_nan=False) | st.none(), max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


def as_written(value: Any) -> bytes:
    """As `steps.Job.write_json` writes reports."""
    return (json.dumps(value, indent=1) + "\n").encode()


@given(VALUES)
def test_what_is_read_is_what_pythons_own_parser_reads(value: Any) -> None:
    assert repr(parse_json(as_written(value))) == repr(json.loads(as_written(value)))


@pytest.mark.parametrize("text", ['"\\ud800"', "[NaN, -Infinity, 1e999, -0.0]", "[" * 500 + "]" * 500, "9" * 400])
def test_so_is_what_few_parsers_read(text: str) -> None:
    assert repr(parse_json(text.encode())) == repr(json.loads(text))


@pytest.mark.parametrize("text", ["", "{", "[1,]", '{"a": 1} {}', "\x80"])
def test_what_is_no_json_is_a_value_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "file.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError):
        read_json_file(tmp_path / "file.json")


def only_samples_shortened(value: Any, longest: int) -> Any:
    """What `without_samples` promises, done to values instead of text."""
    if isinstance(value, dict):
        return {
            k: {"values": len(v)}
            if k.endswith("samples") and is_long(v, longest)
            else only_samples_shortened(v, longest)
            for k, v in value.items()
        }
    return [only_samples_shortened(v, longest) for v in value] if isinstance(value, list) else value


def is_long(value: Any, longest: int) -> bool:
    return isinstance(value, list) and len(value) > longest and all(not isinstance(v, str | list | dict) for v in value)


@given(VALUES)
def test_long_lists_of_numbers_under_keys_of_samples_are_told_by_their_length_and_nothing_else_is(value: Any) -> None:
    found = parse_json(without_samples(as_written(value), 3))
    assert repr(found) == repr(only_samples_shortened(json.loads(as_written(value)), 3))


def test_a_report_without_its_samples_says_what_passports_say(tmp_path: Path) -> None:
    report = {
        "notes": ['"samples": [1, 2, 3]', "[" + "1, " * 100 + "]"],
        "shapes": {"one": {"samples": [0.5] * 100, "device_samples": [], "copies_samples": [1.0] * 64}},
        "sweep": [{"batch": 1, "samples": [0.25] * 65}],
    }
    (tmp_path / "latency.json").write_bytes(as_written(report))
    found = parse_json(without_samples((tmp_path / "latency.json").read_bytes(), 64))
    assert found["shapes"]["one"]["samples"] == {"values": 100}
    assert found["sweep"][0]["samples"] == {"values": 65}
    assert found["shapes"]["one"]["copies_samples"] == [1.0] * 64
    assert _shortened(found) == _shortened(report)
