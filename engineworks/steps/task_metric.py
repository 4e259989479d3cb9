"""The task metric of engine and reference on the same samples: on labels, or as agreement without them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from engineworks.errors import ModelError, RunError
from engineworks.host.lazy import Array
from engineworks.measure.accuracy_report import DeadClass, MetricKind, MetricValues
from engineworks.measure.slices import RESAMPLES, Score, Slice, sets_of_rows, slice_values
from engineworks.measure.statistics import finite
from engineworks.measure.task_metrics import TaskMetric, dead_classes, ratio_to_reference, task_metric
from engineworks.recipe.batch import batch_axes
from engineworks.recipe.metric import CLASSIFIES, is_lower_better
from engineworks.recipe.samples import NO_LABEL, SampleFile, stacked
from engineworks.steps.job import StepJob
from engineworks.steps.user_metric import evaluate_in_sandbox, names_in_sandbox

Rows = Mapping[str, Array]

DRAWS_OF_USERS = 20
"""Draws of a slice's rows for a metric of the user's, which may be slow."""

UNNAMED = "(unnamed)"
"""The slice of samples whose name is empty or missing."""

MOST_SLICES = 200
"""Maximum number of slices that are compared: more are no slices but ids."""

SPAN_OUTPUTS = ("start_logits", "end_logits")
"""Output names of question answering in transformers."""


class TaskComparison:
    """Takes the runs in order, then gives both metrics. axes: where outputs have the batch dimension."""

    def __init__(self, job: StepJob, samples: SampleFile, axes: Mapping[str, int | None]) -> None:
        self._job, self._samples, self._axes = job, samples, axes
        self._settings: Mapping[str, Any] | None = job.params["metric"]
        self._parts = samples.label_parts() if self._settings else None
        self._labels = None if self._parts is None else stacked(self._parts, NO_LABEL)
        self._rows: dict[str, list[Rows]] = {"inputs": [], "engine": [], "reference": []}
        self._done = 0
        self._misfit = False
        name = self._settings["name"] if self._settings else None
        self._metric: TaskMetric | None = None
        if self._settings and name not in ("python", "cosine"):
            self._metric = task_metric(self._settings)

    def add(self, inputs: Rows, engine: Rows, reference: Rows) -> None:
        if self._settings is None:
            return
        if self._settings["name"] == "python" or self._samples.slice_function:
            in_axes = batch_axes(self._samples.specs)
            self._rows["inputs"].append({n: _rows_first(a, in_axes[n]) for n, a in inputs.items()})
        if self._settings["name"] == "python":
            self._rows["engine"].append({n: _rows_first(a, self._axes[n]) for n, a in engine.items()})
            self._rows["reference"].append({n: _rows_first(a, self._axes[n]) for n, a in reference.items()})
            return
        got, wanted = (self._read(outputs) for outputs in (engine, reference))
        if self._metric is None:
            self._rows["engine"].append({"cosine": row_cosines(got, wanted)})
            self._rows["reference"].append({"cosine": row_cosines(wanted, wanted)})
            return
        if got.shape != wanted.shape:  # e.g. another number of detections: a verdict of its own, and no metric
            self._misfit, got = True, wanted
        labels = self._labels_of(self._done, wanted)
        self._done += len(wanted)
        self._rows["engine"].append({"": self._metric.reduce(got, labels)})
        self._rows["reference"].append({"": self._metric.reduce(wanted, labels)})

    def result(self) -> MetricValues | None:
        """Return both metrics and their ratio; None where the recipe names no metric.

        Raises `ModelError` where outputs or labels do not fit the metric.
        """
        if self._settings is None:
            return None
        joined = {part: _join(rows) for part, rows in self._rows.items()}
        if self._settings["name"] == "python":
            name, names = self._settings["python"], self._slice_names(len(next(iter(joined["engine"].values()))))
            sets = [] if names is None else sets_of_rows(names, DRAWS_OF_USERS)
            (engine, reference, again), scores = evaluate_in_sandbox(
                name, self._job.path("folder"), joined["engine"], joined["reference"], joined["inputs"], self._labels,
                echo=self._job.echo, time_limit_s=self._job.seconds_left(), sets=sets,
            )  # fmt: skip
            values = self._values(name, "labels", engine, reference)
            wavers = not math.isclose(engine, again, rel_tol=1e-9, abs_tol=1e-12)
            if wavers and math.isfinite(engine):
                values = replace(values, repeated=again if math.isfinite(again) else "not a number")
            known = {rows.tobytes(): pair for rows, pair in zip(sets, scores, strict=True)}
            return replace(values, slices=self._slices(names, lambda rows: known[rows.tobytes()], DRAWS_OF_USERS))
        if self._metric is None:
            cosines = [joined[part]["cosine"] for part in ("engine", "reference")]
            values = self._values("mean cosine", "agreement", *(float(c.mean()) for c in cosines))
            names = self._slice_names(len(cosines[0]))
            slices = self._slices(names, lambda rows: _pair(float(c[rows].mean()) for c in cosines))
            return replace(values, slices=slices)
        metric, labels, wanted = self._metric, self._labels, joined["reference"][""]
        kind: MetricKind = "labels"
        if labels is None:
            labels, kind = (wanted if self._settings["name"] == "span" else wanted[..., -1]), "agreement"
        elif self._per_token:
            labels = labels[:, : wanted.shape[1]]
        reduced = [joined[part][""] for part in ("engine", "reference")]
        engine, reference = (metric.score(rows, labels) for rows in reduced)
        engine = math.nan if self._misfit else engine
        values = self._values(metric.name, kind, engine, reference)
        if self._settings["name"] in CLASSIFIES:
            dead = (DeadClass(*found) for found in dead_classes(reduced[0], reduced[1], labels))
            values = replace(values, dead_classes=tuple(dead))
        if self._misfit:
            return values
        names = self._slice_names(len(wanted))
        slices = self._slices(names, lambda rows: _pair(metric.score(part[rows], labels[rows]) for part in reduced))
        return replace(values, slices=slices)

    def _slice_names(self, count: int) -> Array | None:
        """Return the slice of each row; None where the recipe names none.

        Raises `ModelError` where the names do not fit the rows, or name too many slices.
        """
        names = self._samples.slice_names()
        if self._samples.slice_function:
            names = names_in_sandbox(
                self._samples.slice_function, self._job.path("folder"), _join(self._rows["inputs"]), self._labels,
                echo=self._job.echo, time_limit_s=self._job.seconds_left(),
            )  # fmt: skip
        if names is None:
            return None
        names = np.char.strip(names)
        names = np.where(names == "", UNNAMED, names)
        if len(names) != count:
            raise ModelError(f"data.evaluation.slices: {len(names)} names of slices for {count} rows of the metric")
        if (many := len(np.unique(names))) > MOST_SLICES:
            raise ModelError(
                f"data.evaluation.slices: {many} different names among {count} samples, limit {MOST_SLICES}",
                hint="put rare names together, or cut numbers into ranges",
            )
        return names

    def _slices(self, names: Array | None, score: Score, draws: int = RESAMPLES) -> tuple[Slice, ...]:
        """Return the metric on each slice; none where the recipe names none."""
        if names is None or self._settings is None:
            return ()
        return tuple(slice_values(names, score, lower_is_better=is_lower_better(self._settings), draws=draws))

    def _read(self, outputs: Rows) -> Array:
        """Return what the metric reads, rows first: one output or, for spans, starts next to ends."""
        assert self._settings is not None
        spans = self._settings["name"] == "span"
        names = SPAN_OUTPUTS if spans else (self._job.params["output"] or next(iter(outputs)),)
        for name in names:
            if name not in outputs:
                raise RunError(f"accuracy.{'metric' if spans else 'output'}: the engine has no output '{name}'")
        rows = [_rows_first(outputs[name], self._axes[name]) for name in names]
        return np.stack(rows, axis=-1) if spans else rows[0]

    def _labels_of(self, start: int, rows: Array) -> Array | None:
        """Return the labels [rows] of these rows, which are of one file; labels of tokens [rows, length], as long as
        the rows are in this batch."""
        if self._parts is None:
            return None
        for part in self._parts:
            if start < len(part):
                break
            start -= len(part)
        labels = part[start : start + len(rows)]
        return labels[:, : rows.shape[1]] if self._per_token else labels

    @property
    def _per_token(self) -> bool:
        """Whether there is a label for each token of rows that are padded by batch."""
        spans = self._settings is not None and self._settings["name"] == "span"
        return self._samples.ragged is not None and self._labels is not None and self._labels.ndim == 2 and not spans

    def _values(self, name: str, kind: MetricKind, engine: float, reference: float) -> MetricValues:
        assert self._settings is not None
        lower = is_lower_better(self._settings)
        ratio = ratio_to_reference(engine, reference, lower_is_better=lower)
        return MetricValues(name, kind, self._samples.count, lower, finite(engine), finite(reference), finite(ratio))


def _pair(values: Iterable[float]) -> tuple[float, float]:
    engine, reference = values
    return engine, reference


def row_cosines(engine: Array, reference: Array) -> Array:
    """Return the cosine of every row [rows, …] with the reference's, as float64[rows]: 1 where both are all zero or
    empty, 0 where one is.

    Values that are equally infinite or NaN on both sides do not count. Where the shapes differ, every row of the
    reference has cosine 0.
    """
    if engine.shape != reference.shape:
        return np.zeros(len(reference))
    e, r = (np.asarray(a, np.float64).reshape(len(a), math.prod(a.shape[1:])) for a in (engine, reference))
    equal = ~np.isfinite(e) & ((e == r) | (np.isnan(e) & np.isnan(r)))
    e, r = np.where(equal, 0.0, e), np.where(equal, 0.0, r)
    norms = np.linalg.norm(e, axis=1) * np.linalg.norm(r, axis=1)
    both_zero = ~e.any(axis=1) & ~r.any(axis=1)
    with np.errstate(invalid="ignore"):  # values that are infinite on one side make their row NaN
        return np.where(
            norms > 0, (e * r).sum(axis=1) / np.where(norms > 0, norms, 1), np.where(both_zero, 1.0, 0 * norms)
        )


def _rows_first(array: Array, axis: int | None) -> Array:
    """Return the array as [rows, …], a view; axis: its batch axis, None if it is one row."""
    return array[np.newaxis] if axis is None else np.moveaxis(array, axis, 0)


def _join(parts: Sequence[Rows]) -> dict[str, Array]:
    """Join runs into one. Batches of different lengths are filled up: outputs of a metric (named '') with what it
    leaves out (-100, NaN), all others (values, masks) with 0."""
    if not parts:
        return {}
    joined = {}
    for name in parts[0]:
        arrays = [p[name] for p in parts]
        fill = 0 if name else NO_LABEL if arrays[0].dtype.kind in "iu" else math.nan
        joined[name] = stacked(arrays, fill)
    return joined
