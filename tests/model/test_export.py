"""ONNX files as sources, and what all exporters share."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engineworks.errors import ModelError
from engineworks.model.export.interface import Interface, export_onnx, interface_from_json, require_packages
from engineworks.model.export.trials import difference_of, trial_inputs
from engineworks.tensors import InputRange, Profile, TensorSpec

WEIGHT = np.arange(4096, dtype=np.float32).reshape(64, 64)


def linear_model() -> onnx.ModelProto:
    """x f32[batch,64] → MatMul → y f32[batch,64]."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="matmul")],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model whose weights are in the folder `parts` beside it."""
    (tmp_path / "source" / "parts").mkdir(parents=True)
    path = tmp_path / "source" / "net.onnx"
    onnx.save(linear_model(), path, save_as_external_data=True, location="parts/w.bin", size_threshold=0)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def relocate(path: Path, location: str) -> None:
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(model.SerializeToString())


def test_a_model_is_copied_byte_for_byte(tmp_path: Path, out: Path) -> None:
    onnx.save(linear_model(), tmp_path / "net.onnx")
    report = export_onnx(tmp_path / "net.onnx", out)
    assert (out / "model.onnx").read_bytes() == (tmp_path / "net.onnx").read_bytes()
    assert (report.exporter, report.opset, report.files) == ("copy", 17, ("model.onnx",))
    assert report.bytes == (tmp_path / "net.onnx").stat().st_size
    assert json.loads(json.dumps(report.to_json())) == {**vars(report), "files": ["model.onnx"], "notes": []}


def test_external_weights_keep_their_names_and_are_found_again(external: Path, out: Path) -> None:
    assert export_onnx(external, out).files == ("model.onnx", "parts/w.bin")
    external.unlink()
    (external.parent / "parts" / "w.bin").unlink()
    copied = onnx.load(out / "model.onnx")
    assert np.array_equal(numpy_helper.to_array(copied.graph.initializer[0]), WEIGHT)


def test_external_weights_behind_a_link_keep_the_name_that_the_model_knows(external: Path, out: Path) -> None:
    parts = external.parent / "parts"
    (parts / "w.bin").rename(parts / "w.v2.bin")
    (parts / "w.bin").symlink_to("w.v2.bin")
    export_onnx(external, out)
    assert np.array_equal(numpy_helper.to_array(onnx.load(out / "model.onnx").graph.initializer[0]), WEIGHT)


def test_missing_external_weights_are_refused(external: Path, out: Path) -> None:
    (external.parent / "parts" / "w.bin").unlink()
    with pytest.raises(ModelError, match=r"parts/w\.bin"):
        export_onnx(external, out)


def test_external_weights_that_are_cut_short_are_refused(external: Path, out: Path) -> None:
    data = external.parent / "parts" / "w.bin"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"ends at byte 16384 of 'parts/w\.bin', which has only 16383"):
        export_onnx(external, out)


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/passwd"])
def test_external_weights_outside_of_the_folder_are_refused(external: Path, out: Path, location: str) -> None:
    (external.parent.parent / "outside.bin").write_bytes(WEIGHT.tobytes())
    relocate(external, location)
    with pytest.raises(ModelError):
        export_onnx(external, out)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a"])
def test_what_is_no_model_is_refused(tmp_path: Path, out: Path, content: bytes) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(ModelError, match="not an ONNX model"):
        export_onnx(tmp_path / "net.onnx", out)


def test_a_folder_or_nothing_as_source_is_refused(tmp_path: Path, out: Path) -> None:
    with pytest.raises(ModelError, match="is a folder"):
        export_onnx(tmp_path, out)
    with pytest.raises(ModelError, match="no such file"):
        export_onnx(tmp_path / "net.onnx", out)


def test_a_missing_package_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("torch", "onnxscript") else real(name)
    )
    with pytest.raises(ModelError) as caught:
        require_packages(
            {"torch": "torch", "onnxscript": "onnxscript", "json": "json"}, extra="torch", doing="this model"
        )
    assert str(caught.value) == (
        "this model needs onnxscript and torch, which are not installed; pip install 'engineworks[torch]'"
    )


@pytest.mark.parametrize("extra", ["torch", "huggingface"])
def test_the_exporters_tell_the_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = importlib.import_module(f"engineworks.model.export.from_{extra}")
    with pytest.raises(ModelError, match=rf"pip install 'engineworks\[{extra}\]'"):
        getattr(found, f"export_{extra}")("a.b:c", tmp_path, interface(), tmp_path)


def interface() -> Interface:
    """Two inputs that share `batch`, with two profiles."""
    inputs = (TensorSpec("image", "float32", ("batch", 3, "size")), TensorSpec("ids", "int64", ("batch",)))

    def profile(name: str, batch: tuple[int, int, int], size: tuple[int, int, int]) -> Profile:
        ranges = {"image": [(b, 3, s) for b, s in zip(batch, size, strict=True)], "ids": [(b,) for b in batch]}
        return Profile(name, {n: InputRange(*r) for n, r in ranges.items()})

    return Interface(
        inputs, {"y": ("batch", 5)}, (profile("a", (1, 1, 4), (32, 64, 64)), profile("b", (8, 8, 16), (32, 32, 32))), 17
    )


def test_an_interface_crosses_a_process_boundary_with_the_order_of_its_outputs() -> None:
    whole = Interface(interface().inputs, {"z": ("batch",), "a": (1, 2)}, interface().profiles, 18)
    again = interface_from_json(json.loads(json.dumps(whole.to_json())))
    assert again == whole
    assert list(again.outputs) == ["z", "a"]


def test_models_are_tried_at_the_smallest_lengths_and_then_at_the_next() -> None:
    trials = trial_inputs(interface(), None)
    assert [lengths for lengths, _ in trials] == [{"batch": 1, "size": 32}, {"batch": 4, "size": 64}]
    image, ids = trials[1][1]["image"], trials[1][1]["ids"]
    assert (image.dtype, image.shape, ids.dtype, ids.shape) == (np.float32, (4, 3, 64), np.int64, (4,))
    assert set(np.unique(ids)) <= {0, 1}


def test_made_inputs_are_the_same_each_time() -> None:
    first, second = trial_inputs(interface(), None), trial_inputs(interface(), None)
    assert all(np.array_equal(a[1]["image"], b[1]["image"]) for a, b in zip(first, second, strict=True))


def test_given_examples_are_cut_and_repeated_to_the_lengths_of_the_trials() -> None:
    given = {"image": np.arange(2 * 3 * 48, dtype=np.float32).reshape(2, 3, 48), "ids": np.array([7, 9])}
    (_, low), (_, high) = trial_inputs(interface(), given)
    assert np.array_equal(low["image"], given["image"][:1, :, :32])
    assert high["ids"].tolist() == [7, 9, 7, 9]
    assert np.array_equal(high["image"][2, :, 48:], given["image"][0, :, :16])


@pytest.mark.parametrize(
    ("expected", "got", "same"),
    [
        (np.array([1.0, -2.0]), np.array([1.0, -2.001]), True),
        (np.array([1.0, -2.0]), np.array([1.0, -2.1]), False),
        (np.array([1e-6, 2e-6]), np.array([1e-6, 3e-6]), False),
        (np.array([1.0, np.nan]), np.array([1.0, np.nan]), True),
        (np.array([1.0, np.nan]), np.array([1.0, 2.0]), False),
        (np.array([1.0, 2.0]), np.array([1.0, np.inf]), False),
        (np.ones((1, 2)), np.ones((2, 1)), False),
        (np.array([1, 2]), np.array([1, 2]), True),
        (np.array([1, 2]), np.array([1, 3]), False),
    ],
)
def test_outputs_are_compared_relative_to_their_own_size(expected: np.ndarray, got: np.ndarray, same: bool) -> None:
    assert (difference_of({"y": expected}, {"y": got}) is not None) is same
