"""Folded fp32 ONNX + evaluation data → reference outputs, once per recipe, by ONNX Runtime."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engineworks.backends import onnxruntime as backend
from engineworks.model.calibration.inputs import InputWatch
from engineworks.model.onnx_files import MODEL_FILE
from engineworks.samples import batch_axes, samples_from_json
from engineworks.steps import StepJob

OUTPUTS_FILE = "outputs.npz"
INPUTS_FILE = "inputs.json"
"""Statistics of the evaluation data, beside those of the calibration data in its own artifact: neither step's key
depends on the other's file, and yet the two can be compared."""


def run(job: StepJob) -> None:
    """Writes the outputs run by run under `<run>/<output>`: one run is held in memory."""
    samples = samples_from_json(job.path("evaluation"), job.params["samples"])
    session = backend.load(job.inputs["fold"] / MODEL_FILE, {})
    watch = InputWatch(batch_axes(samples.specs), samples.count)
    runs = 0
    with zipfile.ZipFile(job.out / OUTPUTS_FILE, "w") as archive:
        for feeds in watch.watch(samples.batches(job.params["batches"])):
            for name, value in session.run(feeds).items():
                with archive.open(f"{runs}/{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asarray(value, order="C"), allow_pickle=False)
            runs += 1
    session.close()
    job.write_json(INPUTS_FILE, {name: seen.to_json() for name, seen in watch.statistics().items()})
    job.write_json("reference.json", {"samples": samples.count, "runs": runs})


def read_reference(folder: Path) -> Iterator[dict[str, NDArray[np.generic]]]:
    """The reference outputs, run by run, in the order in which they were written."""
    runs = json.loads((folder / "reference.json").read_text(encoding="utf-8"))["runs"]
    with np.load(folder / OUTPUTS_FILE, allow_pickle=False) as archive:
        names: dict[int, list[str]] = {}
        for member in archive.files:
            run, _, name = member.partition("/")
            names.setdefault(int(run), []).append(name)
        for run in range(runs):
            yield {name: archive[f"{run}/{name}"] for name in names[run]}
