"""A few of the cases of benchmarks/hostile_input.py, of every kind, with another seed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import engineworks.errors

sys.path.insert(0, str(Path(engineworks.errors.__file__).parents[1] / "benchmarks"))
hostile_input = pytest.importorskip("hostile_input")

COUNTS = {"recipes": 12, "npz": 15, "images": 20, "tables": 20, "manifests": 40, "passports and packages": 12}


def failures(kind: str, count: int) -> list[str]:
    return [
        f"case {outcome['number']}: {failure}"
        for outcome in hostile_input.run_kind(kind, 1, list(range(count)))
        for failure in outcome["failures"]
        if not failure.startswith("took ")  # of time and memory the figures judge, on a quiet host
    ]


@pytest.mark.parametrize("kind", COUNTS)
def test_hostile_input_is_one_sentence(kind: str) -> None:
    assert failures(kind, COUNTS[kind]) == []


@pytest.mark.slow
def test_hostile_models_are_one_sentence() -> None:
    assert failures("models", 40) == []
