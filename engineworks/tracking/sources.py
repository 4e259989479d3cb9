"""MLflow models as sources of recipes: resolves `models:/name@alias`, fetches its files, and reads its kind.

Files are fetched once per version into `<artifacts>/mlflow-models`. A key holds their digests, not the name: a moved
alias triggers a rebuild, a second name of the same model does not.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from engineworks.errors import ModelError, TrackingError, did_you_mean
from engineworks.fingerprint import digest_of
from engineworks.settings import Settings
from engineworks.tracking.connection import refusals
from engineworks.tracking.opening import DATABASE_FILE, prepare_environment, probe, sqlite_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from mlflow.tracking import MlflowClient

FOLDER = "mlflow-models"
TRACED = "data/*.pt2"
"""Where MLflow keeps a model traced by torch.export, which has no eval()."""

FORMS = "models:/name/version, models:/name@alias, models:/m-… or runs:/id/path"

_VERSION = re.compile(r"models:/(?P<name>[^/@]+)/(?P<version>\d+|latest)")
_ALIAS = re.compile(r"models:/(?P<name>[^/@]+)@(?P<alias>[^/@]+)")
_LOGGED = re.compile(r"models:/(?P<id>m-[0-9a-f]+)")
_RUN = re.compile(r"runs:/(?P<run>[^/]+)/(?P<path>.+)")


@dataclass(frozen=True)
class FetchedModel:
    """A fetched model. kind: how to export it. path: the ONNX file, the transformers folder, or MLflow's folder of a
    PyTorch model. tokenizer, processor: folders logged with it. resolved: the immutable name of its present version."""

    kind: Literal["onnx", "huggingface", "mlflow_pytorch"]
    path: Path
    resolved: str
    tokenizer: Path | None = None
    processor: Path | None = None


def fetch_model(uri: str, settings: Settings) -> FetchedModel:
    """Return the model's files on this host. Raises `ModelError` for a missing model or one that cannot be exported,
    `TrackingError` where MLflow does not answer."""
    if not any(form.fullmatch(uri) for form in (_VERSION, _ALIAS, _LOGGED, _RUN)):
        raise ModelError(f"'{uri}' names no model in MLflow", hint=f"write {FORMS}")
    tracking_uri = _tracking_uri(uri, settings)
    prepare_environment()
    from mlflow.tracking import MlflowClient

    with refusals(f"{uri} cannot be looked up"):
        model = _resolve(MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri), uri)
    folder = settings.artifacts / FOLDER / digest_of({"tracking": tracking_uri, **vars(model)})
    if not folder.is_dir():
        _download(model, tracking_uri, folder)
    return _read(folder, uri, model.name)


@dataclass(frozen=True)
class _Immutable:
    """The present meaning of a name. name: its immutable URI. location: where its artifacts are. created: distinguishes
    it from a later model of the same name."""

    name: str
    location: str
    created: int = 0


def load_pytorch(folder: Path) -> torch.nn.Module:
    """Load a model of MLflow's pytorch flavor in eval mode on the CPU. Raises `ModelError` where it cannot be loaded.

    A pickle runs its author's code, so call this only in a child process. A traced model (pt2) keeps its mode. Leaves
    PyTorch with one thread.
    """
    prepare_environment()
    from engineworks.model.export.from_torch import use_one_thread

    use_one_thread()
    import mlflow.pytorch

    try:
        module: torch.nn.Module = mlflow.pytorch.load_model(folder.as_uri(), map_location="cpu")
    except Exception as error:  # the pickle may raise anything
        lines = str(error).splitlines()
        raise ModelError(
            f"the PyTorch model cannot be loaded: {type(error).__name__}: {lines[0] if lines else ''}",
            hint="its classes must be installed here, or logged with it (code_paths)",
        ) from error
    if any(folder.glob(TRACED)):  # exporters call its train and eval, and torch's own raise
        vars(module).update(train=lambda mode=True: module, eval=lambda: module)
    return module.eval()


def _tracking_uri(uri: str, settings: Settings) -> str:
    """Return the tracking URI. Raises `TrackingError` where nothing answers there."""
    tracking_uri = settings.tracking_uri or f"sqlite:///{settings.artifacts.resolve() / DATABASE_FILE}"
    database = sqlite_file(tracking_uri)
    if database is not None and not database.is_file():
        raise TrackingError(
            f"{uri} cannot be looked up: there is no MLflow database at {database}",
            hint="set MLFLOW_TRACKING_URI to the one that has it",
        )
    if database is None:
        probe(tracking_uri)
    return tracking_uri


def _resolve(client: MlflowClient, uri: str) -> _Immutable:
    if match := _RUN.fullmatch(uri):
        return _Immutable(uri, _in_run(client, match["run"], match["path"]))
    if match := _LOGGED.fullmatch(uri):
        return _Immutable(uri, _location(client, uri))
    match = _VERSION.fullmatch(uri) or _ALIAS.fullmatch(uri)
    assert match is not None  # checked before
    name = match["name"]
    with _known(f"there is no registered model '{name}' in MLflow", lambda: did_you_mean(name, _names(client))):
        registered = client.get_registered_model(name)
    versions = {str(v.version): v for v in client.search_model_versions(f"name='{name}'")}
    wanted = match.groupdict().get("version")
    if wanted == "latest":
        wanted = max(versions, key=int, default="")
    if wanted is None:
        alias = match["alias"]
        if alias not in registered.aliases:
            raise ModelError(f"{name} has no alias '{alias}'", hint=did_you_mean(alias, registered.aliases))
        wanted = str(registered.aliases[alias])
    if wanted not in versions:
        hint = f"it has {', '.join(sorted(versions, key=int))}" if versions else "it has none"
        raise ModelError(f"{name} has no version {wanted}", hint=hint)
    location = _location(client, client.get_model_version_download_uri(name, wanted))
    return _Immutable(f"models:/{name}/{wanted}", location, versions[wanted].creation_timestamp)


def _in_run(client: MlflowClient, run_id: str, path: str) -> str:
    """Return where a run's model is: among its artifacts, or, since MLflow 3, as a logged model of that name."""
    with _known(f"there is no run '{run_id}' in MLflow"):
        run = client.get_run(run_id)
    if client.list_artifacts(run_id, path):
        return f"{run.info.artifact_uri}/{path}"
    logged = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    names = {model.name: str(model.artifact_location) for model in reversed(logged)}
    if path not in names:
        raise ModelError(f"run {run_id} holds no model '{path}'", hint=did_you_mean(path, names))
    return names[path]


def _location(client: MlflowClient, uri: str) -> str:
    """Return where the artifacts of a logged model are; any other URI is a location already."""
    match = _LOGGED.fullmatch(uri)
    if match is None:
        return uri
    with _known(f"there is no logged model '{match['id']}' in MLflow"):
        return str(client.get_logged_model(match["id"]).artifact_location)


def _names(client: MlflowClient) -> list[str]:
    return [model.name for model in client.search_registered_models(max_results=100)]


@contextmanager
def _known(message: str, hint: Any = lambda: "") -> Iterator[None]:
    """Convert errors for missing models: they are the user's mistake, not a failure of MLflow."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise ModelError(message, hint=hint()) from None


def _download(model: _Immutable, tracking_uri: str, folder: Path) -> None:
    """Download atomically: a killed build leaves no partial model. Uses the location, because MLflow resolves registry
    names in the environment's registry, whatever its arguments."""
    import mlflow.artifacts

    partial = folder.with_name(f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with refusals(f"{model.name} cannot be fetched"):
            got = Path(
                mlflow.artifacts.download_artifacts(
                    artifact_uri=model.location, dst_path=str(partial), tracking_uri=tracking_uri
                )
            )
        try:
            got.replace(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read(folder: Path, uri: str, resolved: str) -> FetchedModel:
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    try:
        flavors: Mapping[str, Mapping[str, Any]] = Model.load(str(folder)).flavors
    except (MlflowException, OSError, ValueError, TypeError):
        raise ModelError(f"{uri} is no MLflow model: it holds no MLmodel file that can be read") from None
    if "onnx" in flavors:
        return FetchedModel("onnx", folder / str(flavors["onnx"].get("data", "model.onnx")), resolved)
    if "transformers" in flavors:
        model = folder / str(flavors["transformers"].get("model_binary", "model"))
        own = [folder / "components" / name for name in ("tokenizer", "image_processor", "feature_extractor")]
        there = [path if path.is_dir() else None for path in own]
        return FetchedModel("huggingface", model, resolved, there[0] or model, there[1] or there[2] or model)
    if "pytorch" in flavors:
        return FetchedModel("mlflow_pytorch", folder, resolved)
    held = ", ".join(sorted(set(flavors) - {"python_function"})) or "python_function only"
    raise ModelError(f"{uri} cannot be exported: its flavor is {held}", hint="log it as onnx, transformers or pytorch")
