"""Layers by operator, and the sentence on why an engine is not faster."""

from __future__ import annotations

import pytest

from engineworks.measure.layers import Layer, Layers, by_operator, fused, why_not_faster


def layer(ms: float, *ops: str, name: str = "", kernel: str = "") -> Layer:
    return Layer(name or "+".join(ops), "kind", ms, (name,) if name else tuple(ops), ops, kernel)


def layers(*timed: Layer) -> Layers:
    return Layers("single", 20, "a test", timed)


def test_layers_are_put_together_by_what_they_compute() -> None:
    timed = layers(layer(1, "MatMul", "Add"), layer(2, "MatMul", "Add"), layer(0.5, "Softmax"))
    first, second = by_operator(timed)
    assert (first.label, first.layers, first.nodes, first.ms) == ("MatMul + Add", 2, 4, 3)
    assert (second.label, second.share) == ("Softmax", pytest.approx(1 / 7))
    assert [f.label for f in fused(timed)] == ["MatMul + Add", "MatMul + Add"]


def test_quantization_within_a_fusion_does_not_name_it_and_alone_it_does() -> None:
    assert layer(1, "DequantizeLinear", "MatMul", "QuantizeLinear").label == "MatMul"
    assert layer(1, "QuantizeLinear", "DequantizeLinear").is_rounding
    assert not layer(1, "DequantizeLinear", "MatMul").is_rounding
    assert layer(1, "Cast").is_cast


@pytest.mark.parametrize(
    ("kernel", "tensor_cores"),
    [("sm90_xmma_gemm_i8i8_i32", True), ("cutlass_tensorop_s16816gemm_f16", True), ("ampere_sgemm_32x128", False),
     ("cask_ffma_gemm", False), ("void cutlass::Kernel<simt_dgemm>", False), ("__myl_MeanSub", None), ("", None)],
)  # fmt: skip
def test_tensor_cores_follow_from_the_kernels_name(kernel: str, tensor_cores: bool | None) -> None:
    assert layer(1, "MatMul", kernel=kernel).uses_tensor_cores is tensor_cores


def test_the_sentence_has_the_numbers_that_explain_the_difference() -> None:
    fp16 = layers(*(layer(0.1, "MatMul", name=f"p{i}", kernel="hmma") for i in range(4)), layer(0.1, "Softmax"))
    int8 = layers(
        *(layer(0.3, "MatMul", name=f"p{i}", kernel="ffma") for i in range(2)),
        *(layer(0.05, "MatMul", name=f"p{i}", kernel="imma") for i in range(2, 4)),
        layer(0.08, "QuantizeLinear", name="q"), layer(0.1, "Softmax"),
    )  # fmt: skip
    assert why_not_faster("int8", int8, "fp16", fp16) == (
        "int8 is slower than fp16 (0.88 ms against 0.5 ms in layers): 2 of 4 products run a kernel without tensor cores, "
        "0.6 ms; products 0.7 ms against 0.4 ms, 2 of 4 take longer; Q/DQ that was not fused: 0.08 ms in 1 layers."
    )
    assert why_not_faster("fp16", fp16, "int8", int8).startswith("fp16 is faster than int8")


def test_without_layers_there_is_no_sentence() -> None:
    assert why_not_faster("a", Layers(why="no profiler"), "b", layers(layer(1, "MatMul"))) == ""


def test_layers_survive_the_record() -> None:
    timed = layers(layer(1, "MatMul", "Add", kernel="hmma"))
    assert Layers.from_json(timed.to_json()) == timed
