"""Lowered ONNX at the shapes of every profile → the outputs expected of its engines.

They are its own outputs, as written, in ONNX Runtime; once per lowering, for all targets. Stored next to them: how far
one rounding moves these outputs (the same runs with noise of one rounding, see `lower.rounding`), which sets the
engine's tolerance; and how far the lowered model is from fp32 on synthetic rows. If ONNX Runtime cannot run the lowered
model, or crashed on it, the file holds the reason, and engines are compared with fp32.
"""

from __future__ import annotations

import textwrap
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engineworks.engines.backends import onnxruntime as backend
from engineworks.engines.backends.base import Session
from engineworks.errors import RunError
from engineworks.measure.served import EXACT_DTYPES, RowErrors, row_errors
from engineworks.measure.served_report import Loss, LoweredFacts, Movement
from engineworks.model.lower.rounding import graph_with_rounding
from engineworks.model.onnx_files import MODEL_FILE
from engineworks.recipe.samples import samples_from_json
from engineworks.steps.job import StepJob
from engineworks.steps.served import SAME_SHARE
from engineworks.steps.served_reference import Piece, ShapesPlan, StoredOutputs
from engineworks.steps.served_rows import Arrays, ServedRows
from engineworks.steps.shapes_reference import SHAPES_OUTPUTS_FILE, stacked, write_arrays

MOST_MOVED = 1.0
"""Where one rounding changes even the shape of an output."""


def run(job: StepJob) -> None:
    if job.crashes:
        why = textwrap.shorten(f"ONNX Runtime does not run the lowered model: {job.crashes[0]}", 200, placeholder=" …")
        job.echo(f"engines are compared with fp32: {why}")
        job.write(LoweredFacts(stored=False, why=why, moved=(), lost=()))
        return
    plan = ShapesPlan(job.inputs["reference"])
    samples = samples_from_json(job.paths("evaluation"), job.params["samples"])
    rows = ServedRows(samples, job.params["ranges"])
    model = job.inputs["lower"] / MODEL_FILE
    stored, why, moved, lost = False, "", list[Mapping[str, Movement]](), list[Loss]()
    try:
        if not job.params["folded"]:  # else it is the model that the reference ran
            _store(plan, rows, model, job.out)
            stored, lost = True, _lost(plan, job.out, job.inputs["reference"])
    except RunError as error:
        (job.out / SHAPES_OUTPUTS_FILE).unlink(missing_ok=True)
        stored, why = False, _short(error, model)
        job.echo(f"engines are compared with fp32: {why}")
    if not why:
        own = StoredOutputs(plan, job.out if stored else job.inputs["reference"])
        try:
            moved = _moved(plan, rows, model, own)
        except RunError as error:
            job.echo(f"how far one rounding moves the outputs is not known: {_short(error, model)}")
        own.close()
    job.write(LoweredFacts(stored, why, tuple(moved), tuple(lost)))


def _short(error: RunError, model: Path) -> str:
    return textwrap.shorten(error.message.replace(str(model), "the lowered model"), 200, placeholder=" …")


def _store(plan: ShapesPlan, rows: ServedRows, model: Path, out: Path) -> None:
    session = backend.load_as_written(model)
    with zipfile.ZipFile(out / SHAPES_OUTPUTS_FILE, "w") as archive:
        for piece, outputs in _run(plan, rows, session):
            if outputs.keys() != plan.axes.keys():
                raise RunError(f"{model}: its outputs have other shapes than those of the fp32 model")
            write_arrays(archive, piece.key, outputs)
    session.close()


def _run(plan: ShapesPlan, rows: ServedRows, session: Session) -> Iterator[tuple[Piece, Arrays]]:
    """Yield every piece with the session's outputs: by name, with the model's shapes and dtypes."""
    held: tuple[int, list[Arrays]] = (-1, [])
    for piece in plan.pieces():
        if held[0] != piece.pool:
            held = (piece.pool, plan.rows(rows, piece.pool))
        runs = [session.run(rows.feeds(held[1], picks)) for picks in piece.picks]
        yield piece, stacked(runs, plan.axes) if plan.by_rows else runs[0]


def _moved(plan: ShapesPlan, rows: ServedRows, model: Path, own: StoredOutputs) -> list[Mapping[str, Movement]]:
    """Return, per pool and output, the largest error of a row after one more rounding, relative to the model's own.

    For exact outputs: the samples whose answer changed.
    """
    moved: list[dict[str, Movement]] = [{} for _ in plan.pools]
    graph, values = graph_with_rounding(model)
    if values:
        session = backend.load_as_written(model, graph=graph)
        for piece, outputs in _run(plan, rows, session):
            wanted, samples = own.piece(piece.key), [row for picks in piece.picks for row in picks]
            for name, axis in plan.axes.items():
                seen = moved[piece.pool].get(name, Movement(0.0, ()))
                scale = plan.scale.get(name, 0.0)
                moved[piece.pool][name] = _with_moved(seen, outputs.get(name), wanted[name], axis, scale, samples)
        session.close()
    return [*moved]


def _with_moved(
    seen: Movement, got: np.ndarray[Any, Any] | None, wanted: np.ndarray[Any, Any], axis: int | None,
    scale: float, samples: list[int],
) -> Movement:  # fmt: skip
    try:
        errors = None if got is None else row_errors(got, wanted, axis, scale)
    except ValueError:
        errors = None
    if errors is None or errors.nonfinite.any():
        return Movement(MOST_MOVED, tuple(sorted({*seen.samples, *samples})))
    if wanted.dtype.name in EXACT_DTYPES:
        tipped = [samples[i] for i in np.flatnonzero(errors.error > SAME_SHARE).tolist() if i < len(samples)]
        return replace(seen, samples=tuple(sorted({*seen.samples, *tipped})))
    return replace(seen, error=max(seen.error, float(errors.error.max(initial=0.0))))


def _lost(plan: ShapesPlan, lowered_folder: Path, reference: Path) -> list[Loss]:
    """Return, per output and pool of synthetic rows, the row on which the lowered model is furthest from fp32."""
    own, fp32 = StoredOutputs(plan, lowered_folder), StoredOutputs(plan, reference)
    worst: dict[tuple[str, int], Loss] = {}
    for piece in plan.pieces():
        pool = plan.pools[piece.pool]
        if pool.data != "seeded":
            continue
        lowered, wanted = own.piece(piece.key), fp32.piece(piece.key)
        for name, axis in plan.axes.items():
            loss = _worst(lowered, wanted, Loss(name, dict(pool.lengths), 0.0, 0.0, 0), axis, plan.scale.get(name, 0.0))
            before = worst.get((name, piece.pool))
            if loss and (before is None or loss.error > before.error):
                worst[name, piece.pool] = loss
    own.close()
    fp32.close()
    return list(worst.values())


def _worst(
    lowered: Mapping[str, Any], wanted: Mapping[str, Any], at: Loss, axis: int | None, scale: float
) -> Loss | None:
    """Return the loss of the worst row of the output that `at` names; None without rows."""
    try:
        errors: RowErrors = row_errors(lowered[at.output], wanted[at.output], axis, scale)
    except ValueError:
        return replace(at, error=MOST_MOVED)
    row = errors.worst()
    if row is None:
        return None
    return replace(
        at, error=float(errors.error[row]), cosine=float(errors.cosine.min()), nonfinite=int(errors.nonfinite[row])
    )
