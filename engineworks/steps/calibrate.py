"""Folded ONNX + calibration data → activation ranges: an artifact of its own, with the data's digest and count.

Ranges are found for every tensor that may become int8: which nodes are kept out of it then costs no calibration.
"""

from __future__ import annotations

from engineworks.fingerprint import digest_file
from engineworks.model.calibration import collect_ranges
from engineworks.model.lower.quantize import tensors_to_calibrate
from engineworks.model.onnx_files import MODEL_FILE, load_model
from engineworks.samples import fixed_batch, samples_from_json
from engineworks.steps import StepJob

RANGES_FILE = "ranges.json"


def run(job: StepJob) -> None:
    model = job.inputs["fold"] / MODEL_FILE
    samples = samples_from_json(job.path("calibration"), job.params["samples"])
    settings = job.params["calibration"]
    size = fixed_batch(samples.specs) or settings["batch"]
    tensors = tensors_to_calibrate(load_model(model, weights=False))
    ranges = collect_ranges(
        model,
        lambda: samples.batches([size]),
        tensors,
        method=settings["method"],
        percentile=settings["percentile"],
        progress=lambda done: job.say(f"calibrated {done} of {samples.count} samples"),
    )
    data = {"sha256": digest_file(samples.path), "samples": samples.count, "of": samples.total}
    job.write_json(RANGES_FILE, {"data": data, "ranges": ranges.to_json()})
