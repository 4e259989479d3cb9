"""Recipes whose model is in MLflow: what a name is now decides the key; every slip in one sentence. Offline, SQLite."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import RECIPE, TARGETS, tiny_model

from engineworks.builds.step import run_step
from engineworks.errors import RecipeError
from engineworks.host.child import default_pool
from engineworks.host.file_digests import FileDigests
from engineworks.plan.plan import plan_recipe
from engineworks.recipe.load import LoadedRecipe, load_recipe
from engineworks.settings import Settings
from engineworks.store.store import Store
from engineworks.tracking.opening import prepare_environment
from engineworks.tracking.sources import FetchedModel, fetch_model
from engineworks.tracking.sqlite import prepare_database

pytest.importorskip("mlflow")


@dataclass(frozen=True)
class Registry:
    """An MLflow of its own, with models that were logged as MLflow logs them."""

    client: Any
    run: str
    uri: str

    def register(self, name: str, folder: Path, place: str) -> str:
        """Log the model's folder, and make it the next version of `name`."""
        self.client.log_artifacts(self.run, str(folder), place)
        source = f"{self.client.get_run(self.run).info.artifact_uri}/{place}"
        return str(self.client.create_model_version(name, source, self.run).version)


def mlmodel(folder: Path, flavors: dict[str, dict[str, str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "MLmodel").write_text(json.dumps({"flavors": flavors, "utc_time_created": "2026-01-01 00:00:00"}))
    return folder


def logged_onnx(folder: Path, seed: int) -> Path:
    onnx.save(tiny_model(seed), mlmodel(folder, {"onnx": {"data": "model.onnx"}, "python_function": {}}) / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    prepare_environment()
    from mlflow.tracking import MlflowClient

    root = tmp_path_factory.mktemp("mlflow")
    prepare_database(root / "mlflow.db")
    uri = f"sqlite:///{root / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.create_experiment("trained", artifact_location=(root / "artifacts").as_uri())
    made = Registry(client, client.create_run(experiment).info.run_id, uri)
    for name in ("tiny", "copy", "other"):
        client.create_registered_model(name)
    for seed in (1, 2):
        made.register("tiny", logged_onnx(root / f"onnx-{seed}", seed), f"onnx-{seed}")
    made.register("copy", logged_onnx(root / "copy", 1), "copy")
    made.register("other", mlmodel(root / "sklearn", {"sklearn": {}, "python_function": {}}), "sklearn")
    client.set_registered_model_alias("tiny", "live", "1")
    return made


@pytest.fixture
def recipe(repository: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    (repository / "recipes" / "tiny.onnx").unlink()
    return repository / "recipes" / "tiny.yaml"


def load(recipe: Path, uri: str) -> LoadedRecipe:
    recipe.write_text(RECIPE.replace("onnx: tiny.onnx", f"mlflow: '{uri}'"))
    return load_recipe(recipe)


def export_key(recipe: Path, uri: str) -> str:
    planned = plan_recipe(load(recipe, uri), Store(recipe.parent / "store"), FileDigests(None))
    return next(step.key for step in planned.steps.values() if step.kind == "export")


def test_a_registered_onnx_model_is_exported(recipe: Path) -> None:
    store = Store(recipe.parent / "store")
    planned = plan_recipe(load(recipe, "models:/tiny/1"), store, FileDigests(None))
    step = next(step for step in planned.steps.values() if step.kind == "export")
    run_step(step, store, default_pool(), echo=lambda _: None)
    exported = onnx.load(store.require(step.key).path / "model.onnx")
    assert exported.graph.initializer == tiny_model(1).graph.initializer


def test_an_alias_that_moved_is_another_key_and_another_name_of_the_same_model_is_not(
    recipe: Path, registry: Registry
) -> None:
    first, second = export_key(recipe, "models:/tiny/1"), export_key(recipe, "models:/tiny/2")
    assert first != second
    assert export_key(recipe, "models:/tiny@live") == first
    assert export_key(recipe, "models:/copy/1") == first
    assert export_key(recipe, f"runs:/{registry.run}/onnx-2") == second
    assert export_key(recipe, "models:/tiny/latest") == second
    registry.client.set_registered_model_alias("tiny", "live", "2")
    try:
        assert export_key(recipe, "models:/tiny@live") == second
    finally:
        registry.client.set_registered_model_alias("tiny", "live", "1")


def test_what_was_fetched_once_is_not_fetched_again(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(tmp_path, str(tmp_path), (), registry.uri)
    found = fetch_model("models:/tiny/1", settings)
    monkeypatch.setattr("mlflow.artifacts.download_artifacts", lambda **_: pytest.fail("fetched again"))
    assert fetch_model("models:/tiny@live", settings) == found
    assert [p.name for p in (tmp_path / "mlflow-models").iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("models:/tinny/1", "there is no registered model 'tinny' in MLflow; did you mean 'tiny'?"),
        ("models:/tiny/7", "tiny has no version 7; it has 1, 2"),
        ("models:/tiny@liv", "tiny has no alias 'liv'; did you mean 'live'?"),
        ("runs:/abc/model", "there is no run 'abc' in MLflow"),
        ("models:/m-00", "there is no logged model 'm-00' in MLflow"),
        (
            "models:/other/1",
            "models:/other/1 cannot be exported: its flavor is sklearn; log it as onnx, transformers or pytorch",
        ),
        ("tiny/1", "'tiny/1' names no model in MLflow; write models:/name/version, models:/name@alias"),
    ],
)
def test_one_clear_message_at_its_place(recipe: Path, uri: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(recipe, uri)
    (problem,) = caught.value.problems
    assert str(problem).startswith(f"recipes/tiny.yaml:4:26: {said}")


def test_a_run_without_such_a_model_is_told(recipe: Path, registry: Registry) -> None:
    with pytest.raises(RecipeError, match=r"run \w+ holds no model 'none'"):
        load(recipe, f"runs:/{registry.run}/none")


def test_a_server_that_does_not_answer_is_told(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(RecipeError, match=r"4:26: MLflow does not answer at http://127\.0\.0\.1:9: "):
        load(recipe, "models:/tiny/1")


def test_task_goes_with_mlflow_and_huggingface_only(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("onnx: tiny.onnx", "onnx: tiny.onnx, task: fill-mask"))
    with pytest.raises(RecipeError, match="'task' goes with 'huggingface' and 'mlflow' only"):
        load_recipe(recipe)


def test_transformers_models_bring_their_tokenizer(tmp_path: Path, registry: Registry) -> None:
    folder = mlmodel(tmp_path / "bert", {"transformers": {"model_binary": "model"}})
    for name in ("model/config.json", "model/model.safetensors", "components/tokenizer/tokenizer.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    registry.client.create_registered_model("bert")
    registry.register("bert", folder, "bert")
    found = fetch_model("models:/bert/1", Settings(tmp_path / "a", str(tmp_path), (), registry.uri))
    home = found.path.parent
    assert found == FetchedModel(
        "huggingface", home / "model", "models:/bert/1", home / "components" / "tokenizer", home / "model"
    )


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["pickle", "pt2"])
def test_a_pytorch_model_is_exported(tmp_path: Path, recipe: Path, registry: Registry, kind: str) -> None:
    import mlflow.pytorch
    import numpy as np
    import torch

    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    example = np.zeros((2, 1, 4, 4), np.float32)
    mlflow.pytorch.save_model(
        module, tmp_path / kind, serialization_format=kind, input_example=example, pip_requirements=[]
    )
    registry.client.create_registered_model(f"torch-{kind}")
    registry.register(f"torch-{kind}", tmp_path / kind, f"torch-{kind}")
    shutil.rmtree(tmp_path / kind)
    store = Store(recipe.parent / "store")
    (recipe.parent / "_targets.yaml").write_text(TARGETS)
    planned = plan_recipe(load(recipe, f"models:/torch-{kind}/1"), store, FileDigests(None))
    step = next(step for step in planned.steps.values() if step.kind == "export")
    run_step(step, store, default_pool(), echo=lambda _: None)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(store.require(step.key).path / "model.onnx"))
    image = np.random.default_rng(0).normal(size=(5, 1, 4, 4)).astype(np.float32)
    with torch.no_grad():
        wanted = module(torch.from_numpy(image)).numpy()
    assert np.allclose(session.run(["logits"], {"image": image})[0], wanted, atol=1e-5)
