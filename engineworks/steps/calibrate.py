"""Folded ONNX + calibration data → activation ranges, with evidence of their quality.

Covers every tensor that may become int8, so excluding nodes later needs no new calibration.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from engineworks.errors import CalibrationError, SamplesError
from engineworks.host.file_digests import FileDigests, digest_file
from engineworks.model.calibrate.collect import collect_ranges
from engineworks.model.calibrate.inputs import InputWatch
from engineworks.model.calibrate.ranges import Ranges
from engineworks.model.calibrate.report import CalibrationReport
from engineworks.model.calibrate.trust import check_pairing, check_samples, digest_model, summary, warnings
from engineworks.model.lower.double import double_to_float, holds_double
from engineworks.model.lower.quantize import tensors_to_calibrate
from engineworks.model.onnx_files import MODEL_FILE, load_model, save_model
from engineworks.recipe.batch import batch_axes, fixed_batch
from engineworks.recipe.samples import SampleFile, samples_from_json
from engineworks.steps.job import StepJob

RANGES_FILE = "ranges.json"


def run(job: StepJob) -> None:
    path = job.inputs["fold"] / MODEL_FILE
    samples = samples_from_json(job.paths("calibration"), job.params["samples"])
    data = {"sha256": _digest_in_use(job, samples), "samples": samples.count, "of": samples.total}
    watch = InputWatch(batch_axes(samples.specs), samples.count, refuse=f"calibration data {samples.title}")
    with TemporaryDirectory(dir=job.out) as scratch:
        ranges = _collect(job, *_in_float(path, Path(scratch)), samples, watch)
    statistics = watch.statistics()
    job.write_json(RANGES_FILE, {"model": digest_model(path), "data": data, "ranges": ranges.to_json()})
    messages = warnings(ranges, statistics, repeated=watch.repeated)
    for message in messages:
        job.echo(f"warning: {message}")
    inputs = {name: statistic.to_json() for name, statistic in statistics.items()}
    report = {**summary(ranges), "data": data, "warnings": list(messages), "inputs": inputs}
    job.write(CalibrationReport.from_json(report, f"{job.id}: {CalibrationReport.FILE}"))


def _in_float(path: Path, scratch: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the model whose tensors are quantized, for one in float64 its copy in float32; and their names."""
    model = load_model(path, weights=False)
    if holds_double(model):
        model, _ = double_to_float(load_model(path))
        path = scratch / MODEL_FILE
        save_model(model, path)
    return path, tensors_to_calibrate(model)


def _collect(job: StepJob, model: Path, tensors: tuple[str, ...], samples: SampleFile, watch: InputWatch) -> Ranges:
    """Collect ranges over all samples, after checking the samples, which only reads them."""
    settings = job.params["calibration"]
    size = fixed_batch(samples.specs) or settings["batch"]
    for _ in watch.watch(samples.batches([size])):
        pass
    check_samples(watch.statistics(), samples.title)
    return collect_ranges(
        model,
        lambda: samples.batches([size]),
        tensors,
        method=settings["method"],
        percentile=settings["percentile"],
        averaging=settings["averaging"],
        samples=samples.count,
        axes=batch_axes(samples.specs),
        progress=lambda done: job.echo(f"calibrated {done} of {samples.count} samples"),
    )


def _digest_in_use(job: StepJob, samples: SampleFile) -> str:
    """Digest the data, which must be unchanged since planning: the file's sha256, or that of all files."""
    files = {str(index): path for index, path in enumerate(samples.paths)}
    digest = FileDigests(None).digest_tree(files) if samples.more else digest_file(samples.path)
    if digest != job.unkeyed.get("sha256", digest):
        raise SamplesError(f"calibration data {samples.title} changed since the plan was made", hint="build again")
    return digest


def read_ranges(job: StepJob) -> Ranges:
    """Read a lowering's input `ranges`, checked to belong to the model and data in use.

    Raises `ModelError` or `SamplesError` where they belong to others, `CalibrationError` where they do not parse.
    """
    path = job.inputs["ranges"] / RANGES_FILE
    try:
        stored: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{path}: the calibration ranges cannot be read: {error}", hint="build again") from None
    if not isinstance(stored, dict) or not isinstance(stored.get("ranges"), dict):
        raise CalibrationError(f"{path}: these are no calibration ranges", hint="calibrate again")
    check_pairing(
        stored, model=digest_model(job.inputs["fold"] / MODEL_FILE), data=job.unkeyed.get("calibration_sha256")
    )
    return Ranges.from_json(stored["ranges"])
