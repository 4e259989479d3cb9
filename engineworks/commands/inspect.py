"""Facts of an engine file, an artifact folder or an ONNX file, as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engineworks.engines.engine_files import SIDECAR_FILE
from engineworks.errors import InputError, RunError
from engineworks.fingerprint import digest_of
from engineworks.host.file_digests import digest_file
from engineworks.plan.champion_lookup import which_engine
from engineworks.settings import Settings
from engineworks.store.open import open_store


def inspect_engine(name: str, settings: Settings) -> dict[str, Any]:
    """Return facts of the latest engine with this id, or of the file or folder of this name."""
    if Path(name).exists() or name.count("/") != 2:
        return inspect_path(Path(name))
    store = open_store(settings)
    document = store.latest(f"{name}/build")
    built = store.get(digest_of(document)) if document else None
    if built is None:
        raise InputError(
            f"{name}: neither a file nor an engine that was built here",
            hint="'engineworks list engines' shows those that were",
        )
    facts = inspect_path(built.path)
    return {"kind": facts["kind"], "which": which_engine(name, facts["sha256"], settings), **facts}


def inspect_path(path: Path) -> dict[str, Any]:
    """Return the engine's facts, first those of its sidecar. Raises `InputError` for other files."""
    if not path.exists():
        raise InputError(
            f"{path}: no such file", hint="name an ONNX file, an engine's folder, or recipe/precision/target"
        )
    folder = path if path.is_dir() else path.parent
    sidecar = folder / SIDECAR_FILE
    if sidecar.is_file() and (path.is_dir() or path.suffix != ".json"):
        return _engine(folder, json.loads(sidecar.read_text(encoding="utf-8")))
    if path.is_dir():
        raise InputError(
            f"{path}: holds no {SIDECAR_FILE}", hint="name an engine, its folder in the store, or an ONNX file"
        )
    if path.suffix == ".onnx":
        return _onnx(path)
    return _bare(path)


def _engine(folder: Path, sidecar: dict[str, Any]) -> dict[str, Any]:
    engine = folder / sidecar["engine"]
    if not engine.is_file():
        raise InputError(f"{folder}: the sidecar names '{sidecar['engine']}', which is missing")
    digest = digest_file(engine)
    return {"kind": "engine", "path": str(engine), "digest_matches": digest == sidecar["sha256"], **sidecar}


def _onnx(path: Path) -> dict[str, Any]:
    from engineworks.model.fold.inventory import inventory
    from engineworks.model.onnx_files import load_model

    return {"kind": "onnx", "path": str(path), **inventory(load_model(path, weights=False)).to_json()}


def _bare(path: Path) -> dict[str, Any]:
    """Return what the header of a plan without a sidecar states."""
    from engineworks.engines.backends.plan_header import HEADER_BYTES, read_plan_header

    with path.open("rb") as file:
        start = file.read(HEADER_BYTES)
    try:
        header = read_plan_header(start)
    except RunError:
        raise InputError(f"{path}: neither a TensorRT plan nor an ONNX file", hint="is it the right file?") from None
    return {"kind": "plan without sidecar", "path": str(path), "sha256": digest_file(path), **header.to_json()}
