"""Folded ONNX (+ ranges) → ONNX in the asked precision."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from engineworks.errors import LoweringError
from engineworks.model.calibration import Ranges
from engineworks.model.lower.half import lower_half
from engineworks.model.lower.quantize import quantize
from engineworks.model.onnx_files import MODEL_FILE, load_model, save_model
from engineworks.samples import fixed_batch, samples_from_json
from engineworks.steps import StepJob
from engineworks.steps.calibrate import RANGES_FILE

REPORT_FILE = "lowering.json"

PROOF_BATCH = 8
"""Samples per run when a half-precision model is proved."""


def run(job: StepJob) -> None:
    _LOWERINGS[job.params["precision"]](job)
    _check(job)


def _fp32(job: StepJob) -> None:
    save_model(load_model(job.inputs["fold"] / MODEL_FILE), job.out / MODEL_FILE)
    job.write_json(REPORT_FILE, {"precision": "fp32"})


def _half(job: StepJob) -> None:
    samples = samples_from_json(job.path("samples"), job.params["samples"])
    size = fixed_batch(samples.specs) or PROOF_BATCH
    dtype = "float16" if job.params["precision"] == "fp16" else "bfloat16"
    model, report = lower_half(load_model(job.inputs["fold"] / MODEL_FILE), dtype, samples.batches([size]))  # type: ignore[arg-type]
    save_model(model, job.out / MODEL_FILE)
    job.write_json(REPORT_FILE, {"precision": job.params["precision"], **report.to_json()})


def _int8(job: StepJob) -> None:
    stored = json.loads((job.inputs["ranges"] / RANGES_FILE).read_text(encoding="utf-8"))
    model = load_model(job.inputs["fold"] / MODEL_FILE)
    quantized = quantize(model, Ranges.from_json(stored["ranges"]), keep=job.params["keep"])
    if not quantized.quantized_nodes:
        kept = "; ".join(f"{k.name}: {k.reason}" for k in quantized.kept_nodes[:3])
        raise LoweringError(f"{job.id}: no node can compute in int8 ({kept})", hint="remove int8 from precisions")
    save_model(quantized.model, job.out / MODEL_FILE)
    kept_nodes = {k.name: k.reason for k in quantized.kept_nodes}
    job.say(f"{len(quantized.quantized_nodes)} nodes in int8, {len(kept_nodes)} kept in fp32")
    job.write_json(REPORT_FILE, {"precision": "int8", "int8_nodes": quantized.quantized_nodes, "kept": kept_nodes})


_LOWERINGS: Mapping[str, Callable[[StepJob], None]] = {"fp32": _fp32, "fp16": _half, "bf16": _half, "int8": _int8}


def _check(job: StepJob) -> None:
    """Nobody downstream gets a model that does not follow the standard."""
    import onnx

    try:
        onnx.checker.check_model(str(job.out / MODEL_FILE))
    except onnx.checker.ValidationError as error:
        raise LoweringError(f"{job.id}: the lowered model is not valid: {str(error).splitlines()[0]}") from None
