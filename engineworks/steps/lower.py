"""Folded ONNX (+ ranges) → ONNX in the asked precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from engineworks.capabilities import GEMMS
from engineworks.errors import LoweringError
from engineworks.model.lower.half import lower_half
from engineworks.model.lower.half_graph import FORMATS, infer_types, split_model
from engineworks.model.lower.quantize import quantize
from engineworks.model.onnx_files import MODEL_FILE, load_model, save_model
from engineworks.samples import fixed_batch, samples_from_json
from engineworks.steps import StepJob
from engineworks.steps.calibrate import read_ranges

REPORT_FILE = "lowering.json"

_PRODUCTS = frozenset({*GEMMS, "Conv", "ConvTranspose"})
_SHOWN_NODES = 3

PROOF_BATCH = 8
"""Samples per run when a half-precision model is proved."""


def run(job: StepJob) -> None:
    _check_source(job)
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
    if not report.converted and report.kept and not _products(job)[dtype]:
        raise _nothing_lowered(job, report.kept)
    save_model(model, job.out / MODEL_FILE)
    job.write_json(REPORT_FILE, {"precision": job.params["precision"], **report.to_json()})


def _int8(job: StepJob) -> None:
    model = load_model(job.inputs["fold"] / MODEL_FILE)
    quantized = quantize(model, read_ranges(job), keep=job.params["keep"])
    if not quantized.quantized_nodes:
        raise _nothing_lowered(job, {k.name: k.reason for k in quantized.kept_nodes})
    save_model(quantized.model, job.out / MODEL_FILE)
    kept_nodes = {k.name: k.reason for k in quantized.kept_nodes}
    job.say(f"{len(quantized.quantized_nodes)} nodes in int8, {len(kept_nodes)} kept in fp32")
    job.write_json(REPORT_FILE, {"precision": "int8", "int8_nodes": quantized.quantized_nodes, "kept": kept_nodes})


_LOWERINGS: Mapping[str, Callable[[StepJob], None]] = {"fp32": _fp32, "fp16": _half, "bf16": _half, "int8": _int8}


def _nothing_lowered(job: StepJob, kept: Mapping[str, str]) -> LoweringError:
    """An engine must not be called by a precision in which nothing of it computes."""
    precision = job.params["precision"]
    shown = "; ".join(f"{name}: {reason}" for name, reason in list(kept.items())[:_SHOWN_NODES])
    why = shown or "no convolution or matrix product stands outside of branches and loops"
    return LoweringError(
        f"{job.id}: no node can compute in {precision} ({why})", hint=f"remove {precision} from precisions"
    )


def _check_source(job: StepJob) -> None:
    """Raises `LoweringError` for a model that already computes in another half precision than the asked one."""
    for dtype, products in _products(job).items():
        same = {"float16": "fp16", "bfloat16": "bf16"}[dtype]
        if products and same != job.params["precision"]:
            raise LoweringError(
                f"{job.id}: the model itself computes in {dtype} ({', '.join(products[:_SHOWN_NODES])}), "
                f"{job.params['precision']} can only be made of a float32 model",
                hint=f"export the model in float32, or ask for it as it is: precisions: [{same}]",
            )


def _products(job: StepJob) -> dict[str, list[str]]:
    """Names of the folded model's convolutions and matrix products that compute in each half type, branches aside."""
    shell, weights = split_model(load_model(job.inputs["fold"] / MODEL_FILE, weights=False))
    types = infer_types(shell, weights)
    nodes = [n for n in shell.graph.node if n.op_type in _PRODUCTS]
    return {f.name: [n.name for n in nodes if types.get(n.output[0]) == f.elem_type] for f in FORMATS.values()}


def _check(job: StepJob) -> None:
    """Nobody downstream gets a model that does not follow the standard."""
    import onnx

    try:
        onnx.checker.check_model(str(job.out / MODEL_FILE))
    except onnx.checker.ValidationError as error:
        raise LoweringError(f"{job.id}: the lowered model is not valid: {str(error).splitlines()[0]}") from None
