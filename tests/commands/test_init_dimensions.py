"""Names of dimensions: the model's own where they say something, else by role."""

from __future__ import annotations

import pytest

from engineworks.commands.init.dimensions import name_dims, name_outputs
from engineworks.commands.init.draft import RawTensor
from engineworks.tensors import Dim


def shapes(*inputs: tuple[str, str, tuple[Dim | None, ...]]) -> list[tuple[Dim, ...]]:
    return [spec.shape for spec in name_dims([RawTensor(*one) for one in inputs]).inputs]


def test_names_that_say_something_stay() -> None:
    assert shapes(("x", "float32", ("batch_size", 3, "rows", "cols"))) == [("batch_size", 3, "rows", "cols")]


@pytest.mark.parametrize("symbols", [(None, None), ("s6", "s70"), ("unk__1", "unk__2")])
def test_dimensions_that_say_nothing_are_named_by_role(symbols: tuple[str | None, str | None]) -> None:
    assert shapes(("ids", "int64", symbols)) == [("batch", "sequence")]


def test_images_have_height_and_width_whichever_way_they_lie() -> None:
    assert shapes(("x", "float32", (None, 3, None, None))) == [("batch", 3, "height", "width")]
    assert shapes(("x", "float32", (None, None, None, 3))) == [("batch", "height", "width", 3)]


def test_equal_symbols_stay_equal_and_different_ones_different() -> None:
    found = shapes(("a", "int64", ("s0", "s1")), ("b", "int64", ("s0", "s2")))
    assert found == [("batch", "sequence"), ("batch", "b_sequence")]


def test_a_cache_has_a_past_and_is_named_last() -> None:
    cache = ("past_k", "float32", (4, "s6", 4, "s26", 32))
    assert shapes(cache, ("ids", "int64", ("s6", "s70"))) == [(4, "batch", 4, "past", 32), ("batch", "sequence")]


def test_a_mask_over_past_and_present_is_their_sum() -> None:
    named = name_dims([
        RawTensor("ids", "int64", ("b", "seq_len")), RawTensor("mask", "int64", ("b", "past_len + seq_len")),
        RawTensor("past_k", "float32", ("b", 4, "past_len", 8)),
    ])  # fmt: skip
    assert named.sums == {"past_len_and_seq_len": ("past_len", "seq_len")}


def test_outputs_are_named_by_what_the_runs_gave() -> None:
    seen = [({"batch": 1, "length": 8}, {"y": [1, 8, 5, 4]}), ({"batch": 3, "length": 8}, {"y": [3, 8, 5, 12]}),
            ({"batch": 3, "length": 16}, {"y": [3, 16, 5, 24]})]  # fmt: skip
    found = name_outputs([RawTensor("y", "float32", (None, None, None, None))], {}, seen)
    assert found == {"y": ("batch", "length", 5, "y_3")}
