"""The stored engine + evaluation data vs the reference → accuracy per output, and the task metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engineworks.errors import ModelError, RunError
from engineworks.measure.accuracy import Array, Metric, OutputComparison, top1
from engineworks.model.source_code import load_function, user_failure
from engineworks.samples import SampleFile, batch_axes, batch_dim, samples_from_json
from engineworks.steps import StepJob
from engineworks.steps.engine_session import load_engine, serving_from_json
from engineworks.steps.reference import read_reference
from engineworks.tensors import TensorSpec

ACCURACY_FILE = "accuracy.json"


def run(job: StepJob) -> None:
    samples = samples_from_json(job.path("evaluation"), {**job.params["samples"], "labels": job.params["labels"]})
    serving = serving_from_json(job.params["serving"])
    session = load_engine(job.inputs["build"], job.params["target"], serving=serving)
    axes = output_axes(samples.specs, session.outputs)
    comparisons = {spec.name: OutputComparison(axes[spec.name]) for spec in session.outputs}
    task = _Task(job, samples, axes)
    try:
        feeds = samples.batches(job.params["batches"])
        for given, wanted in zip(feeds, read_reference(job.inputs["reference"]), strict=True):
            got = session.run(given)
            _compare(comparisons, got, wanted)
            task.add(given, got, wanted)
    finally:
        session.close()
    report = {
        "outputs": {name: c.result().to_json() for name, c in comparisons.items()},
        "metric": task.result(),
        "samples": samples.count,
        "batches": job.params["batches"],
    }
    job.write_json(ACCURACY_FILE, report)


def output_axes(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> dict[str, int | None]:
    """Where each output has the batch dimension: by its name, else axis 0 if the model's batch is there."""
    dim = batch_dim(inputs)
    axes = batch_axes(inputs)
    if all(axis is None for axis in axes.values()):
        return {o.name: None for o in outputs}
    first = 0 if any(a == 0 for a in axes.values()) else None
    return {o.name: o.shape.index(dim) if dim in o.shape else (first if o.shape else None) for o in outputs}


def _compare(
    comparisons: Mapping[str, OutputComparison], got: Mapping[str, Array], wanted: Mapping[str, Array]
) -> None:
    for name, comparison in comparisons.items():
        try:
            comparison.add(got[name], wanted[name])
        except (ValueError, KeyError) as error:
            raise RunError(f"output '{name}' can not be compared with the reference: {error}") from None


class _Task:
    """The task metric of engine and reference on the same samples: on labels, or as agreement where there are none."""

    def __init__(self, job: StepJob, samples: SampleFile, axes: Mapping[str, int | None]) -> None:
        self._job, self._axes, self._samples = job, axes, samples
        self._name: str | None = job.params["metric"]
        self._rows: dict[str, list[dict[str, Array]]] = {"inputs": [], "engine": [], "reference": []}

    def add(self, inputs: Mapping[str, Array], engine: Mapping[str, Array], reference: Mapping[str, Array]) -> None:
        if self._name is None:
            return
        if self._name == "top1":
            output = self._job.params["output"] or next(iter(reference))
            if output not in engine:
                raise RunError(f"accuracy.output: the engine has no output '{output}'")
            engine, reference, inputs = {output: engine[output]}, {output: reference[output]}, {}
        in_axes = batch_axes(self._samples.specs)
        self._rows["inputs"].append({n: _rows_first(a, in_axes[n]) for n, a in inputs.items()})
        self._rows["engine"].append({n: _rows_first(a, self._axes[n]) for n, a in engine.items()})
        self._rows["reference"].append({n: _rows_first(a, self._axes[n]) for n, a in reference.items()})

    def result(self) -> dict[str, Any] | None:
        if self._name is None:
            return None
        joined = {part: _join(rows) for part, rows in self._rows.items()}
        labels = self._samples.read_labels()
        if self._name == "top1":
            return self._top1(joined["engine"], joined["reference"], labels)
        root = self._job.path("folder")
        engine = _evaluate(self._name, root, joined["engine"], labels, joined["inputs"])
        reference = _evaluate(self._name, root, joined["reference"], labels, joined["inputs"])
        return self._figures(self._name, "labels", engine, reference)

    def _top1(
        self, engine: Mapping[str, Array], reference: Mapping[str, Array], labels: Array | None
    ) -> dict[str, Any]:
        (e,), (r,) = engine.values(), reference.values()
        if labels is None:
            agreed = r.astype(np.float64).argmax(axis=-1)
            return self._figures("top1", "agreement", top1(e, agreed), top1(r, agreed))
        if labels.shape != r.shape[:-1]:
            raise ModelError(f"top1: labels of shape {list(labels.shape)} do not fit outputs of shape {list(r.shape)}")
        return self._figures("top1", "labels", top1(e, labels), top1(r, labels))

    def _figures(self, name: str, kind: str, engine: float, reference: float) -> dict[str, Any]:
        ratio = engine / reference if reference else math.nan
        return {
            "name": name, "kind": kind, "samples": self._samples.count,
            "engine": _json_number(engine), "reference": _json_number(reference), "ratio": _json_number(ratio),
        }  # fmt: skip


def _evaluate(
    reference: str, root: Path, outputs: Mapping[str, Array], labels: Array | None, inputs: Mapping[str, Array]
) -> float:
    """Call the user's metric. Raises `ModelError` if it is not there or gives no number, `ExportError` if it raises."""
    metric: Metric = load_function(reference, root, role="metric")
    try:
        value = metric(outputs, labels, inputs)
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything
        raise user_failure(error, root, f"the metric '{reference}'") from None
    if not isinstance(value, int | float | np.floating | np.integer):
        raise ModelError(f"accuracy.metric: {reference} returned {type(value).__name__}, not a number")
    return float(value)


def _rows_first(array: Array, axis: int | None) -> Array:
    return array[np.newaxis] if axis is None else np.moveaxis(array, axis, 0)


def _join(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]} if parts else {}


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None
