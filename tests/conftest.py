"""Shared fixtures: a repository with a tiny recipe, its model and its data, made anew for every test that asks."""

from __future__ import annotations

import gc
import io
import itertools
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engineworks.host import child
from engineworks.host.child import ChildPool
from engineworks.host.child.start import Child, Command, start_child
from engineworks.tracking import sqlite
from flows.local_prefect_child import ServerChild

settings.register_profile("any host", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any host")  # no test depends on how fast the host is


def pytest_configure() -> None:
    gc.disable()  # while tests are collected


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is made once for a module is made by one worker: tests that use it are a group, if they are in no other."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None and shares_in_its_module(item):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


def shares_in_its_module(item: pytest.Item) -> bool:
    known = item._fixtureinfo.name2fixturedefs  # type: ignore[attr-defined]  # pytest has no public way to a scope
    return any(found[-1].scope == "module" for found in known.values())


def pytest_collection_finish() -> None:
    """What is imported and collected by now stays: each search of the garbage collector through it takes .6 s."""
    gc.freeze()
    gc.enable()


RECIPE = """\
recipe: tiny
description: A classifier of two-by-two images
owner: tests@example.com
model: {source: {onnx: tiny.onnx}}
inputs:
  image: {dtype: float32, shape: [batch, 1, 4, 4]}
outputs: {logits: [batch, 3]}
shapes:
  default: {batch: [1, 4, 16]}
precisions: [fp32, int8]
data:
  calibration: {npz: calib.npz}
  evaluation: {npz: test.npz, labels: label}
accuracy:
  metric: top1
  limits:
    fp32: {cosine: 0.9999}
    int8: {cosine: 0.98}
targets: [cpu]
performance:
  at: {one: {batch: 1}}
"""

STEPS = 14
"""Steps of a build of this recipe: 4 of the model and its data, 5 of each precision or engine."""

SMALL = (
    RECIPE.partition("performance:")[0].replace("[fp32, int8]", "[int8]").replace("    fp32: {cosine: 0.9999}\n", "")
)
SMALL_STEPS = 8
"""One engine, not measured, and the steps of its build."""

TARGETS = """\
targets:
  cpu: {backend: onnxruntime, pool: prepare}
  rtx40: {backend: tensorrt_rtx, compute_capability: [8.9], pool: rtx40}
"""


def tiny_model(seed: int = 0) -> onnx.ModelProto:
    """image f32[batch,1,4,4] → Conv, Relu, Flatten, Gemm → logits f32[batch,3], opset 17."""
    random = np.random.default_rng(seed)
    weights = {
        "w": random.normal(0, 0.5, (8, 1, 3, 3)),
        "b": random.normal(0, 0.1, (8,)),
        "fw": random.normal(0, 0.3, (32, 3)),
        "fb": random.normal(0, 0.1, (3,)),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "w", "b"], ["c"], name="conv"),
            helper.make_node("Relu", ["c"], ["r"], name="relu"),
            helper.make_node("Flatten", ["r"], ["f"], name="flatten"),
            helper.make_node("Gemm", ["f", "fw", "fb"], ["logits"], name="classifier"),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def tiny_labels(images: NDArray[np.float32], model: onnx.ModelProto) -> NDArray[np.int64]:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(None, {"image": images})[0]
    return logits.argmax(axis=1)


@pytest.fixture(scope="session", autouse=True)
def _one_migration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """MLflow migrates its first fresh database of this process, 1 s; every later one is a copy of the result."""
    migrate, copy = sqlite._migrate_in_memory, tmp_path_factory.mktemp("migrated") / "mlflow.db"

    def migrate_once(target: Path) -> None:
        if not copy.exists():
            migrate(copy)
        shutil.copyfile(copy, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite, "_migrate_in_memory", migrate_once)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_child_for_many_tests() -> Iterator[None]:
    """A child serves who has its environment: without the name of the test in it, 1 s, it serves the next test too."""

    def start(command: Command) -> Child:
        return start_child(replace(command, env=without_test(command.env)))

    def take(pool: ChildPool, env: Mapping[str, str], fresh: bool) -> Child:
        return take_before(pool, without_test(env), fresh)

    def without_test(env: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in env.items() if name != "PYTEST_CURRENT_TEST"}

    take_before = ChildPool._take
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChildPool, "_take", take)
        patch.setattr(child, "start_child", start)
        yield


@pytest.fixture(scope="session", autouse=True)
def _measures_beside_others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Builds of a host measure one after the other; those of tests wait for no other worker, and for no other build."""
    folder = tmp_path_factory.mktemp("locks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engineworks.builds.step.private_folder", lambda: folder)
        yield


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables that lead commands to one Prefect server, which takes 8 s of a processor to start."""
    server = ServerChild(tmp_path_factory.mktemp("prefect"))
    server.start(fork=False)
    server.wait_ready(120)
    yield {"PREFECT_API_URL": server.url, "PREFECT_API_AUTH_STRING": server.password, "NO_PROXY": "127.0.0.1"}
    server.stop()


_folders = itertools.count()


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As pytest's own, which looks through the folders of all tests before for the next number of a name."""
    name = re.sub(r"\W", "_", request.node.name)[:30]
    return tmp_path_factory.mktemp(f"{name}-{next(_folders)}", numbered=False)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose recipes/ holds `tiny.yaml`; it is the current folder, and artifacts/ lies in it."""
    for name in ("ENGINEWORKS_ARTIFACTS", "ENGINEWORKS_STORE", "ENGINEWORKS_DATA_ROOTS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return make_repository(tmp_path)


@pytest.fixture
def small_repository(repository: Path) -> Path:
    """The same with one engine that is not measured: for tests of builds in processes of their own."""
    recipe = repository / "recipes" / "tiny.yaml"
    recipe.write_text(SMALL, encoding="utf-8")
    return repository


def make_repository(root: Path) -> Path:
    (root / ".git").mkdir()
    recipes = root / "recipes"
    recipes.mkdir()
    (recipes / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    (recipes / "_targets.yaml").write_text(TARGETS, encoding="utf-8")
    for name, content in tiny_files().items():
        (recipes / name).write_bytes(content)
    return root


@cache
def tiny_files() -> dict[str, bytes]:
    """The tiny model and its data, by name."""
    model, calibration, evaluation = tiny_model(), io.BytesIO(), io.BytesIO()
    images = np.random.default_rng(1).normal(0, 1, (40, 1, 4, 4)).astype(np.float32)
    np.savez(calibration, image=images[:24])
    np.savez(evaluation, image=images[24:], label=tiny_labels(images[24:], model))
    return {
        "tiny.onnx": model.SerializeToString(), "calib.npz": calibration.getvalue(), "test.npz": evaluation.getvalue(),
    }  # fmt: skip


def free_height(recipes: Path) -> None:
    """The tiny model, and its recipe, with images of any height."""
    w = numpy_helper.from_array(np.ones((8, 1, 3, 3), np.float32), "w")
    fw = numpy_helper.from_array(np.ones((8, 3), np.float32), "fw")
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "fw"], ["logits"], name="classifier"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, "height", 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "tall", [image], [logits], [w, fw])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), recipes / "tiny.onnx"
    )
    text = (recipes / "tiny.yaml").read_text(encoding="utf-8")
    assert "[batch, 1, 4, 4]" in text
    (recipes / "tiny.yaml").write_text(text.replace("[batch, 1, 4, 4]", "[batch, 1, height, 4]"), encoding="utf-8")


@pytest.fixture
def outlier(repository: Path) -> Path:
    """The file of a recipe whose model has one product that int8 ruins."""
    import onnxruntime
    import outlier_model

    recipes, model = repository / "recipes", outlier_model.outlier_model()
    onnx.save(model, recipes / "outlier.onnx")
    rows = outlier_model.samples(120)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    labels = session.run(None, {"x": rows})[0].argmax(axis=1)
    np.savez(recipes / "calib.npz", x=rows[:60])
    np.savez(recipes / "test.npz", x=rows[60:], label=labels[60:])
    (recipes / "outlier.yaml").write_text(outlier_model.RECIPE, encoding="utf-8")
    return recipes / "outlier.yaml"
