"""The capability table: what is refused, in which words, and that reading it is free. Whether it is true is shown by
real builds, in engines/test_trt_build.py and engines/test_onnxruntime.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from engineworks.engines.backends import BACKENDS
from engineworks.engines.capabilities import CAPABILITIES, PARSED, PRECISIONS, REFUSALS, why_not, why_not_target

RTX = "tensorrt_rtx"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("capabilities", [("8.0",), ("8.6",), ("8.9",), ("12.0",), ("8.0", "8.6", "8.9", "12.0")])
def test_usual_targets_take_all_precisions_of_a_recipe(precision: str, capabilities: tuple[str, ...]) -> None:
    assert why_not(RTX, "1.7.1.116", precision, capabilities) is None


@pytest.mark.parametrize(
    ("version", "precision", "capabilities", "sentence"),
    [
        (
            "1.7.1.116", "fp32", ("7.5",),
            "TensorRT-RTX 1.7 has no fp32 matrix multiplication on compute capability 7.5; "
            "use fp16 on this target, or tensorrt-rtx 1.6",
        ),
        (
            "1.7.1.116", "fp32", ("7.5", "8.9"),
            "TensorRT-RTX 1.7 has no fp32 matrix multiplication on compute capability 7.5; "
            "use fp16 on this target, or tensorrt-rtx 1.6, or leave 7.5 out",
        ),
        ("1.6.1.120", "bf16", ("7.5",), "compute capability 7.5 has no bf16; use fp16 on this target"),
        ("1.7.1.116", "fp8", ("8.6",), "compute capability 8.6 has no fp8; use int8 or fp16 on this target"),
        (
            "1.4.0.76", "int8", ("8.6",),
            "TensorRT-RTX 1.4 cannot quantize without a GPU; use fp16 on this target, or tensorrt-rtx 1.5 or later",
        ),
        (
            "1.7.1.116", "fp16", ("9.0",),
            "TensorRT-RTX 1.7 does not run on Hopper GPUs (compute capability 9.0); use tensorrt-rtx 1.6, the last one "
            "that does",
        ),
        (
            "1.7.1.116", "fp16", ("8.7",),
            "TensorRT-RTX 1.7 does not build for compute capability 8.7; use 7.5, 8.0, 8.6, 8.9, 12.0 or 12.1",
        ),
        (
            "1.4.0.76", "fp16", ("12.1",),
            "TensorRT-RTX 1.4 does not build for compute capability 12.1; use 7.5, 8.0, 8.6, 8.9, 9.0 or 12.0",
        ),
        (
            "1.6.1.120", "fp16", ("8.0", "9.0"),
            "TensorRT-RTX 1.6 cannot name 9.0 next to others; give 9.0 a target of its own",
        ),
        (
            "1.7.1.116", "fp16", (),
            "the target names no compute capability; say for example compute_capability: [12.1]",
        ),
        ("1.3.0.35", "fp16", ("8.6",), "TensorRT-RTX 1.3 is too old; use 1.4, 1.5, 1.6 or 1.7"),
    ],
)  # fmt: skip
def test_a_refusal_says_what_to_do_instead(
    version: str, precision: str, capabilities: tuple[str, ...], sentence: str
) -> None:
    assert why_not(RTX, version, precision, capabilities) == sentence


@pytest.mark.parametrize(
    ("version", "precision", "capabilities"),
    [
        ("1.6.1.120", "fp32", ("7.5",)),
        ("1.6.1.120", "fp32", ("7.5", "8.0", "8.9")),
        ("1.7.1.116", "fp16", ("7.5",)),
        ("1.6.1.120", "int8", ("9.0",)),
        ("1.7.1.116", "fp16", ("12.1",)),
        ("1.9.0.0", "fp16", ("8.6",)),
    ],
)
def test_what_differs_between_versions_is_allowed_where_it_works(
    version: str, precision: str, capabilities: tuple[str, ...]
) -> None:
    assert why_not(RTX, version, precision, capabilities) is None


def test_where_the_operators_are_known_only_those_concerned_are_refused() -> None:
    def fp32_on_turing(*operators: str) -> str | None:
        return why_not(RTX, "1.7", "fp32", ("7.5",), operators=operators)

    assert fp32_on_turing("Conv", "Relu") is None
    assert fp32_on_turing("Conv", "Gemm") is not None

    def int8_of(*quantized: str) -> str | None:
        return why_not(RTX, "1.6", "int8", ("8.6",), operators={"Conv", "MatMul"}, quantized=quantized)

    assert int8_of("MatMul") is None
    assert "no int8 convolution" in str(int8_of("Conv", "MatMul"))
    assert why_not(RTX, "1.6", "int8", ("8.6",)) is None  # a model may have none
    assert why_not(RTX, "1.7", "int8", ("8.6",), quantized={"Conv"}) is None
    assert "no bf16 ConvTranspose" in str(why_not(RTX, "1.7", "bf16", ("8.6",), operators={"ConvTranspose"}))


def test_while_the_version_is_not_known_only_what_all_refuse_is_refused() -> None:
    assert why_not(RTX, None, "fp32", ("7.5",)) is None
    assert why_not(RTX, None, "fp16", ("9.0",)) is None
    assert "no bf16" in str(why_not(RTX, None, "bf16", ("7.5",)))
    assert "does not build for compute capability 8.7" in str(why_not(RTX, None, "fp16", ("8.7",)))


def test_the_cpu_target_has_no_compute_capability_and_no_bf16() -> None:
    assert why_not("onnxruntime", "1.31.1", "int8", ()) is None
    assert "use fp32 or int8 on this target" in str(why_not("onnxruntime", "1.31.1", "bf16", ()))
    assert "leave compute_capability out" in str(why_not("onnxruntime", "1.31.1", "fp32", ("8.6",)))


def test_tensorrt_builds_for_one_gpu_at_a_time() -> None:
    assert why_not("tensorrt", "10.13.3.9", "fp16", ("9.0",)) is None
    assert "a target of its own" in str(why_not("tensorrt", "11.4.0.106", "fp16", ("8.6", "8.9")))
    assert "use 10 or 11" in str(why_not("tensorrt", "8.6.1", "fp16", ("8.6",)))


@pytest.mark.parametrize("version", ["1.7", "1.7.1.116", "1.7.0.post1", "1.7rc1"])
def test_versions_are_read_by_their_numbers(version: str) -> None:
    assert why_not_target(RTX, version, ("9.0",)) is not None


def test_an_unknown_precision_is_refused_with_the_known_ones() -> None:
    assert "use one of fp32, fp16" in str(why_not(RTX, "1.7", "fp64", ("8.6",)))


def test_the_tables_are_about_the_same_backends_precisions_and_capabilities() -> None:
    assert CAPABILITIES.keys() == BACKENDS.keys()
    for refusal in REFUSALS:
        assert set(refusal.precisions) <= set(PRECISIONS)
        assert refusal.since < refusal.until
        known = {c for n in CAPABILITIES[refusal.backend].named for c in n.capabilities}
        assert set(refusal.capabilities) <= known
        said = refusal.echo("1.7", "int8", "8.6")
        assert re.search("; (use|replace|move|keep|train|leave) ", said), said
        assert not re.search(r"{(title|version|precision|capability|found|operator)}", said)


def test_asking_imports_nothing_heavy() -> None:
    script = """
import sys
from engineworks.engines.capabilities import why_not
why_not("tensorrt_rtx", "1.7", "fp32", ("8.6",))
sys.exit(", ".join({"numpy", "onnx", "pydantic", "tensorrt_rtx"} & set(sys.modules)) or 0)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


def test_what_a_model_does_with_its_operators_is_refused_with_the_nodes() -> None:
    uses = {
        "NonZero": ["where"], "com.microsoft.GroupQueryAttention": ["g"], "Det": ["d"], "Foo.Bar": ["a", "b"], "LSTM": ["l"], "LSTM:sequence_lens": ["l"],
    }  # fmt: skip

    def said(precision: str, *names: str) -> str | None:
        return why_not(RTX, "1.7.1.116", precision, ("8.9",), operators={n: uses[n] for n in names})

    assert "does not have: com.microsoft.GroupQueryAttention (node 'g'); replace it" in str(
        said("fp16", "com.microsoft.GroupQueryAttention")
    )
    assert "cannot run NonZero (node 'where')" in str(said("fp16", "NonZero"))
    assert "does not have Det (node 'd'), Foo.Bar (node 'a', 2 nodes); " in str(said("fp32", "Foo.Bar", "Det"))
    assert "LSTM (node 'l')" in str(said("fp16", "LSTM", "LSTM:sequence_lens"))
    assert "{default: bf16, fp32: ['op:LSTM']}" in str(said("bf16", "LSTM", "LSTM:sequence_lens"))
    assert said("fp32", "LSTM", "LSTM:sequence_lens") is None
    assert said("fp16", "LSTM") is None


def test_the_table_of_operators_is_what_the_installed_parser_says() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    if not trt.__version__.startswith("1.7."):
        pytest.skip("the table is of TensorRT-RTX 1.7")
    import onnx

    from engineworks.engines.backends._trt_log import logger_of

    with logger_of(trt).sending(lambda _: None) as logger:
        parser = trt.OnnxParser(trt.Builder(logger.vendor).create_network(0), logger.vendor)
        names = {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""} | set(PARSED)
        assert {name for name in names if parser.supports_operator(name)} == set(PARSED)
