"""Facts of an engine file, an artifact folder or an ONNX file: as JSON, and for people in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engineworks.engines.engine_files import SIDECAR_FILE
from engineworks.engines.sidecar import Sidecar
from engineworks.errors import InputError, RunError
from engineworks.fingerprint import digest_of
from engineworks.host.file_digests import digest_file
from engineworks.host.regular_files import open_regular, read_regular
from engineworks.plan.champion_lookup import which_engine
from engineworks.report.words import many
from engineworks.settings import Settings
from engineworks.store.shared import open_store
from engineworks.typed_json import parse

BUILD_AGAIN = "build the engine again"
LARGEST_SIDECAR_BYTES = 64 << 20


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
        return _engine(folder, parse(Sidecar, _bytes(sidecar), str(sidecar), error=InputError, hint=BUILD_AGAIN))
    if path.is_dir():
        raise InputError(
            f"{path}: holds no {SIDECAR_FILE}", hint="name an engine, its folder in the store, or an ONNX file"
        )
    if path.suffix == ".onnx":
        return _onnx(path)
    return _bare(path)


def _engine(folder: Path, sidecar: Sidecar) -> dict[str, Any]:
    engine = folder / sidecar.engine
    if Path(sidecar.engine).name != sidecar.engine or not engine.is_file():
        raise InputError(f"{folder}: the sidecar names '{sidecar.engine}', which is missing")
    matches = digest_file(engine) == sidecar.sha256
    facts = {"kind": "engine", "path": str(engine), "digest_matches": matches, **sidecar.to_json()}
    try:
        facts_text(facts)  # target and profiles are the backend's own
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(
            f"{folder / SIDECAR_FILE}: target or profiles are not as documented", hint=BUILD_AGAIN
        ) from None
    return facts


def _bytes(path: Path) -> bytes:
    try:
        return read_regular(path, LARGEST_SIDECAR_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _onnx(path: Path) -> dict[str, Any]:
    from engineworks.model.fold.inventory import inventory
    from engineworks.model.onnx_files import load_model

    return {"kind": "onnx", "path": str(path), **inventory(load_model(path, weights=False)).to_json()}


def _bare(path: Path) -> dict[str, Any]:
    """Return what the header of a plan without a sidecar states."""
    from engineworks.engines.backends.plan_header import HEADER_BYTES, read_plan_header

    try:
        with open_regular(path) as file:
            start = file.read(HEADER_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        header = read_plan_header(start)
    except RunError:
        raise InputError(f"{path}: neither a TensorRT plan nor an ONNX file", hint="is it the right file?") from None
    return {"kind": "plan without sidecar", "path": str(path), "sha256": digest_file(path), **header.to_json()}


DIGEST_CHARS = 16


def facts_text(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the facts in their order of interest, each as one line of text."""
    about = {"engine": _engine_lines, "onnx": _model_lines}.get(facts["kind"], _plan_lines)
    return {name: text for name, text in about(facts) if text}


def _engine_lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    target = facts["target"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    yield "engine", f"{facts['precision']} for {_target_text(target)}, {_size(facts['bytes'])}"
    yield "which", str(facts.get("which", ""))
    yield "built by", f"{versions}, in {facts['build_seconds']:.1f} s"
    yield from _interface(facts)
    for profile in facts.get("profiles", ()):
        yield f"profile {profile['name']}", _ranges(profile["inputs"])
    yield "model", f"sha256 {facts['model_sha256'][:DIGEST_CHARS]}…" if facts.get("model_sha256") else ""
    match = "matches the file" if facts["digest_matches"] else "DOES NOT MATCH the file: do not load it"
    yield "digest", f"sha256 {facts['sha256'][:DIGEST_CHARS]}…, {match}"
    yield from (("note", str(note)) for note in facts.get("details", {}).get("notes", ()))
    yield "file", str(facts["path"])


def _model_lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    operators = ", ".join(f"{count} {name}" for name, count in facts["operators"].items())
    dtypes = ", ".join(f"{_size(size)} {dtype}" for dtype, size in facts["bytes_by_dtype"].items())
    yield "model", f"ONNX, opset {facts['opset']}, {facts['parameters']:,} parameters"
    yield "operators", f"{many(facts['nodes'], 'node')}: {operators}"
    yield "weights", dtypes
    yield from _interface(facts)
    yield "file", str(facts["path"])


def _plan_lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "plan", f"TensorRT-RTX {facts['version']}, {_size(facts['plan_bytes'])}, without engine.json beside it"
    yield "GPUs", "compute capability " + ", ".join(facts["compute_capabilities"])
    yield "digest", f"sha256 {facts['sha256'][:DIGEST_CHARS]}…"
    yield "file", str(facts["path"])


def _interface(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for kind in ("inputs", "outputs"):
        for spec in facts.get(kind, ()):
            yield f"{kind[:-1]} {spec['name']}", f"{spec['dtype']}[{', '.join(map(str, spec['shape']))}]"


def _target_text(target: Mapping[str, Any]) -> str:
    capabilities: Sequence[str] = target["compute_capability"]
    if not capabilities:
        return f"the CPU ({target['backend']})"
    return f"GPUs of compute capability {', '.join(capabilities)} ({target['backend']})"


def _ranges(inputs: Mapping[str, Mapping[str, Sequence[int]]]) -> str:
    """'image 1×1×8×8 to 64×1×8×8, tuned for 8×1×8×8'."""
    return "; ".join(
        f"{name} {_dims(shape['min'])} to {_dims(shape['max'])}, tuned for {_dims(shape['opt'])}"
        for name, shape in inputs.items()
    )


def _dims(dims: Sequence[int]) -> str:
    return "×".join(map(str, dims)) or "scalar"


def _size(count: int) -> str:
    if count < 1024:
        return many(count, "byte")
    return f"{count / 1024:.1f} KiB" if count < 2**20 else f"{count / 2**20:,.1f} MiB"
