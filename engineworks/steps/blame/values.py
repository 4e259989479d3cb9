"""What every inner tensor of a model should be: its own values in ONNX Runtime as written, without optimizations.

`main` runs in a child process. It also runs the model with noise of one rounding (`lower.rounding`): where that moves a
tensor, a correct engine may differ from the reference as much.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from engineworks.engines.backends import onnxruntime as backend
from engineworks.errors import EngineworksError
from engineworks.host.lazy import Array, onnx
from engineworks.measure.served_checks import MOVED, ROUNDED
from engineworks.model.lower.rounding import add_rounding
from engineworks.model.onnx_files import load_model, save_model
from engineworks.recipe.npz import read_arrays
from engineworks.steps.blame.graph import Graph

WORST = 1e30
"""The error of a tensor with another shape, or with NaN or infinity where the reference has none."""


def error_of(got: Array, wanted: Array) -> float:
    """‖got − wanted‖ / ‖wanted‖ in float64; of integers and bools the share that differs; `WORST` if not comparable."""
    if got.shape != wanted.shape:
        return WORST
    if wanted.dtype.kind not in "fc":
        return float(np.mean(got != wanted)) if wanted.size else 0.0
    e, r = got.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(r)
    if not np.array_equal(finite, np.isfinite(e)):
        return WORST
    noise, signal = (float(np.linalg.norm(x[finite])) for x in (e - np.where(finite, r, e), r))
    return noise / signal if signal > 0 else (0.0 if noise == 0 else WORST)


def row_error_of(got: Array, wanted: Array) -> float:
    """The largest error of a row (along the first axis): its ‖got − wanted‖ / ‖wanted‖, with the norm of the average
    row for smaller ones. So one wrong position of a large batch counts whole. Else as `error_of`."""
    whole = error_of(got, wanted)
    if whole >= WORST or wanted.dtype.kind not in "fc" or wanted.ndim < 2 or not wanted.size:
        return whole
    e, r = got.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(r)
    noise, signal = (
        np.linalg.norm(np.where(finite, x, 0).reshape(len(x), -1), axis=1) for x in (np.where(finite, e - r, 0), r)
    )
    average = float(np.sqrt(np.mean(signal**2)))
    return float(np.max(noise / np.maximum(signal, average))) if average > 0 else whole


def tolerance(precision: str) -> float:
    """3 ρ, as of a served row (`measure.served_checks`): the largest error of a correct engine's tensor."""
    return 3 * ROUNDED.get(precision, ROUNDED["int8"])


def main(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Write every inner tensor of `model` on `feeds` to `out` (.npz); return how far one rounding moves each.

    payload: model, feeds and out as paths. Tensors of types that NumPy lacks are left out. Raises `RunError` where ONNX
    Runtime cannot run the model.
    """
    model, out = Path(payload["model"]), Path(payload["out"])
    feeds = read_arrays(Path(payload["feeds"]))
    marked = Graph(load_model(model, weights=False)).marked()
    values = _run(model, marked, feeds)
    moved: dict[str, float] = {}
    try:
        if add_rounding(marked):
            moved = {name: min(row_error_of(v, values[name]), WORST) for name, v in _run(model, marked, feeds).items()}
    except EngineworksError:
        moved = {}  # without it the tolerance alone decides
    np.savez(out, **values, **{n: v for n, v in feeds.items() if n not in values})  # type: ignore[arg-type]
    return {"moved": moved}


def _run(model: Path, graph: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """graph: of the same file's weights, which stay there."""
    with closing(backend.load_as_written(model, graph=graph.SerializeToString())) as session:
        return session.run({spec.name: feeds[spec.name] for spec in session.inputs})


def allowed(names: Mapping[str, float], precision: str) -> dict[str, float]:
    """The largest error of a correct engine by tensor, from how far one rounding moves it."""
    return {name: max(tolerance(precision), MOVED * moved) for name, moved in names.items()}


def save_part(model: onnx.ModelProto, feeds: Mapping[str, Array], folder: Path) -> tuple[Path, Path]:
    """Write a model and its feeds; returns both files."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, folder / "model.onnx")
    np.savez(folder / "inputs.npz", **feeds)  # type: ignore[arg-type]
    return folder / "model.onnx", folder / "inputs.npz"
