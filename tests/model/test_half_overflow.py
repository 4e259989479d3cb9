"""Overflow in half precision is told by the node where it begins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from half_conversion import to_half
from onnx import TensorProto, helper, numpy_helper

from engineworks.errors import PrecisionError
from engineworks.model.lower.half.graph import FORMATS
from engineworks.model.lower.half.half import lower_half
from engineworks.model.lower.half.overflow import first_overflow
from engineworks.model.lower.half.run import Bench
from engineworks.model.lower.report import HalfLimits

FLOAT = TensorProto.FLOAT


def grows(mask: float = 0.0) -> onnx.ModelProto:
    """y = ((x * 300 + mask) * 300) / 90000: the second product passes 65504."""
    nodes = [
        helper.make_node("Mul", ["x", "c"], ["a"], name="once"),
        helper.make_node("Add", ["a", "m"], ["b"], name="masked"),
        helper.make_node("Mul", ["b", "c"], ["d"], name="twice"),
        helper.make_node("MatMul", ["d", "w"], ["y"], name="back"),
    ]
    stored = {"c": np.float32(300), "m": np.float32([mask, 0]), "w": np.eye(2, dtype=np.float32) / 9e4}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 2])],
        [numpy_helper.from_array(np.asarray(v, np.float32), n) for n, v in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


SAMPLES = [{"x": np.full((1, 2), 0.1, np.float32)}, {"x": np.full((1, 2), 2, np.float32)}]


def test_the_first_node_that_overflows_is_found(tmp_path: Path) -> None:
    made = to_half(grows(), "float16").model
    found = first_overflow(Bench(tmp_path), grows(), made, FORMATS["float16"], SAMPLES)
    assert found is not None
    assert (found.node, found.op_type, found.tensor, found.sample) == ("twice", "Mul", "d", 1)


def test_bfloat16_holds_it(tmp_path: Path) -> None:
    made = to_half(grows(), "bfloat16").model
    assert first_overflow(Bench(tmp_path), grows(), made, FORMATS["bfloat16"], SAMPLES) is None


def test_infinities_that_fp32_has_too_do_not_count(tmp_path: Path) -> None:
    model = grows(-np.inf)
    made = to_half(model, "float16").model
    found = first_overflow(Bench(tmp_path), model, made, FORMATS["float16"], SAMPLES[:1])
    assert found is None


def test_a_failed_proof_names_the_node() -> None:
    unseen = HalfLimits(min_cosine=0.99, min_sqnr_db=20, headroom=1e-6, rounds=0)  # as if the samples had told nothing
    with pytest.raises(
        PrecisionError, match=r"is infinite or NaN .*; node 'twice' \(Mul\) is the first: its output 'd'"
    ) as caught:
        lower_half(grows(), "float16", SAMPLES, limits=unseen, autocast=False)
    assert caught.value.exit_code == 2


def test_what_the_samples_tell_is_repaired_without_a_word() -> None:
    _, report = lower_half(grows(), "float16", SAMPLES, autocast=False)
    assert "twice" in report.kept
