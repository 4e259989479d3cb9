"""Kernels that are compiled where a package is written: in it, verified, and taken by the server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engineworks.engines.backends.base import Serving
from engineworks.engines.signing import Trust
from engineworks.errors import RunError, TrustError
from engineworks.host.child import ChildPool
from engineworks.package import warmup as kernels
from engineworks.package.package import verify_package, write_package
from engineworks.package.triton_engines import _take_kernels, read_engines
from engineworks.package.warmup import compile_in_child
from tests.release.test_package import config_of, for_gpu, packaged

MADE = b"what the vendor's library compiled"


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """This host has the GPU: a job writes a runtime cache. Returns the jobs."""
    jobs: list[dict[str, Any]] = []

    def compiled(self: ChildPool, function: str, payload: dict[str, Any], **_: Any) -> dict[str, Any]:
        assert function == kernels.JOB
        json.dumps(payload)  # a child gets it as text
        jobs.append(payload)
        Path(payload["out"], "runtime.cache").write_bytes(MADE)
        return {}

    monkeypatch.setattr(ChildPool, "run", compiled)
    monkeypatch.setattr(kernels, "backend_facts", lambda _: Here())
    return jobs


class Here:
    def why_not_run(self, _: Any) -> None:
        return None


@pytest.fixture
def model(built: Any, tmp_path: Path, on_gpu: list[dict[str, Any]]) -> Path:
    engine = for_gpu(packaged(built), "rtx40", "8.9", backend="tensorrt_rtx")
    (model,) = write_package(built.plan.loaded, [engine], tmp_path / "models")
    return model


def test_every_warm_up_is_compiled_and_the_package_is_whole(model: Path, on_gpu: list[dict[str, Any]]) -> None:
    (job,) = on_gpu
    found = [(t["name"], t["dtype"], t["shape"], t["batch"]) for tensors in job["runs"] for t in tensors]
    wanted = [("image", "float32", list(w.inputs["image"].dims), w.batch_size) for w in config_of(model).model_warmup]
    assert found == wanted != []
    assert (model / "1/kernels/rtx40/runtime.cache").read_bytes() == MADE
    assert len(verify_package(model.parent, Trust())) == 1


def test_a_server_takes_them_where_its_cache_has_none(model: Path, tmp_path: Path) -> None:
    (engine,) = read_engines(model, Trust())
    _take_kernels(engine, tmp_path / "cache")
    assert (tmp_path / "cache" / "runtime.cache").read_bytes() == MADE
    (tmp_path / "cache" / "runtime.cache").write_bytes(b"newer")
    _take_kernels(engine, tmp_path / "cache")
    assert (tmp_path / "cache" / "runtime.cache").read_bytes() == b"newer"


def test_altered_ones_are_refused(model: Path, tmp_path: Path) -> None:
    (model / "1/kernels/rtx40/runtime.cache").write_bytes(MADE[::-1])
    (engine,) = read_engines(model, Trust())
    with pytest.raises(TrustError, match=r"runtime\.cache: was altered: .* engines\.json says"):
        _take_kernels(engine, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_where_they_cannot_be_compiled_the_package_comes_without(
    built: Any, tmp_path: Path, on_gpu: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> dict[str, Any]:
        raise RunError("the GPU is out of memory")

    monkeypatch.setattr(ChildPool, "run", full)
    lines: list[str] = []
    engine = for_gpu(packaged(built), "rtx40", "8.9", backend="tensorrt_rtx")
    (model,) = write_package(built.plan.loaded, [engine], tmp_path / "models", echo=lines.append)
    assert lines == ["tiny/int8/rtx40: comes without kernels, so a server compiles them: the GPU is out of memory"]
    assert not (model / "1" / "kernels").exists()


def test_the_job_runs_the_engine_at_every_shape(built: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, ran = packaged(built), []
    image = np.arange(16, dtype=np.float32)
    (tmp_path / "one.raw").write_bytes(image.tobytes())

    class Session:
        def run(self, feeds: dict[str, Any]) -> None:
            ran.append(feeds["image"])

        def close(self) -> None:
            ran.append("closed")

    monkeypatch.setattr(kernels, "load_engine", lambda *_, **__: Session())
    tensor = {"name": "image", "file": str(tmp_path / "one.raw"), "dtype": "float32"}
    runs = [[{**tensor, "shape": [1, 4, 4], "batch": 3}], [{**tensor, "shape": [1, 1, 4, 4], "batch": 0}]]
    compile_in_child({
        "engine": str(engine.folder), "target": {}, "serving": Serving().to_json(), "out": str(tmp_path), "runs": runs,
    })  # fmt: skip
    assert ran.pop() == "closed"
    assert [array.shape for array in ran] == [(3, 1, 4, 4), (1, 1, 4, 4)]
    assert all(np.array_equal(row.ravel(), image) for array in ran for row in array)
