"""`mlflow: models:/name/version` → the files of the model version that it now means."""

from __future__ import annotations

from engineworks.errors import ModelError, TrackingError
from engineworks.model.export.from_huggingface import find_folder, source_files, task_of
from engineworks.recipe.file_lookup import Finder, FoundModel
from engineworks.settings import read_settings

PYTORCH_PARTS = ("data", "code")
"""Parts that shape a model of the pytorch flavor: its weights and the logged source, not the date or author."""


def find_mlflow(finder: Finder, uri: str, task: str | None) -> FoundModel:
    """The model's files on this host, fetched if needed; problems are noted at their places."""
    from engineworks.tracking.sources import fetch_model

    where = ("model", "source", "mlflow")
    try:
        model = fetch_model(uri, read_settings())
        if model.kind == "huggingface":
            task_of(find_folder(str(model.path), finder.folder), task)
    except (ModelError, TrackingError) as error:
        finder.add(where, error.message, error.hint)
        return FoundModel("onnx", None, {})
    if model.kind == "onnx":
        files = finder.onnx_files(where, model.path)
    elif model.kind == "huggingface":
        files = source_files(model.path)
    else:
        every = [p for part in PYTORCH_PARTS for p in sorted((model.path / part).rglob("*")) if p.is_file()]
        files = {p.relative_to(model.path).as_posix(): p for p in every}
    return FoundModel(model.kind, model.path, files, model.tokenizer, model.processor, model.resolved)
