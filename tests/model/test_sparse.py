"""Sparse constants become dense wherever they are: the same numbers as ONNX Runtime's own reading of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engineworks.errors import ModelError
from engineworks.model.fold import fold
from engineworks.model.fold.fold import fold_model
from engineworks.model.onnx_files import load_model
from engineworks.tensors import TensorSpec

DENSE: NDArray[Any] = np.zeros((4, 3), np.float32)
DENSE[0, 1], DENSE[2, 0], DENSE[3, 2] = 1.5, -2.0, 4.0
FEED = {"x": np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)}
FLAT, COORDINATES = [1, 6, 11], [[0, 1], [2, 0], [3, 2]]


def sparse(indices: list[Any], name: str = "w", dtype: type = np.float32) -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.array([1.5, -2.0, 4.0], dtype), name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(np.array(indices, np.int64), "i"), [4, 3])


def graph(nodes: list[onnx.NodeProto], **more: Any) -> onnx.GraphProto:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k]) for n, k in (("x", 4), ("y", 3)))
    return helper.make_graph(nodes, "g", [x], [y], **more)


def product(output: str = "y") -> onnx.NodeProto:
    return helper.make_node("MatMul", ["x", "w"], [output], name="product")


def model(place: str, indices: list[Any]) -> onnx.ModelProto:
    constant = helper.make_node("Constant", [], ["w"], sparse_value=sparse(indices))
    imports, functions = [helper.make_opsetid("", 17)], []
    if place == "initializer":
        made = graph([product()], sparse_initializer=[sparse(indices)])
    elif place == "constant":
        made = graph([constant, product()])
    elif place == "branches":
        out = helper.make_tensor_value_info("o", TensorProto.FLOAT, ["n", 3])
        then = helper.make_graph([product("o")], "then", [], [out], sparse_initializer=[sparse(indices)])
        other = helper.make_graph([constant, product("o")], "else", [], [out])
        total = [
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Cast", ["sum"], ["positive"], to=TensorProto.BOOL),
        ]
        made = graph([*total, helper.make_node("If", ["positive"], ["y"], then_branch=then, else_branch=other)])
    else:
        imports.append(helper.make_opsetid("own", 1))
        body = [constant, helper.make_node("MatMul", ["a", "w"], ["b"])]
        functions = [helper.make_function("own", "Layer", ["a"], ["b"], body, imports[:1])]
        made = graph([helper.make_node("Layer", ["x"], ["y"], domain="own")])
    return helper.make_model(made, opset_imports=imports, ir_version=9, functions=functions)


@pytest.mark.parametrize("indices", [FLAT, COORDINATES], ids=["flat", "coordinates"])
@pytest.mark.parametrize("place", ["initializer", "constant", "branches", "function"])
def test_sparse_constants_fold_to_dense_ones(tmp_path: Path, place: str, indices: list[Any]) -> None:
    source, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(model(place, indices), str(source))
    spec = TensorSpec("x", "float32", ("n", 4))
    fold_model(source, out, inputs=[spec], outputs={"y": ("n", 3)}, minimum_opset=17, feeds=[FEED])
    folded = onnx.load(str(out))
    weights = [numpy_helper.to_array(t) for t in folded.graph.initializer if list(t.dims) == [4, 3]]
    assert weights
    assert all(np.array_equal(w, DENSE) for w in weights)
    assert b"sparse" not in out.read_bytes()
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, FEED)[0], FEED["x"] @ DENSE, rtol=1e-6)


@pytest.mark.parametrize("indices", [FLAT, COORDINATES], ids=["flat", "coordinates"])
def test_onnx_runtime_never_sees_a_sparse_constant_of_a_function(
    tmp_path: Path, indices: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime 1.31 reads freed memory there, and crashes now and then; a crash would end this process."""
    source, opened = tmp_path / "model.onnx", []
    onnx.save(model("function", indices), str(source))
    open_really = fold.open_session

    def open_session(path: Path, **options: Any) -> onnxruntime.InferenceSession:
        opened.append(b"sparse" in path.read_bytes())
        return open_really(path, **options)

    monkeypatch.setattr(fold, "open_session", open_session)
    spec = TensorSpec("x", "float32", ("n", 4))
    fold_model(source, tmp_path / "out.onnx", inputs=[spec], outputs=None, minimum_opset=17, feeds=[FEED])
    assert b"sparse" in source.read_bytes()
    assert opened
    assert not any(opened)


def test_other_types_and_nothing_stored(tmp_path: Path) -> None:
    empty = helper.make_sparse_tensor(
        numpy_helper.from_array(np.zeros(0, np.int64), "none"),
        numpy_helper.from_array(np.zeros(0, np.int64), "i"),
        [2, 2],
    )
    half = sparse(FLAT, "half", np.float16)
    sparse_ones = graph([product()], sparse_initializer=[sparse(FLAT), empty, half])
    onnx.save(helper.make_model(sparse_ones, ir_version=9), str(tmp_path / "m.onnx"))
    found = {t.name: numpy_helper.to_array(t) for t in load_model(tmp_path / "m.onnx").graph.initializer}
    np.testing.assert_array_equal(found["none"], np.zeros((2, 2), np.int64))
    np.testing.assert_array_equal(found["half"], DENSE.astype(np.float16))


@pytest.mark.parametrize("indices", [[1, 6, 12], [-1, 6, 11], [[0, 1], [2, 0], [4, 2]], [1, 6]])
def test_indices_that_do_not_fit_are_told_by_name(tmp_path: Path, indices: list[Any]) -> None:
    made = model("initializer", FLAT)
    del made.graph.sparse_initializer[:]
    values = numpy_helper.from_array(np.array([1.5, -2.0, 4.0], np.float32), "w")
    wrong = onnx.SparseTensorProto(values=values, indices=numpy_helper.from_array(np.array(indices, np.int64), "i"))
    wrong.dims.extend([4, 3])
    made.graph.sparse_initializer.append(wrong)
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(ModelError, match=r"the sparse constant 'w' of shape \[4, 3\] is not valid"):
        load_model(tmp_path / "m.onnx")


def test_values_beside_the_file_are_refused(tmp_path: Path) -> None:
    made = model("initializer", FLAT)
    stored = made.graph.sparse_initializer[0].values
    stored.data_location = TensorProto.EXTERNAL
    stored.external_data.add(key="location", value="w.bin")
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(ModelError, match="the sparse constant 'w' keeps its values outside of the ONNX file"):
        load_model(tmp_path / "m.onnx")
