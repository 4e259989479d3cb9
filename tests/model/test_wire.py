"""Weights that are left in the model's file: the rest must parse as the whole does, and no file may be taken wrongly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from engineworks.errors import ModelError
from engineworks.model.onnx_files import (
    detach_weights,
    external_files,
    load_detached,
    load_model,
    save_model,
    without_initializers,
)
from engineworks.model.tensor_storage import attach, is_external

LARGE = np.arange(2048, dtype=np.float32)


def model_of(*weights: TensorProto) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        list(weights),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, doc_string="d" * 300)


def tensor_like(name: str, size: int, kind: str) -> TensorProto:
    """A tensor that holds `size` values in one of the ways that ONNX has."""
    values = np.arange(size) % 100
    match kind:
        case "raw":
            return numpy_helper.from_array(values.astype(np.float32), name)
        case "described":
            tensor = numpy_helper.from_array(values.astype(np.int64), name)
            tensor.doc_string = "é" * 200
            return tensor
        case "typed":
            return helper.make_tensor(name, TensorProto.FLOAT, [size], values.astype(np.float32).tolist())
        case "packed":
            return helper.make_tensor(name, TensorProto.INT4, [2 * size], bytes(size), raw=True)
        case _:
            return helper.make_tensor(name, TensorProto.STRING, [size], [b"word"] * size)


TENSORS = st.lists(
    st.tuples(st.sampled_from([0, 1, 1023, 1024, 5000]), st.sampled_from(["raw", "described", "typed", "packed", ""])),
    max_size=5,
)


@given(tensors=TENSORS, twice=st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_parts_give_the_whole_model(tmp_path_factory: pytest.TempPathFactory, tensors: list, twice: bool) -> None:  # type: ignore[type-arg]
    """twice: the graph's field occurs a second time, which protobuf joins with the first."""
    model = model_of(*(tensor_like(f"w{at}", size, kind) for at, (size, kind) in enumerate(tensors)))
    content = model.SerializeToString()
    if twice:
        more = onnx.ModelProto()
        more.graph.initializer.append(tensor_like("last", 3000, "raw"))
        content += more.SerializeToString()
    path = tmp_path_factory.mktemp("wire") / "m.onnx"
    path.write_bytes(content)
    whole, light = load_model(path), load_detached(path)
    large = [len(t.raw_data) >= 4096 and t.data_type != TensorProto.STRING for t in whole.graph.initializer]
    assert [is_external(tensor) for tensor in light.graph.initializer] == large
    for tensor in light.graph.initializer:
        attach(tensor)
    assert list(light.graph.initializer) == list(whole.graph.initializer)
    assert without_initializers(light) == without_initializers(whole)


def _message(load: object, path: Path) -> str:
    try:
        load(path)  # type: ignore[operator]
    except ModelError as error:
        return error.message
    return ""


VALID = model_of(numpy_helper.from_array(LARGE, "large"), tensor_like("w", 3, "described")).SerializeToString()


@given(changes=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=3), end=st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_damaged_file_is_judged_as_by_the_parser(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], end: bool
) -> None:
    """end: the changed bytes are counted from the end of the file."""
    content = bytearray(VALID)
    for at, value in changes:
        content[-1 - at if end else at] = value
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(content)
    assert _message(load_detached, path) == _message(load_model, path)
    if not _message(load_model, path):
        light, whole = load_detached(path), load_model(path)
        for tensor in light.graph.initializer:
            attach(tensor)
        assert light == whole


@pytest.mark.parametrize("cut", [0, 1, 50, 400, 2000, 8000, -1])
def test_a_file_that_is_cut_short_is_told_as_before(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model_of(numpy_helper.from_array(LARGE, "large")).SerializeToString()[:cut])
    assert _message(load_detached, path) == _message(load_model, path) != ""


def test_raw_data_of_another_length_are_refused_as_before(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(LARGE, "large")
    weight.raw_data = weight.raw_data[:-4]
    path = tmp_path / "m.onnx"
    onnx.save(model_of(weight), str(path))
    assert _message(load_detached, path) == _message(load_model, path)
    assert "tensor 'large' needs 8,192 bytes, and 8,188 are stored" in _message(load_detached, path)


def test_weights_in_the_file_are_no_external_data_of_the_user(tmp_path: Path) -> None:
    """They are listed as no file, and saved from where they lie without a copy in between."""
    path = tmp_path / "m.onnx"
    onnx.save(model_of(numpy_helper.from_array(LARGE, "large")), str(path))
    light = load_detached(path)
    assert external_files(path, light) == (path,)
    detached = detach_weights(light, path, tmp_path / "spill")
    assert (tmp_path / "spill").stat().st_size == 0
    save_model(detached, tmp_path / "again.onnx", beside=True)
    assert (tmp_path / "again.onnx.data").read_bytes() == LARGE.tobytes()


@pytest.mark.parametrize("location", ["/etc/hostname", "../other.bin"])
def test_external_data_of_the_user_stay_what_they_are(tmp_path: Path, location: str) -> None:
    weight = numpy_helper.from_array(LARGE, "large")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    path = tmp_path / "m.onnx"
    path.write_bytes(model_of(weight).SerializeToString())
    with pytest.raises(ModelError, match="lies outside the model's folder"):
        external_files(path, load_detached(path))
