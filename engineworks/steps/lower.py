"""Folded ONNX (+ ranges) → ONNX in the requested precision."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from engineworks.engines.capabilities import GEMMS
from engineworks.errors import LoweringError, PrecisionError
from engineworks.host.lazy import onnx
from engineworks.model.lower.as_is import check_as_is
from engineworks.model.lower.double import double_to_float
from engineworks.model.lower.half.graph import FORMATS, infer_types, split_model
from engineworks.model.lower.half.half import lower_half
from engineworks.model.lower.half.unquantized import halve_unquantized
from engineworks.model.lower.naming_notes import fp32_in_vain, kept_in_vain, not_quantized
from engineworks.model.lower.quantizable import KEPT_BY, matches
from engineworks.model.lower.quantize import Quantized, name_nodes, quantize, raise_opset_for
from engineworks.model.lower.report import HalfType, Lowering
from engineworks.model.onnx_files import MODEL_FILE, load_model, save_model, weight_bytes
from engineworks.recipe.batch import fixed_batch
from engineworks.recipe.recipe import AS_IS
from engineworks.recipe.samples import samples_from_json
from engineworks.steps.calibrate import read_ranges
from engineworks.steps.job import StepJob

_PRODUCTS = frozenset({*GEMMS, "Conv", "ConvTranspose"})
_SHOWN_NODES = 3

PROOF_BATCH, LEAST_PROOF_BATCH = 8, 2
PROOF_BATCH_UP_TO_BYTES = 128 << 20
"""Samples per run when a half-precision model is verified. Models with more weights than this take proportionally
fewer: verification runs the model at least three times, node by node."""


SamplesOf = Callable[[StepJob, "onnx.ModelProto"], Iterator[dict[str, NDArray[Any]]]]

_DTYPES: Mapping[str, HalfType] = {"fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class WeightChoices:
    """How weights are quantized. kept: nodes that are not, by name. blocks: weights that share an int4 scale, the first
    number that divides a channel; None for the format's own."""

    kept: tuple[str, ...] = ()
    blocks: tuple[int, ...] | None = None


def run(job: StepJob, samples: SamplesOf | None = None, choices: WeightChoices = WeightChoices()) -> None:
    """Lower. samples: makes the feeds on which half precision is verified; default: the recipe's own samples."""
    if job.params["precision"] == AS_IS:
        _as_is(job)
    else:
        _check_source(job)
        if job.params.get("quantized"):
            _quantized(job, samples or _samples, choices)
        else:
            _float(job, samples or _samples)
    try:  # before later steps read it
        onnx.checker.check_model(str(job.out / MODEL_FILE))
    except onnx.checker.ValidationError as error:
        raise LoweringError(f"{job.id}: the lowered model is not valid: {str(error).splitlines()[0]}") from None


def _as_is(job: StepJob) -> None:
    model = load_model(job.inputs["fold"] / MODEL_FILE)
    checked = check_as_is(model, job.id)
    save_model(model, job.out / MODEL_FILE)
    job.echo(f"as it is: {checked.quantize_nodes} QuantizeLinear, {checked.dequantize_nodes} DequantizeLinear")
    job.write(Lowering(AS_IS, as_is=checked))


def _float(job: StepJob, samples: SamplesOf) -> None:
    precision = job.params["precision"]
    unquantized = job.params.get("unquantized", precision)
    model = load_model(job.inputs["fold"] / MODEL_FILE)
    if unquantized == "fp32":
        save_model(model, job.out / MODEL_FILE)
        job.write(Lowering(precision))
        return
    dtype = _DTYPES[unquantized]
    single, double = double_to_float(name_nodes(model))
    fp32 = _still_there(job.params.get("fp32", ()), model, single)
    lowered, report = lower_half(single, dtype, samples(job, model), keep=fp32, source=model)
    kept = {**double, **report.kept}
    if not report.converted and not _computes_in(lowered, dtype):
        raise _nothing_lowered(job, kept)
    save_model(lowered, job.out / MODEL_FILE)
    notes = tuple(fp32_in_vain(model.graph.node, job.params.get("fp32", ()), report.kept))
    job.write(Lowering(precision, unquantized, kept=kept, half=report, notes=notes))


def _computes_in(model: onnx.ModelProto, dtype: HalfType) -> bool:
    """Return whether a node of the main graph, other than a cast, makes a tensor of this type."""
    types = infer_types(*split_model(model))
    wanted = FORMATS[dtype].elem_type
    return any(types.get(o) == wanted for n in model.graph.node if n.op_type != "Cast" for o in n.output)


def _samples(job: StepJob, model: onnx.ModelProto) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield batches of inputs by name, with the shapes and dtypes of the model's inputs."""
    samples = samples_from_json(job.paths("samples"), job.params["samples"])
    return samples.batches([fixed_batch(samples.specs) or proof_batch(weight_bytes(model))])


def proof_batch(weights: int) -> int:
    """Return the samples per run for a model with this many bytes of weights."""
    return max(LEAST_PROOF_BATCH, PROOF_BATCH * PROOF_BATCH_UP_TO_BYTES // max(weights, PROOF_BATCH_UP_TO_BYTES))


def _quantized(job: StepJob, samples: SamplesOf, choices: WeightChoices) -> None:
    globs, unquantized = job.params["quantized"], job.params["unquantized"]
    ranges = read_ranges(job) if "ranges" in job.inputs else None
    source = name_nodes(load_model(job.inputs["fold"] / MODEL_FILE))
    single, double = double_to_float(source)
    model = name_nodes(raise_opset_for(single, globs))
    fp32, keep = (_still_there(job.params.get(name, ()), source, model) for name in ("fp32", "keep"))
    quantized = quantize(
        model, ranges, globs=globs, keep=keep, fp32=[*fp32, *choices.kept], blocks=choices.blocks
    )  # fmt: skip
    kept = {**{k.name: k.reason for k in quantized.kept_nodes}, **double}
    for name in globs:
        if name not in quantized.formats.values():
            named = {k.name: k.reason for k in quantized.kept_nodes if k.named == name}
            raise _nothing_lowered(job, named or kept, name)
    job.echo(f"{len(quantized.formats)} nodes quantized, {len(kept)} others of their kind kept in {unquantized}")
    lowered, half = quantized.model, None
    if unquantized != "fp32":
        lowered, half = halve_unquantized(
            lowered, model, _DTYPES[unquantized], samples(job, model), keep=fp32, source=source
        )
    save_model(lowered, job.out / MODEL_FILE)
    notes = _notes(job, source, quantized, half.kept if half else ())
    job.write(Lowering(job.params["precision"], unquantized, quantized.formats, kept, half, notes=notes))


def _notes(job: StepJob, source: onnx.ModelProto, quantized: Quantized, halves: Collection[str]) -> tuple[str, ...]:
    """Return notes on what the recipe names to no effect. halves: nodes that stay fp32 within fp16 or bf16."""
    nodes = source.graph.node
    left_out = {k.name for k in quantized.kept_nodes if k.reason.startswith(KEPT_BY)}
    fp32, keep = job.params.get("fp32", ()), job.params.get("keep", ())
    notes = [*not_quantized(nodes, job.params["quantized"], quantized.kept_nodes), *kept_in_vain(nodes, keep, left_out)]
    if job.params["unquantized"] == "fp32":
        return tuple(notes)
    return (*notes, *fp32_in_vain(nodes, fp32, {*left_out, *halves}))


def _still_there(patterns: Sequence[str], source: onnx.ModelProto, made: onnx.ModelProto) -> list[str]:
    """Drop the patterns whose nodes, casts, the conversion from float64 to float32 removed."""
    gone = {n.name for n in source.graph.node} - {n.name for n in made.graph.node}
    missing = [n for n in source.graph.node if n.name in gone]
    rest = made.graph.node
    return [p for p in patterns if any(matches(n, p) for n in rest) or not any(matches(n, p) for n in missing)]


def _nothing_lowered(job: StepJob, kept: Mapping[str, str], format_name: str = "") -> PrecisionError:
    """Return the error for a precision in which nothing of the engine computes."""
    precision = format_name or job.params["precision"]
    shown = "; ".join(f"{name}: {reason}" for name, reason in list(kept.items())[:_SHOWN_NODES])
    missing = "convolution or matrix product" if format_name else "operator on floating-point numbers"
    why = shown or f"no {missing} stands outside of branches and loops"
    return PrecisionError(
        f"{job.id}: no node can compute in {precision} ({why})",
        hint=f"remove {job.params['precision']} from precisions",
    )


def _check_source(job: StepJob) -> None:
    """Raise `PrecisionError` for a model that already computes in a half precision other than the requested one."""
    for dtype, products in _products(job).items():
        same = {"float16": "fp16", "bfloat16": "bf16"}[dtype]
        if products and same != job.params["precision"]:
            raise PrecisionError(
                f"{job.id}: the model itself computes in {dtype} ({', '.join(products[:_SHOWN_NODES])}), "
                f"{job.params['precision']} can only be made of a float32 model",
                hint=f"export the model in float32, or ask for it as it is: precisions: [{same}]",
            )


def _products(job: StepJob) -> dict[str, list[str]]:
    """Return names of the folded model's convolutions and matrix products by half type, without branches."""
    shell, weights = split_model(load_model(job.inputs["fold"] / MODEL_FILE, weights=False))
    types = infer_types(shell, weights)
    nodes = [n for n in shell.graph.node if n.op_type in _PRODUCTS]
    return {f.name: [n.name for n in nodes if types.get(n.output[0]) == f.elem_type] for f in FORMATS.values()}
