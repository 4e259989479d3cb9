"""The calibrate step and what takes its artifact: figures and warnings beside the ranges, bad samples refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import tiny_model
from numpy.typing import NDArray

from engineworks.errors import CalibrationError, EngineworksError, ModelError, SamplesError
from engineworks.host.file_digests import digest_file
from engineworks.steps import calibrate, lower
from engineworks.steps.job import StepJob
from engineworks.tensors import TensorSpec

IMAGES = np.random.default_rng(1).normal(0, 1, (40, 1, 4, 4)).astype(np.float32)


def job_of(folder: Path, images: NDArray[np.float32] = IMAGES, unkeyed: Mapping[str, Any] | None = None) -> StepJob:
    for name in ("fold", "out"):
        (folder / name).mkdir()
    onnx.save(tiny_model(), str(folder / "fold" / "model.onnx"))
    np.savez(folder / "calib.npz", image=images)
    specs = [TensorSpec("image", "float32", ("batch", 1, 4, 4)).to_json()]
    samples = {"arrays": {"image": "image"}, "count": len(images), "total": len(images), "specs": specs}
    settings = {"method": "entropy", "percentile": 99.99, "averaging": None, "batch": 8}
    unkeyed = {"calibration": str(folder / "calib.npz"), **(unkeyed or {})}
    said: list[str] = []
    return StepJob(
        "tiny/int8/calibrate", {"calibration": settings, "samples": samples}, {"fold": folder / "fold"}, unkeyed,
        folder / "out", said.append,
    )  # fmt: skip


def lowering(folder: Path, unkeyed: Mapping[str, Any] | None = None) -> StepJob:
    (folder / "lowered").mkdir()
    params = {"precision": "int8", "quantized": {"int8": ["*"]}, "unquantized": "fp32", "keep": []}
    inputs = {"fold": folder / "fold", "ranges": folder / "out"}
    return StepJob("tiny/int8/lower", params, inputs, unkeyed or {}, folder / "lowered", lambda _: None)


def read(job: StepJob, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((job.out / name).read_text(encoding="utf-8"))
    return found


def test_the_artifact_says_of_what_it_is_and_what_it_is_worth(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    calibrate.run(job)
    ranges, report = read(job, "ranges.json"), read(job, "report.json")
    assert ranges["data"] == {"sha256": digest_file(tmp_path / "calib.npz"), "samples": 40, "of": 40}
    assert len(ranges["model"]) == 64
    for seen in ranges["ranges"]["tensors"].values():
        assert 0 <= seen["saturated"] < 0.01
        assert 0 <= seen["unused"] < 0.9
        assert seen["amax_early"] > 0
    assert (report["samples"], report["tensors"], report["method"]) == (40, 2, "entropy")
    assert report["unused"]["largest"]
    assert report["inputs"]["image"]["mean"] == pytest.approx(IMAGES.mean(), abs=1e-6)


def test_a_doubtful_calibration_leaves_its_warnings(tmp_path: Path) -> None:
    job = job_of(tmp_path, np.repeat(IMAGES[:1], 6, axis=0))
    calibrate.run(job)
    told = read(job, "report.json")["warnings"]
    assert [("the same" in s, "too few" in s) for s in told] == [(True, False), (False, True)]


def test_samples_are_counted_where_the_input_has_its_batch(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])]
    shape: list[str | int] = ["sequence", "batch", 2]
    weight = onnx.numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
    tensors = [value(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = onnx.helper.make_graph(nodes, "time", tensors[:1], tensors[1:], [weight])
    job = job_of(tmp_path)
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), str(tmp_path / "fold" / "model.onnx"))
    np.savez(tmp_path / "calib.npz", x=IMAGES[:10].reshape(10, 8, 2))
    specs = [TensorSpec("x", "float32", tuple(shape)).to_json()]
    job.params["samples"].update(arrays={"x": "x"}, count=10, total=10, specs=specs)
    calibrate.run(job)
    ranges, report = read(job, "ranges.json")["ranges"], read(job, "report.json")
    assert (report["samples"], ranges["sample_count"]) == (10, 10)
    assert any("calibration had 10 samples, which is far too few" in line for line in report["warnings"])
    assert all(tensor["amax_early"] is not None for tensor in ranges["tensors"].values())


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.where(np.arange(640).reshape(IMAGES.shape) == 333, np.nan, IMAGES), "calib.npz holds NaN: input 'image', sample 20"),
        (np.where(np.arange(640).reshape(IMAGES.shape) == 5, np.inf, IMAGES), "holds infinity: input 'image', sample 0"),
        (np.zeros_like(IMAGES), "calib.npz is constant: 'image' is always 0"),
    ],
)  # fmt: skip
def test_bad_samples_are_the_users_and_leave_no_ranges(tmp_path: Path, images: NDArray[Any], said: str) -> None:
    job = job_of(tmp_path, images.astype(np.float32))
    with pytest.raises(SamplesError, match=said) as error:
        calibrate.run(job)
    assert error.value.exit_code == 2
    assert not list(job.out.iterdir())


def test_data_that_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SamplesError, match="changed since the plan was made"):
        calibrate.run(job_of(tmp_path, unkeyed={"sha256": "0" * 64}))


def test_a_model_is_lowered_with_its_own_ranges(tmp_path: Path) -> None:
    calibrate.run(job_of(tmp_path))
    job = lowering(tmp_path, {"calibration_sha256": digest_file(tmp_path / "calib.npz")})
    lower.run(job)
    assert (job.out / "model.onnx").is_file()


def _other_weights(folder: Path) -> None:
    onnx.save(tiny_model(seed=1), str(folder / "fold" / "model.onnx"))


def _no_digest(folder: Path) -> None:
    stored = json.loads((folder / "out" / "ranges.json").read_text(encoding="utf-8"))
    (folder / "out" / "ranges.json").write_text(json.dumps({"ranges": stored["ranges"]}), encoding="utf-8")


def _cut_short(folder: Path) -> None:
    text = (folder / "out" / "ranges.json").read_text(encoding="utf-8")
    (folder / "out" / "ranges.json").write_text(text[: len(text) // 2], encoding="utf-8")


def _no_ranges(folder: Path) -> None:
    (folder / "out" / "ranges.json").write_text("[]", encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "kind", "said"),
    [
        (_other_weights, ModelError, "made of another model"),
        (_no_digest, ModelError, "a model that they do not name"),
        (_cut_short, CalibrationError, "cannot be read"),
        (_no_ranges, CalibrationError, "no calibration ranges"),
    ],
)
def test_ranges_that_do_not_belong_to_the_model_are_refused(
    tmp_path: Path, damage: Any, kind: type[EngineworksError], said: str
) -> None:
    calibrate.run(job_of(tmp_path))
    damage(tmp_path)
    with pytest.raises(kind, match=said):
        lower.run(lowering(tmp_path))


def test_ranges_of_other_data_are_refused(tmp_path: Path) -> None:
    calibrate.run(job_of(tmp_path))
    with pytest.raises(SamplesError, match="made of other data"):
        lower.run(lowering(tmp_path, {"calibration_sha256": "0" * 64}))
