"""An engine of a GPU as an MLflow model: its outputs on a host of its target, one clear sentence on any other. The GPU
is made of host memory (`fake_gpu`)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from by_hand import by_hand
from fake_gpu import FakeEngine, FakeRuntime, FakeTensor, FakeVendor

from engineworks.engines.backends import _cuda, _trt_host, _trt_load, _trt_log
from engineworks.engines.backends._trt import Vendor
from engineworks.errors import RunError, TrustError
from engineworks.host.gpu import Gpu
from engineworks.release.promotion import requirements
from engineworks.tensors import TensorSpec
from engineworks.tracking.aliases import Slot
from engineworks.tracking.engine_model import EngineModel
from engineworks.tracking.records import EngineRecord
from engineworks.tracking.runs import Tracking, open_tracking
from tests.typed_reports import write_sidecar

pytest.importorskip("mlflow")
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

SLOT = Slot("gpu-tiny", "rtx40", "fp16")
URI = "models:/gpu-tiny@champion-rtx40-fp16"
X, Y = TensorSpec("x", "float32", ("batch", 4)), TensorSpec("y", "float32", ("batch", 4))
HERE = Gpu("NVIDIA GeForce RTX 4090", "8.9", "580.10", "13.0")
FEEDS = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}


def write_engine(folder: Path, template: dict[str, Any]) -> dict[str, Path]:
    """Bytes that the fake takes for an engine, their sidecar, and a passport made of another engine's."""
    folder.mkdir()
    target = {"name": "rtx40", "backend": "tensorrt_rtx", "compute_capability": ["8.9"], "options": {}}
    (folder / "engine.plan").write_bytes(b"plan of the fake")
    sha256 = hashlib.sha256(b"plan of the fake").hexdigest()
    tensors = {"inputs": [X.to_json()], "outputs": [Y.to_json()]}
    write_sidecar(folder, engine="engine.plan", precision="fp16", target=target, inputs=(X,), outputs=(Y,))
    files = {
        f.name: {"sha256": hashlib.sha256(f.read_bytes()).hexdigest(), "bytes": f.stat().st_size}
        for f in folder.iterdir()
    }
    engine = {"id": "gpu-tiny/fp16/rtx40", "precision": "fp16", "target": target, "sha256": sha256, "files": files}
    recipe = {**template["recipe"], "name": "gpu-tiny"}
    passport = {**template, "recipe": recipe, "engine": {**template["engine"], **engine, **tensors}}
    (folder / "passport.json").write_text(json.dumps(passport), encoding="utf-8")
    return {f.name: f for f in folder.iterdir()}


@pytest.fixture(scope="module")
def registered(recorded: Any, tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    """The champion of rtx40 in a database of this module."""
    built, _ = recorded
    template = json.loads(built.engine("tiny/fp32/cpu").passport.read_text(encoding="utf-8"))
    files = write_engine(tmp_path_factory.mktemp("gpu") / "engine", template)
    tracking = open_tracking(built.settings.artifacts, None)
    with tracking.start_build("gpu-tiny", "k", {}, {}) as run:
        engine_run = run.record_engine(EngineRecord("gpu-tiny/fp16/rtx40"))
    model = EngineModel(
        slot=SLOT, recipe="gpu-tiny", engine="gpu-tiny/fp16/rtx40", digest=hashlib.sha256(b"plan of the fake").hexdigest(), run_id=engine_run, files=files,
        inputs=[X], outputs=[Y], example=FEEDS, requirements=requirements({"tensorrt-rtx": "1.6.1.120"}),
    )  # fmt: skip
    registry = tracking.registry()
    assert registry.promote(SLOT, registry.register(model).version, expected=None) == "moved"
    return tracking


@dataclass
class Host:
    """What there is: change it, then load."""

    monkeypatch: pytest.MonkeyPatch
    cuda: FakeRuntime
    tracking: Tracking

    def installed(self, version: str | None = "1.6.1.120", bindings: str | None = "13.0.1") -> None:
        versions = {"tensorrt-rtx": version} if version else {}
        self.monkeypatch.setattr(Vendor, "versions", lambda _: versions)
        self.monkeypatch.setattr(
            _trt_host, "installed_version", lambda name: bindings if name == _trt_host.BINDINGS else None
        )

    def has(self, gpu: Gpu | None) -> None:
        self.monkeypatch.setattr(_trt_host, "first_gpu", lambda: gpu)

    def load(self) -> Any:
        import mlflow

        self.monkeypatch.setenv("MLFLOW_TRACKING_URI", self.tracking.uri)
        return mlflow.pyfunc.load_model(URI)


@pytest.fixture
def host(registered: Tracking, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host of the target, on which everything is installed."""
    for name in ("ENGINEWORKS_TRUSTED_KEYS", "ENGINEWORKS_SIGNING_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    cuda = FakeRuntime()
    monkeypatch.setattr(_cuda, "runtime", lambda: cuda)
    monkeypatch.setattr(_trt_log, "_loggers", {})
    monkeypatch.setattr(_trt_load, "first_gpu", lambda: None)  # the engine's header is not looked at
    profiles = [((1, 4), (2, 4), (8, 4))]
    tensors = {"x": FakeTensor("FLOAT", (-1, 4), profiles)}, {"y": FakeTensor("FLOAT", (-1, 4))}
    engine = FakeEngine(*tensors, lambda given: {"y": given["x"] * 2}, lambda shapes: {"y": shapes["x"]}, cuda)
    monkeypatch.setattr(Vendor, "load", lambda _: FakeVendor(engine))
    found = Host(monkeypatch, cuda, registered)
    found.installed()
    found.has(HERE)
    return found


def test_on_a_host_of_its_target_it_gives_the_engines_outputs(host: Host) -> None:
    model = host.load()
    np.testing.assert_array_equal(model.predict(FEEDS)["y"], 2 * FEEDS["x"])
    np.testing.assert_array_equal(model.predict(model.input_example)["y"], 2 * FEEDS["x"])
    assert [(t.name, t.type.name, t.shape) for t in model.metadata.signature.outputs.inputs] == [
        ("y", "float32", (-1, 4))
    ]


def test_a_shape_that_no_profile_has_is_one_sentence(host: Host) -> None:
    with pytest.raises(RunError, match=r"x \[9, 4\] lies outside every profile of the engine: x \[1, 4\] to \[8, 4\]"):
        host.load().predict({"x": np.zeros((9, 4), np.float32)})


@pytest.mark.parametrize(
    ("version", "bindings", "gpu", "words"),
    [
        ("1.6.1.120", "13.0.1", None, "no NVIDIA GPU here; the target's engines run on compute capability 8.9"),
        (
            "1.6.1.120", "13.0.1", Gpu("NVIDIA A100", "8.0", "580.10", "13.0"),
            "the NVIDIA A100 here has compute capability 8.0; the target's engines run on 8.9",
        ),
        (None, "13.0.1", HERE, "TensorRT-RTX is not installed; pip install tensorrt-rtx"),
        ("1.6.1.120", None, HERE, "NVIDIA's cuda-python is not installed, by which engines are run; pip install"),
    ],
    ids=["no GPU", "wrong GPU", "no TensorRT-RTX", "no cuda-python"],
)  # fmt: skip
def test_anywhere_else_one_sentence_says_why_before_anything_is_loaded(
    host: Host, version: str | None, bindings: str | None, gpu: Gpu | None, words: str
) -> None:
    host.installed(version, bindings)
    host.has(gpu)
    host.monkeypatch.setattr(Vendor, "load", lambda _: pytest.fail("the vendor's library was loaded"))
    with pytest.raises(RunError) as caught:
        host.load()
    assert str(caught.value).startswith(f"gpu-tiny/fp16/rtx40 cannot be run here: {words}")
    assert "load it on a host of target 'rtx40', or load another engine of this model" in str(caught.value)


def test_altered_bytes_never_reach_the_vendors_library(host: Host) -> None:
    version = host.tracking.registry().get(SLOT)
    assert version is not None
    uri = by_hand(host.tracking).get_model_version_download_uri("gpu-tiny", str(version.version))
    file = Path(uri.removeprefix("file://")) / "data" / "files" / "engine.plan"
    file.chmod(0o644)
    right = file.read_bytes()
    file.write_bytes(b"plan of a stranger"[: len(right)])
    host.monkeypatch.setattr(Vendor, "load", lambda _: pytest.fail("the vendor's library was loaded"))
    try:
        with pytest.raises(TrustError, match=r"engine\.plan"):
            host.load()
    finally:
        file.write_bytes(right)
