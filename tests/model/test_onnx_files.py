"""Reading and writing ONNX files."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engineworks.errors import ModelError
from engineworks.model import onnx_files
from engineworks.model.onnx_files import (
    MOST_IR_VERSION,
    MOST_OPSET,
    detach_weights,
    dtype_name,
    graph_inputs,
    graph_outputs,
    load_model,
    model_files,
    opset_of,
    save_model,
    weight_bytes,
)
from engineworks.model.tensor_storage import is_external, tensor_bytes
from engineworks.tensors import TensorSpec

LARGE, SMALL = np.arange(64 * 64, dtype=np.float32).reshape(64, 64), np.arange(3)


@pytest.fixture
def model() -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "large"], ["y"]), helper.make_node("Constant", [], ["c"], value_float=1.0)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["?", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [-1, 64])],
        [numpy_helper.from_array(LARGE, "large"), numpy_helper.from_array(SMALL, "small")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def external(model: onnx.ModelProto, path: Path) -> Path:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save(copy, str(path), save_as_external_data=True, location="w.bin")
    return path


def values(model: onnx.ModelProto) -> list[object]:
    return [numpy_helper.to_array(t).tolist() for t in model.graph.initializer]


def test_weights_lie_beside_the_file_only_when_they_are_large(
    tmp_path: Path, model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(model, tmp_path / "a.onnx")
    assert [f.name for f in tmp_path.iterdir()] == ["a.onnx"]
    monkeypatch.setattr(onnx_files, "EXTERNAL_ABOVE_BYTES", 1000)
    save_model(model, tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx").stat().st_size < 1000
    assert (tmp_path / "b.onnx.data").stat().st_size == LARGE.nbytes
    for name in ("a.onnx", "b.onnx"):
        assert values(load_model(tmp_path / name)) == [LARGE.tolist(), SMALL.tolist()]
        onnx.checker.check_model(str(tmp_path / name))


def test_saving_leaves_the_model_as_it_was_and_is_deterministic(
    tmp_path: Path, model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_files, "EXTERNAL_ABOVE_BYTES", 1000)
    before = model.SerializeToString()
    save_model(model, tmp_path / "a.onnx")
    first = [f.read_bytes() for f in model_files(tmp_path / "a.onnx")]
    save_model(model, tmp_path / "a.onnx")  # again: the data file does not grow
    assert [f.read_bytes() for f in model_files(tmp_path / "a.onnx")] == first
    assert model.SerializeToString() == before


@pytest.mark.parametrize(("opset", "ir_version"), [(17, 10), (23, 11)])
def test_the_ir_version_is_one_that_all_tools_read_unless_the_opset_needs_more(
    tmp_path: Path, model: onnx.ModelProto, opset: int, ir_version: int
) -> None:
    model.opset_import[0].version = opset
    model.ir_version = 13
    save_model(model, tmp_path / "a.onnx")
    assert load_model(tmp_path / "a.onnx").ir_version == ir_version


def test_four_bit_and_string_tensors_survive_beside_the_file(
    tmp_path: Path, model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_files, "EXTERNAL_ABOVE_BYTES", 1000)
    numbers = [n % 8 for n in range(20001)]
    model.graph.initializer.append(helper.make_tensor("four", TensorProto.INT4, [20001], numbers))
    model.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [2], [b"a" * 9000, b"b"]))
    save_model(model, tmp_path / "a.onnx")
    four, words = load_model(tmp_path / "a.onnx").graph.initializer[2:]
    assert tensor_bytes(four) == 10001
    assert numpy_helper.to_array(four).astype(int).tolist() == numbers
    assert list(words.string_data) == [b"a" * 9000, b"b"]


def test_detached_weights_stay_on_disk_and_come_back_when_saved(tmp_path: Path, model: onnx.ModelProto) -> None:
    for name in ("inside", "beside"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "m.onnx"
        save_model(model, path) if name == "inside" else external(model, path)
        light = detach_weights(load_model(path, weights=False), path, tmp_path / name / "spill")
        assert [is_external(t) for t in light.graph.initializer] == [True, False]
        assert len(light.SerializeToString()) < 1000
        assert weight_bytes(light) == LARGE.nbytes + SMALL.nbytes
        save_model(light, tmp_path / name / "again.onnx")
        assert values(load_model(tmp_path / name / "again.onnx")) == [LARGE.tolist(), SMALL.tolist()]


def test_a_model_without_its_weights_is_not_saved(tmp_path: Path, model: onnx.ModelProto) -> None:
    light = load_model(external(model, tmp_path / "m.onnx"), weights=False)
    with pytest.raises(ValueError, match="the values of tensor 'large' were not loaded"):
        save_model(light, tmp_path / "again.onnx")


def test_all_external_files_are_listed(tmp_path: Path, model: onnx.ModelProto) -> None:
    path = external(model, tmp_path / "m.onnx")
    assert [f.name for f in model_files(path)] == ["m.onnx", "w.bin"]
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match=r"external data 'w\.bin' is missing; copy it beside the model"):
        model_files(path)
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(path)


@pytest.mark.parametrize("location", ["../w.bin", "/w.bin"])
def test_external_data_outside_of_the_folder_is_refused(tmp_path: Path, model: onnx.ModelProto, location: str) -> None:
    path = external(model, tmp_path / "m.onnx")
    written = load_model(path, weights=False)
    next(e for e in written.graph.initializer[0].external_data if e.key == "location").value = location
    path.write_bytes(written.SerializeToString())
    with pytest.raises(ModelError, match="lies outside the model's folder"):
        model_files(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"{}", bytes(32)])
def test_other_files_are_no_models(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match="not an ONNX model"):
        load_model(tmp_path / "m.onnx")


def test_functions_that_never_end_or_fill_the_memory_are_refused(tmp_path: Path, model: onnx.ModelProto) -> None:
    def read(depth: int, first: str) -> onnx.ModelProto:
        del model.functions[:]
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        for level in range(depth):
            inner = (
                helper.make_node(f"F{level - 1}", ["x"], ["y"], domain="own")
                if level
                else helper.make_node(first, ["x"], ["y"])
            )
            branch = helper.make_graph([inner], "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
            node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
            model.functions.append(helper.make_function("own", f"F{level}", ["x"], ["y"], [node], opsets))
        model.graph.node.append(helper.make_node(f"F{depth - 1}", ["x"], ["unused"], domain="own"))
        onnx.save(model, tmp_path / "m.onnx")
        del model.graph.node[-1]
        return load_model(tmp_path / "m.onnx")

    assert len(read(10, "Relu").functions) == 10
    with pytest.raises(ModelError, match=r"its functions expand to [\d,]+ nodes, at most 1,000,000"):
        read(20, "Relu")
    with pytest.raises(ModelError, match="more than 10"):
        read(200, "Relu")
    model.functions.append(
        helper.make_function(
            "own",
            "F",
            ["x"],
            ["y"],
            [helper.make_node("F", ["x"], ["y"], domain="own")],
            [helper.make_opsetid("own", 1)],
        )
    )
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"function 'own\.F' calls itself"):
        load_model(tmp_path / "m.onnx")


def test_a_missing_file_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(tmp_path / "none.onnx")


def test_stand_ins_for_dimensions_are_not_one_dimension(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.INT64, ["?", "?", None, "n", 0]))
    assert graph_inputs(model)[1] == TensorSpec("z", "int64", ("z_0", "z_1", "z_2", "n", 0))
    assert graph_inputs(model)[0] == TensorSpec("x", "float32", ("x_0", 64))
    assert graph_outputs(model) == (TensorSpec("y", "float32", ("y_0", 64)),)


def test_weights_that_are_listed_as_inputs_are_not_fed(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("large", TensorProto.FLOAT, [64, 64]))
    assert [spec.name for spec in graph_inputs(model)] == ["x"]


@pytest.mark.parametrize(
    ("element", "name"),
    [("FLOAT", "float32"), ("DOUBLE", "float64"), ("FLOAT16", "float16"), ("BFLOAT16", "bfloat16"), ("BOOL", "bool"),
     ("FLOAT8E4M3FN", "float8e4m3fn"), ("INT4", "int4"), ("UINT8", "uint8")],
)  # fmt: skip
def test_dtypes_have_our_names(element: str, name: str) -> None:
    assert dtype_name(TensorProto.DataType.Value(element)) == name


def newer(opset: int, ir_version: int, operator: str = "Relu", **attributes: int) -> onnx.ModelProto:
    """x f32[n, 4] → MatMul with a weight, `operator` → y, as a newer ONNX writes it."""
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", ["x", "w"], ["h"]),
            onnx.helper.make_node(operator, ["h"], ["y"], **attributes),
        ],
        "newer",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4])],
        [onnx.numpy_helper.from_array(np.arange(16, dtype=np.float32).reshape(4, 4) - 8, "w")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=ir_version)


@pytest.mark.parametrize(("opset", "ir_version"), [(17, 14), (26, 14), (27, 13), (28, 14)])
def test_a_model_newer_than_onnx_runtime_reads_is_lowered_when_it_is_folded(
    tmp_path: Path, opset: int, ir_version: int
) -> None:
    import onnxruntime

    from engineworks.model.fold.fold import fold_model

    onnx.save(newer(opset, ir_version), tmp_path / "new.onnx")
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    report = fold_model(
        tmp_path / "new.onnx", tmp_path / "model.onnx", inputs=[TensorSpec("x", "float32", ("n", 4))],
        outputs={"y": ("n", 4)}, minimum_opset=13, feeds=[{"x": x}],
    )  # fmt: skip
    written = onnx.load(tmp_path / "model.onnx")
    assert (written.ir_version <= MOST_IR_VERSION, opset_of(written)) == (True, min(opset, MOST_OPSET))
    assert report.opset_from == opset
    assert f"IR {ir_version}, opset {opset} lowered to IR" in report.notes[0]
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    weight = np.arange(16, dtype=np.float32).reshape(4, 4) - 8
    assert np.allclose(session.run(None, {"x": x})[0], np.maximum(x @ weight, 0), atol=1e-5)


def test_a_newer_model_that_can_not_be_lowered_says_what_to_do() -> None:
    from engineworks.model.opset import lower_to_limits

    with pytest.raises(
        ModelError, match=r"m\.onnx: opset 28 is newer than ONNX Runtime reads \(26\), and ONNX's version"
    ) as e:
        lower_to_limits(newer(28, 14, "SwiGLU"), "m.onnx")
    assert e.value.hint == "export the model with opset 26 or older"


def test_no_model_beyond_what_onnx_runtime_reads_is_written(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the model would be opset 27, above 26"):
        save_model(newer(27, 13), tmp_path / "m.onnx")
    save_model(newer(26, 14), tmp_path / "m.onnx")
    assert onnx.load(tmp_path / "m.onnx").ir_version <= MOST_IR_VERSION


def test_every_model_that_is_made_names_its_ir_version() -> None:
    """ONNX's own default is IR 14, which ONNX Runtime refuses."""
    repository, unnamed, named = Path(__file__).parents[2], [], 0
    for folder in ("engineworks", "flows", "tasks", "benchmarks", "recipes", "tests"):
        for path in (repository / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(text)) if "helper.make_model" in text else ():
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("helper.make_model"):
                    named += 1
                    if "ir_version" not in {keyword.arg for keyword in node.keywords}:
                        unnamed.append(f"{path}:{node.lineno}")
    assert (unnamed, named > 20) == ([], True)


def test_weights_go_beside_a_small_model_where_asked(tmp_path):
    model = load_model(Path("recipes/models/tiny-decoder/model.onnx"))
    save_model(model, tmp_path / "model.onnx", beside=True)
    assert (tmp_path / "model.onnx").stat().st_size < (tmp_path / "model.onnx.data").stat().st_size
    again = load_model(tmp_path / "model.onnx")
    assert all(
        (numpy_helper.to_array(a) == numpy_helper.to_array(b)).all()
        for a, b in zip(model.graph.initializer, again.graph.initializer, strict=True)
    )
