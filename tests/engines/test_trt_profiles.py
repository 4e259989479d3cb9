"""Profiles that the vendor would take in silence, or fail on without saying why."""

from __future__ import annotations

import pytest

from engineworks.engines.backends._trt_config import add_profiles, check_profile
from engineworks.errors import BuildError
from engineworks.tensors import InputRange, Profile, TensorSpec

INPUTS = (
    TensorSpec("ids", "int64", ("batch", "sequence")),
    TensorSpec("mask", "int64", ("batch", "sequence")),
    TensorSpec("scale", "float32", (1, 3)),
)

GOOD = {
    "ids": InputRange((1, 8), (4, 64), (8, 512)),
    "mask": InputRange((1, 8), (4, 64), (8, 512)),
    "scale": InputRange((1, 3), (1, 3), (1, 3)),
}


def test_a_profile_that_fits_passes() -> None:
    check_profile(Profile("p", GOOD), INPUTS)


def test_a_fixed_input_may_be_left_out() -> None:
    check_profile(Profile("p", {n: r for n, r in GOOD.items() if n != "scale"}), INPUTS)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("ids", InputRange((8, 8), (4, 64), (8, 512)), "dimension 0: min ≤ opt ≤ max does not hold for 8/4/8"),
        ("ids", InputRange((1, 8), (4, 600), (8, 512)), "dimension 1: min ≤ opt ≤ max does not hold for 8/600/512"),
        ("ids", InputRange((1,), (4,), (8,)), r"must have 2 dimensions, as ids: int64\[batch, sequence\]"),
        ("mask", InputRange((1, 8), (4, 64), (8, 256)), "'sequence' is 8/64/256 here and 8/64/512 in another input"),
        ("scale", InputRange((1, 3), (1, 4), (1, 4)), "dimension 1: the model fixes it at 3, the profile says 3/4/4"),
        ("tokens", InputRange((1, 8), (1, 8), (1, 8)), "the model has no input 'tokens'; it has ids, mask, scale"),
    ],
)  # fmt: skip
def test_a_profile_that_does_not_fit_is_refused_with_its_place(name: str, given: InputRange, said: str) -> None:
    with pytest.raises(BuildError, match=f"profile 'p'.*{said}"):
        check_profile(Profile("p", {**GOOD, name: given}), INPUTS)


def test_a_dynamic_input_that_is_missing_is_named() -> None:
    with pytest.raises(BuildError, match=r"input 'mask: .*' is missing"):
        check_profile(Profile("p", {n: r for n, r in GOOD.items() if n != "mask"}), INPUTS)


def test_dynamic_inputs_need_a_profile() -> None:
    with pytest.raises(BuildError, match=r"input 'ids: .*' has dynamic dimensions and there is no profile"):
        add_profiles(None, None, None, (), INPUTS, {})
