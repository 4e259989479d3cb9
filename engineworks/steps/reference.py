"""Folded fp32 ONNX + evaluation data → reference outputs, once per recipe, by ONNX Runtime.

Also writes the model's outputs at the shapes of every profile: see `shapes_reference`.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from engineworks.engines.backends import onnxruntime as backend
from engineworks.host.lazy import Array
from engineworks.model.calibrate.inputs import InputWatch
from engineworks.model.onnx_files import MODEL_FILE
from engineworks.recipe.batch import batch_axes, output_axes
from engineworks.recipe.npz import NpzReader
from engineworks.recipe.samples import samples_from_json
from engineworks.steps.job import StepJob
from engineworks.steps.served_rows import ServedRows
from engineworks.steps.shapes_reference import SHAPES_FILE, SHAPES_OUTPUTS_FILE, ShapesReference, write_arrays

OUTPUTS_FILE = "outputs.npz"
INPUTS_FILE = "inputs.json"
"""Statistics of the evaluation data. The calibration step stores those of its own data, so both can be compared though
neither key depends on the other's file."""


def run(job: StepJob) -> None:
    """Write the outputs run by run under `<run>/<output>`: only one run is held in memory."""
    samples = samples_from_json(job.paths("evaluation"), job.params["samples"])
    session = backend.load(job.inputs["fold"] / MODEL_FILE, {"spinning": False})  # other steps run at the same time
    watch = InputWatch(batch_axes(samples.specs), samples.count)
    size: dict[str, tuple[float, int]] = {}
    runs = 0
    with zipfile.ZipFile(job.out / OUTPUTS_FILE, "w") as archive:
        for feeds in watch.watch(samples.batches(job.params["batches"])):
            outputs = session.run(feeds)
            write_arrays(archive, str(runs), outputs)
            size = {name: _add_squares(size.get(name, (0.0, 0)), value) for name, value in outputs.items()}
            runs += 1
    job.write_json(INPUTS_FILE, {name: statistic.to_json() for name, statistic in watch.statistics().items()})
    job.write_json("reference.json", {"samples": samples.count, "runs": runs})
    if "shapes" in job.params:
        plan = job.params["shapes"]
        scale = {name: math.sqrt(squares / max(1, count)) for name, (squares, count) in size.items()}
        axes = output_axes(samples.specs, session.outputs)
        session.close()  # one copy of the weights at a time
        model = job.inputs["fold"] / MODEL_FILE
        shapes = ShapesReference(model, ServedRows(samples, plan["ranges"]), plan, axes)
        job.write_json(SHAPES_FILE, shapes.write(job.out / SHAPES_OUTPUTS_FILE, scale, job.echo))


def _add_squares(before: tuple[float, int], value: Array) -> tuple[float, int]:
    """Add to the sum of squares and count of the finite values so far. value: of any shape and dtype."""
    numbers = value.astype(np.float64)
    good = numbers[np.isfinite(numbers)]
    return before[0] + float(np.square(good).sum()), before[1] + good.size


def read_reference(folder: Path) -> Iterator[dict[str, Array]]:
    """Yield the reference outputs by name, run by run: arrays [batch of the run, …] with the model's dtypes."""
    runs = json.loads((folder / "reference.json").read_text(encoding="utf-8"))["runs"]
    with NpzReader(folder / OUTPUTS_FILE) as archive:
        names: dict[int, list[str]] = {}
        for member in archive.names:
            index, _, name = member.partition("/")
            names.setdefault(int(index), []).append(name)
        for run in range(runs):
            yield {name: archive.read(f"{run}/{name}") for name in names[run]}
