"""The batch: its dimension by name, by place or by use, and batches that every engine takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineworks.recipe.batch import Shape, batch_axes, batch_by_use, batch_dim, batch_sizes, fills
from engineworks.recipe.load import load_recipe
from engineworks.recipe.smoke import in_mode
from engineworks.tensors import TensorSpec, spec_from_json

Shapes = list[Shape]


@pytest.mark.parametrize(
    ("inputs", "outputs", "smallest", "batch"),
    [
        ([(10, "n", 16)], [("n", 5)], {"n": 1}, "n"),  # fixed steps of time
        ([("t", "n", 16), (1, "n", 32)], [("t", "n", 5), (1, "n", 32)], {"t": 1, "n": 1}, "n"),  # a state beside
        ([("t", "n", 16), (1, "n", 32)], [("n", 5)], {"t": 1, "n": 1}, "n"),
        ([("t", "n", 16)], [("n", "t", 5)], {"t": 7, "n": 1}, "n"),
        ([("t", "n", 16)], [("t", "n", 5)], {"t": 7, "n": 1}, ""),  # nothing tells: the recipe says batch: n
        ([("n", 3, "h", "w")], [("n", 5)], {"n": 1, "h": 32, "w": 32}, ""),
        ([("n", "s")], [("n", "s", 9)], {"n": 8, "s": 1}, ""),  # a profile of one batch
        ([("n", "s"), ("s",)], [("n", "s", 9)], {"n": 1, "s": 1}, ""),
        ([("n", "s"), (1, "s")], [("n", "s", 9)], {"n": 1, "s": 1}, ""),
        ([(1, 3, 48, "w")], [(1, "steps", 9)], {"w": 32}, ""),  # a fixed batch of one
        ([(3, "h", 320)], [(9, "h")], {"h": 224}, ""),
        ([("t", "batch", 4), (1, "t", 4)], [("t", 5)], {"t": 1, "batch": 1}, ""),
        ([(4, 8)], [(4, 2)], {}, ""),
    ],
)
def test_a_batch_off_the_first_axis_is_found_by_its_use(
    inputs: Shapes, outputs: Shapes, smallest: dict[str, int], batch: str
) -> None:
    specs = [TensorSpec(f"x{i}", "float32", tuple(shape)) for i, shape in enumerate(inputs)]
    assert batch_by_use(specs, outputs, smallest) == batch


def test_a_declared_batch_travels_with_the_specs() -> None:
    spec = TensorSpec("x", "float32", ("t", "n", 4), "n")
    assert spec_from_json(spec.to_json()) == spec
    assert batch_dim([spec]) == "n"
    assert batch_axes([spec, TensorSpec("scale", "float32", (), "n")]) == {"x": 1, "scale": None}
    assert "batch" not in TensorSpec("x", "float32", ("t", "n", 4)).to_json()


@given(st.integers(1, 12), st.integers(0, 12), st.integers(1, 80))
def test_batches_lie_between_the_smallest_and_the_largest_where_that_is_possible(
    low: int, more: int, count: int
) -> None:
    sizes = [low, low + more // 2, low + more]
    found = list(batch_sizes(count, sizes))
    assert sum(found) == count
    assert fills(count, sizes) == any(k * low <= count <= k * (low + more) for k in range(1, count + 1))
    assert not fills(count, sizes) or all(low <= n <= low + more for n in found)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_a_smoke_build_takes_samples_that_fill_the_batches(repository: Path) -> None:
    path = repository / "recipes" / "tiny.yaml"
    edit(path, "batch: [1, 4, 16]", "batch: [30, 30, 30]")
    edit(path, "one: {batch: 1}", "one: {batch: 30}")
    images = np.zeros((90, 1, 4, 4), np.float32)
    np.savez(path.with_name("test.npz"), image=images, label=np.zeros(90, np.int64))
    loaded = load_recipe(path)
    assert (loaded.files.evaluation.count, in_mode(loaded, "smoke").files.evaluation.count) == (90, 60)
