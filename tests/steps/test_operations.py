"""Operations are counted from shapes: products by their multiply-adds, all else by the values that it moves."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from engineworks.steps.operations import NODE, VALUE, node_operations

Shapes = Sequence[Sequence[int]]


@pytest.mark.parametrize(
    ("op_type", "inputs", "output", "multiply_adds"),
    [
        ("Conv", [[2, 64, 56, 56], [128, 64, 3, 3]], [2, 128, 56, 56], 2 * 128 * 56 * 56 * 64 * 9),
        ("Conv", [[1, 512, 64, 64], [512, 1, 64, 64]], [1, 512, 64, 64], 512 * 64 * 64 * 64 * 64),
        ("QLinearConv", [[1, 256, 56, 56], [], [], [256, 256, 3, 3]], [1, 256, 56, 56], 256 * 56 * 56 * 256 * 9),
        ("ConvTranspose", [[1, 64, 56, 56], [64, 64, 9, 9]], [1, 64, 56, 56], 64 * 56 * 56 * 64 * 81),
        ("MatMul", [[8, 512, 768], [768, 768]], [8, 512, 768], 8 * 512 * 768 * 768),
        ("Gemm", [[512, 1024], [1024, 4096]], [512, 4096], 512 * 1024 * 4096),
        ("LSTM", [[100, 64, 128], [1, 2048, 128], [1, 2048, 512]], [100, 1, 64, 512], 100 * 64 * 2048 * 640),
        ("Einsum", [[512, 256], [256, 1024]], [512, 1024], 512 * 256 * 1024),
    ],
)
def test_products(op_type: str, inputs: Shapes, output: Sequence[int], multiply_adds: int) -> None:
    assert node_operations(op_type, inputs, [output]) == NODE + multiply_adds


def test_all_else_counts_what_it_moves() -> None:
    assert node_operations("Relu", [[10, 20]], [[10, 20]]) == NODE + 400 * VALUE
    assert node_operations("Reshape", [], []) == NODE
