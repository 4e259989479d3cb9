"""Facts of `engineworks inspect` for people: names and sizes in words, digests shortened. --json has them all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engineworks.report.counting import many

DIGEST_CHARS = 16


def facts_text(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the facts in their order of interest, each as one line of text."""
    about = {"engine": _engine, "onnx": _model}.get(facts["kind"], _plan)
    return {name: text for name, text in about(facts) if text}


def _engine(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    target = facts["target"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    yield "engine", f"{facts['precision']} for {_target(target)}, {_size(facts['bytes'])}"
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


def _model(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    operators = ", ".join(f"{count} {name}" for name, count in facts["operators"].items())
    dtypes = ", ".join(f"{_size(size)} {dtype}" for dtype, size in facts["bytes_by_dtype"].items())
    yield "model", f"ONNX, opset {facts['opset']}, {facts['parameters']:,} parameters"
    yield "operators", f"{many(facts['nodes'], 'node')}: {operators}"
    yield "weights", dtypes
    yield from _interface(facts)
    yield "file", str(facts["path"])


def _plan(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "plan", f"TensorRT-RTX {facts['version']}, {_size(facts['plan_bytes'])}, without engine.json beside it"
    yield "GPUs", "compute capability " + ", ".join(facts["compute_capabilities"])
    yield "digest", f"sha256 {facts['sha256'][:DIGEST_CHARS]}…"
    yield "file", str(facts["path"])


def _interface(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for kind in ("inputs", "outputs"):
        for spec in facts.get(kind, ()):
            yield f"{kind[:-1]} {spec['name']}", f"{spec['dtype']}[{', '.join(map(str, spec['shape']))}]"


def _target(target: Mapping[str, Any]) -> str:
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
