"""The lower step: an engine is called by the precision in which it computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exact_sessions import open_exact
from onnx import TensorProto, helper, numpy_helper

from engineworks.errors import LoweringError, PrecisionError
from engineworks.model.calibrate.trust import digest_model
from engineworks.model.lower.report import Lowering
from engineworks.recipe.recipe import FORMATS
from engineworks.steps.calibrate import run as calibrate
from engineworks.steps.job import StepJob
from engineworks.steps.lower import proof_batch, run
from engineworks.tensors import TensorSpec

FLOAT, HALF, BOOL = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BOOL
value = helper.make_tensor_value_info
CALIBRATION = {"method": "minmax", "percentile": 99.99, "averaging": None}


def job_of(folder: Path, model: onnx.ModelProto, precision: str, unquantized: str = "fp32") -> StepJob:
    for name in ("fold", "out"):
        (folder / name).mkdir(parents=True)
    onnx.save(model, str(folder / "fold" / "model.onnx"))
    dtype = helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    np.savez(folder / "x.npz", x=np.linspace(-1, 1, 12).reshape(6, 2).astype(dtype))
    ranges = {"method": "minmax", "sample_count": 6, "tensors": {}, "parameters": {}}
    stored = {"model": digest_model(folder / "fold" / "model.onnx"), "ranges": ranges}
    (folder / "fold" / "ranges.json").write_text(json.dumps(stored), encoding="utf-8")
    specs = [TensorSpec("x", dtype.name, ("batch", 2)).to_json()]
    samples = {"arrays": {"x": "x"}, "count": 6, "total": 6, "specs": specs}
    params = {"precision": precision, "samples": samples, "keep": []}
    if precision in FORMATS:
        params |= {"quantized": {precision: ["*"]}, "unquantized": unquantized}
    inputs = {"fold": folder / "fold", "ranges": folder / "fold"}
    return StepJob("tiny/lower", params, inputs, {"samples": str(folder / "x.npz")}, folder / "out", lambda _: None)


def product(dtype: int) -> onnx.ModelProto:
    """y = x @ w in this type."""
    weight = numpy_helper.from_array(np.eye(2, dtype=helper.tensor_dtype_to_np_dtype(dtype)), "w")
    ends = [value("x", dtype, ["batch", 2])], [value("y", dtype, ["batch", 2])]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], "g", *ends, [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def branches() -> onnx.ModelProto:
    """y = x + x or x - x by the sign of x's sum: all of its arithmetic in branches, an integer Cast unkeyed."""
    inner = [
        helper.make_graph([helper.make_node(op, ["x", "x"], [op])], op, [], [value(op, FLOAT, None)])
        for op in ("Add", "Sub")
    ]
    nodes = [
        helper.make_node("Size", ["x"], ["n"]),
        helper.make_node("Cast", ["n"], ["flag"], to=BOOL),
        helper.make_node("If", ["flag"], ["y"], name="choice", then_branch=inner[0], else_branch=inner[1]),
    ]
    ends = [value("x", FLOAT, ["batch", 2])], [value("y", FLOAT, ["batch", 2])]
    graph = helper.make_graph(nodes, "g", *ends)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_half_precision_model_is_called_nothing_else(tmp_path: Path, precision: str) -> None:
    with pytest.raises(LoweringError, match=r"itself computes in float16 \(product\)") as caught:
        run(job_of(tmp_path, product(HALF), precision))
    assert "precisions: [fp16]" in caught.value.hint


def test_a_half_precision_model_is_taken_as_it_is_in_its_own_precision(tmp_path: Path) -> None:
    run(job_of(tmp_path, product(HALF), "fp16"))
    lowered = onnx.load(str(tmp_path / "out" / "model.onnx"))
    assert [n.op_type for n in lowered.graph.node] == ["MatMul"]


def test_a_float32_model_is_lowered(tmp_path: Path) -> None:
    run(job_of(tmp_path, product(FLOAT), "fp16"))
    lowered = onnx.load(str(tmp_path / "out" / "model.onnx"))
    assert [t.data_type for t in lowered.graph.initializer] == [HALF]


@pytest.mark.parametrize(("precision", "elem_type"), [("fp16", HALF), ("bf16", TensorProto.BFLOAT16)])
def test_a_model_in_double_is_lowered_like_one_in_float32(tmp_path: Path, precision: str, elem_type: int) -> None:
    run(job_of(tmp_path, product(TensorProto.DOUBLE), precision))
    lowered = onnx.load(str(tmp_path / "out" / "model.onnx"))
    assert [t.data_type for t in lowered.graph.initializer] == [elem_type]
    assert lowered.graph.output[0].type.tensor_type.elem_type == TensorProto.DOUBLE


@pytest.mark.parametrize("unquantized", ["fp32", "fp16"])
@pytest.mark.parametrize("precision", ["int8", "fp8", "int8_weights"])
def test_a_model_in_double_is_quantized_like_one_in_float32(tmp_path: Path, precision: str, unquantized: str) -> None:
    model = product(TensorProto.DOUBLE)
    job = job_of(tmp_path, model, precision, unquantized)
    samples = {"samples": job.params["samples"], "calibration": {**CALIBRATION, "batch": 2}}
    inputs = {"fold": tmp_path / "fold"}
    calibrate(
        StepJob("tiny/calibrate", samples, inputs, {"calibration": job.unkeyed["samples"]}, tmp_path / "fold", print)
    )
    run(job)
    report = Lowering.read(tmp_path / "out")
    assert report.formats == {"product": precision}
    lowered = onnx.load(str(tmp_path / "out" / "model.onnx"))
    assert sum(n.op_type == "DequantizeLinear" for n in lowered.graph.node) == (1 if "weights" in precision else 2)
    x = np.linspace(-1, 1, 12).reshape(6, 2)
    if precision != "fp8":
        got = open_exact(lowered).run(None, {"x": x})[0]
        np.testing.assert_allclose(got, x, atol=0.02)
        assert got.dtype == np.float64


def test_what_is_asked_as_it_is_passes_as_it_is(tmp_path: Path) -> None:
    run(job_of(tmp_path, product(HALF), "as_is"))
    assert onnx.load(str(tmp_path / "out" / "model.onnx")).graph == product(HALF).graph


@pytest.mark.parametrize("unquantized", ["fp32", "fp16"])
def test_the_report_says_what_became_of_which_node(tmp_path: Path, unquantized: str) -> None:
    run(job_of(tmp_path, product(FLOAT), "int8_weights", unquantized))
    report = Lowering.read(tmp_path / "out")
    assert report.formats == {"product": "int8_weights"}
    assert report.unquantized == unquantized
    assert (report.half is not None) == (unquantized == "fp16")


def test_a_format_that_no_node_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match=r"no node can compute in int4_weights \(product: .* no multiple of 32\)"):
        run(job_of(tmp_path, product(FLOAT), "int4_weights"))


@pytest.mark.parametrize(
    ("precision", "why"),
    [("fp16", "choice: holds a subgraph"), ("bf16", "choice: holds a subgraph"), ("int8", "outside of branches")],
)
def test_a_model_of_which_nothing_can_be_lowered_is_refused(tmp_path: Path, precision: str, why: str) -> None:
    with pytest.raises(LoweringError, match=f"no node can compute in {precision} .*{why}"):
        run(job_of(tmp_path, branches(), precision))


def test_a_model_of_integers_has_nothing_to_lower(tmp_path: Path) -> None:
    ends = [value("x", TensorProto.INT64, ["batch", 2])], [value("y", TensorProto.INT64, ["batch", 2])]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"], name="sum")], "g", *ends)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    for precision in ("fp16", "bf16", "int8", "int8_weights"):
        with pytest.raises(
            PrecisionError, match=f"no node can compute in {precision} \\(no .* stands outside"
        ) as caught:
            run(job_of(tmp_path / precision, model, precision))
        assert caught.value.exit_code == 2
        assert f"remove {precision} from precisions" in str(caught.value)


def test_a_half_model_without_products_is_taken_as_it_is(tmp_path: Path) -> None:
    ends = [value("x", HALF, ["batch", 2])], [value("y", HALF, ["batch", 2])]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"], name="sum")], "g", *ends)
    run(job_of(tmp_path, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), "fp16"))


def layers() -> onnx.ModelProto:
    """y = relu(x @ w @ x): a product with a weight, one of two activations, one with a weight of a bad shape."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Transpose", ["x"], ["t"], name="turn"),
        helper.make_node("MatMul", ["a", "t"], ["b"], name="attention"),
        helper.make_node("Relu", ["b"], ["c"], name="relu"),
        helper.make_node("Size", ["x"], ["elements"], name="count"),
        helper.make_node("Add", ["elements", "elements"], ["size"], name="size"),
        helper.make_node("MatMul", ["c", "c"], ["y"], name="square"),
    ]
    ends = (
        [value("x", FLOAT, ["batch", 2])],
        [value("y", FLOAT, ["batch", "batch"]), value("size", TensorProto.INT64, [])],
    )
    weights = [numpy_helper.from_array(np.eye(2, dtype=np.float32), "w")]
    graph = helper.make_graph(nodes, "g", *ends, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize(
    ("quantized", "more", "notes"),
    [
        ({"int8_weights": ["*"]}, {}, ["int8_weights is asked for attention, square, which cannot have it: none of"]),
        ({"int8_weights": ["first", "relu"]}, {}, ["int8_weights is asked for 'relu' (Relu), which cannot have it: it is"]),
        ({"int8_weights": ["worthwhile:*"]}, {}, []),
        ({"int8_weights": ["first"]}, {"keep": ["op:Relu"]}, ["keep names 'op:Relu' (Relu) without effect"]),
        ({"int8_weights": ["op:MatMul"]}, {"fp32": ["square", "size"]}, [
            "int8_weights is asked for attention, which", "fp32 names 'size' (Add) without effect",
        ]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("unquantized", ["fp32", "fp16"])
def test_what_is_named_in_vain_is_a_note(
    tmp_path: Path, quantized: dict[str, list[str]], more: dict[str, list[str]], notes: list[str], unquantized: str
) -> None:
    job = job_of(tmp_path, layers(), "int8_weights", unquantized)
    run(StepJob(job.id, {**job.params, "quantized": quantized, **more}, job.inputs, job.unkeyed, job.out, job.echo))
    found = Lowering.read(tmp_path / "out").notes
    if unquantized == "fp32":  # there fp32 is what a node has anyway
        notes = [note for note in notes if not note.startswith("fp32 ")]
    assert len(found) == len(notes)
    assert all(note.startswith(start) for note, start in zip(found, notes, strict=True))


def test_nodes_that_stay_fp32_within_half_precision_may_be_named_by_operator(tmp_path: Path) -> None:
    job = job_of(tmp_path, layers(), "fp16")
    params = {**job.params, "fp32": ["op:Relu", "size"]}
    run(StepJob(job.id, params, job.inputs, job.unkeyed, job.out, job.echo))
    report = Lowering.read(tmp_path / "out")
    assert report.kept["relu"] == "asked for by 'op:Relu'"
    assert report.notes == ("fp32 names 'size' (Add) without effect: nothing of it would be lowered",)


@pytest.mark.parametrize(("mib", "rows"), [(0, 8), (86, 8), (128, 8), (256, 4), (418, 2), (2700, 2)])
def test_large_models_are_proved_on_fewer_rows_and_never_on_single_ones(mib: int, rows: int) -> None:
    assert proof_batch(mib << 20) == rows


@pytest.mark.parametrize("precision", ["fp16", "int8_weights"])
def test_the_fp32_model_runs_once_for_all_that_is_held_against_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    from engineworks.model.lower.half import half
    from engineworks.model.lower.half import unquantized as half_unquantized

    ran: list[str] = []
    for module in (half, half_unquantized):
        found = module.reference_outputs

        def counted(bench: Any, model: onnx.ModelProto, samples: Any, found: Any = found) -> Any:
            ran.extend(["quantized"] if any(n.op_type == "DequantizeLinear" for n in model.graph.node) else ["fp32"])
            return found(bench, model, samples)

        monkeypatch.setattr(module, "reference_outputs", counted)
    job = job_of(tmp_path, product(FLOAT), precision, unquantized="fp16")
    run(job)
    assert ran.count("fp32") == 1
