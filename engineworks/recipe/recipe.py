"""A recipe as frozen values: what to build, never how. The JSON Schema that editors use is generated from here.

Each field's `description` is also its text in the schema. This module checks values one by one. `recipe.checks` checks
fields against each other, and the steps check files and models when they read them.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from engineworks.recipe.decoder_part import Decoder
from engineworks.recipe.metric import Factory, Metric
from engineworks.recipe.part import (
    DimName,
    Extent,
    Fraction,
    Length,
    Name,
    Number,
    Opset,
    Part,
    Percentile,
    Positive,
    Seconds,
)
from engineworks.recipe.performance import Performance
from engineworks.recipe.two_forms import as_list, as_name, beside, npz_schema, slices_schema

RegisteredName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
Triple = Annotated[tuple[Extent, ...], Field(min_length=3, max_length=3)]

Float = Literal["fp32", "fp16", "bf16"]
FLOATS: tuple[Float, ...] = ("fp32", "fp16", "bf16")

Format = Literal["int8", "fp8", "int8_weights", "int4_weights"]
FORMATS: tuple[Format, ...] = ("int8", "fp8", "int8_weights", "int4_weights")
"""Formats for a node's operands; those that end in `_weights` leave activations alone."""

CALIBRATED: tuple[Format, ...] = ("int8", "fp8")
"""Formats that quantize activations, and so need calibration data."""

AS_IS = "as_is"
"""The precision of a model that brings its own, which is passed on unchanged."""

W4A8 = "w4a8"
"""Weights in int4 by blocks, activations rounded to int8 as they come: decoders on the CPU."""

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8", "int8_weights", "int4_weights", "w4a8", "as_is"]
PRECISIONS: tuple[Precision, ...] = (*FLOATS, *FORMATS, "w4a8", "as_is")

AUTO = "auto"
"""In place of precisions: try those of each target, and choose."""

TRIED_BY_AUTO: tuple[Precision, ...] = (*FLOATS, *FORMATS)
"""The precisions that `auto` tries; `as_is` is no choice but a property of the model."""


def _date_as_text(value: object) -> object:
    """The date, if it is text. Pydantic takes numbers for days since 1970, so `expires: 2027` would be long past."""
    if not isinstance(value, str | date) or (isinstance(value, str) and len(value) != len("2027-01-31")):
        raise PydanticCustomError("date_text", "it should be a date, such as 2027-01-31")
    return value


def _auto_as_list(value: object) -> object:
    return [AUTO] if value == AUTO else value


Day = Annotated[date, BeforeValidator(_date_as_text)]
NonEmptyText = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Source(Part):
    """Where the model comes from: exactly one of these."""

    onnx: str | None = Field(None, description="ONNX file, relative to the recipe")
    torch: Factory | None = Field(None, description="module:factory of a torch.nn.Module, run in a child process")
    huggingface: str | None = Field(None, description="folder of a Hugging Face model, or a cached id")
    mlflow: str | None = Field(
        None, description="model in MLflow: models:/name/version, models:/name@alias or runs:/id/path"
    )
    task: str | None = Field(None, description="Hugging Face task, e.g. text-classification; default: from its config")


class Model(Part):
    source: Source = Field(description="where the model comes from")
    decoder: Decoder | None = Field(None, description="the model is a decoder that generates text")
    opset: Opset = Field(18, description="ONNX opset to export with; ONNX files keep theirs")
    files: tuple[str, ...] = Field((), description="files that a torch factory reads; a change of one rebuilds")


class Input(Part):
    dtype: Literal["float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool"] = Field(
        description="type of the values, as the model declares it"
    )
    shape: tuple[Length | DimName, ...] = Field(description="lengths, and names for dynamic dimensions")
    range: tuple[Number, Number] | None = Field(
        None, description="[least, largest] value, for shapes that the evaluation data does not have"
    )


class Samples(Part):
    """Samples of the model's inputs: exactly one of npz, text, images."""

    npz: Annotated[tuple[str, ...] | None, BeforeValidator(as_list)] = Field(
        None,
        min_length=1,
        json_schema_extra=npz_schema,
        description=".npz file of arrays by name, axis 0 counts the samples; pickled arrays are refused. Or a list of "
        "files, globs among them: each file may have another length of a named dimension",
    )
    text: str | None = Field(None, description=".jsonl, .csv or .parquet file with texts, which are tokenized")
    images: str | None = Field(None, description="folder of images, which the model's processor makes inputs of")
    samples: Length | None = Field(None, description="use this many, evenly spread over the file; default: all")
    names: dict[str, str] = Field(
        default_factory=dict, description="model input: array name, or what the tokenizer calls it, where they differ"
    )
    columns: Annotated[tuple[str, ...], BeforeValidator(as_list)] = Field(
        ("text",),
        min_length=1,
        max_length=2,
        json_schema_extra=beside({"type": "string"}),
        description="text: the column with the text, or the two columns of a pair",
    )
    tokenizer: str | None = Field(None, description="text: folder of the tokenizer; default: the model's own")
    processor: str | None = Field(
        None, description="images: folder with preprocessor_config.json; default: the model's own"
    )
    max_length: Length | None = Field(
        None, description="text: tokens at most, longer texts are cut; default: what tokenizer and profiles allow"
    )
    padding: Literal["longest", "max_length"] = Field(
        "longest", description="text: pad to the longest text of a batch, or all to max_length"
    )
    messages: str | None = Field(
        None, description="decoders: the column with a chat, a list of {role, content}, for the tokenizer's template"
    )


class Evaluation(Samples):
    labels: str | None = Field(
        None,
        description="npz: array of labels, one per sample; text: column; images: 'folder' (a subfolder per class) or a "
        ".csv file with the columns file and label",
    )
    slices: Annotated[str | None, BeforeValidator(as_name)] = Field(
        None,
        json_schema_extra=slices_schema,
        description="name of the slice of each sample; the metric is computed on each slice too; npz: an array of "
        "texts or whole numbers; text: a column; images: 'folder' (the subfolder), or a column of the labels' .csv "
        "file; or {python: module:function}, which names them from inputs and labels",
    )


class Data(Part):
    calibration: Samples | None = Field(None, description="samples that int8 and fp8 take their ranges from")
    evaluation: Evaluation = Field(description="samples on which engines are compared with the fp32 reference")


class Calibration(Part):
    method: Literal["minmax", "entropy", "percentile", "mse", "moving_average"] = Field(
        "entropy", description="how the range of an activation follows from its values"
    )
    percentile: Percentile = Field(
        99.99, description="of method percentile: so much of all values lies within the range"
    )
    averaging: Fraction | None = Field(
        None, description="moving_average: weight of a new batch, e.g. 0.01; default: the mean over all batches"
    )
    batch: Length = Field(4, description="samples per calibration step")
    keep: tuple[str, ...] = Field((), description="globs of node names left in high precision")
    unquantized: Float | None = Field(
        None, description="what computes around quantized nodes; default: fp16 on GPU targets, fp32 on the CPU"
    )


class Mixture(Part):
    """A custom precision: globs of node names, or `op:` and an operator such as `op:MatMul`."""

    default: Float | None = Field(None, description="of all nodes that nothing else names; default: as around int8")
    fp32: tuple[str, ...] = Field((), description="nodes that stay fp32 where the default is fp16 or bf16")
    int8: tuple[str, ...] = Field((), description="nodes in int8, weights and activations")
    fp8: tuple[str, ...] = Field((), description="nodes in fp8 (e4m3), weights and activations")
    int8_weights: tuple[str, ...] = Field((), description="nodes whose weights are stored in int8")
    int4_weights: tuple[str, ...] = Field((), description="nodes whose weights are stored in int4, in blocks")


class Limits(Part):
    """Limits of one precision; every one that is given is one check."""

    metric: Number | None = Field(
        None, description="smallest task metric of the engine; of error rates and perplexity the largest"
    )
    metric_ratio: Positive | None = Field(
        None, description="smallest quality relative to the fp32 reference; of error rates: the reference's / its own"
    )
    metric_delta: Positive | None = Field(None, description="largest |engine - reference| of the task metric")
    metric_between: tuple[Number, Number] | None = Field(
        None, description="[lowest, highest] task metric of the engine"
    )
    worst_slice_ratio: Fraction | None = Field(
        None, description="smallest quality relative to the fp32 reference on every slice of data.evaluation.slices"
    )
    cosine: Fraction | None = Field(None, description="smallest cosine similarity to the reference")
    synthetic_cosine: Fraction | None = Field(
        None,
        description="smallest cosine similarity to the reference of a made-up row, at shapes of the profiles that the "
        "evaluation data has no sample of; without it such a loss is a warning",
    )
    sqnr_db: Number | None = Field(None, description="smallest signal-to-quantization-noise ratio, of every output")
    max_abs: Positive | None = Field(
        None, description="largest absolute difference from the reference, of every output"
    )
    mean_abs: Positive | None = Field(None, description="largest mean absolute difference, of every output")
    greedy_agreement: Fraction | None = Field(
        None, description="decoders: smallest share of tokens generated as fp32 does, until the first that differs"
    )
    token_agreement: Fraction | None = Field(
        None, description="decoders: smallest share of positions whose most probable next token is fp32's"
    )


METRIC_LIMITS = ("metric_ratio", "metric", "metric_delta", "metric_between")
"""Limits that need a task metric."""


class Accuracy(Part):
    metric: Metric | None = Field(
        None, description="task metric on the labels; without labels: agreement with the reference"
    )
    output: str | None = Field(None, description="output that the metric reads; default: the first")
    limits: dict[Precision | Name, Limits] = Field(
        default_factory=dict, description="of each precision, custom mixtures included"
    )


class DynamicBatching(Part):
    preferred: tuple[Length, ...] = Field((), description="batch sizes that Triton should try to form")
    max_delay_us: Extent = Field(0, description="microseconds that a request may wait for others")
    measured: bool = Field(
        False, description="the step serve measures delays, sizes and instances; packages get what holds the most"
    )


class Triton(Part):
    """How Triton is to serve the engines of this recipe."""

    dynamic_batching: DynamicBatching | None = Field(None, description="let Triton join requests into batches")
    instances: Length = Field(1, description="instances of the model per GPU, or on the CPU")
    warmup: Extent = Field(
        1, description="how often Triton runs an evaluation sample at every named shape (CPU: the smallest); 0: never"
    )
    python_environment: str | None = Field(
        None, description="Python backend: the model's environment on the server, a folder or an archive by conda-pack"
    )
    runtime_cache: str | None = Field(
        None,
        description="TensorRT-RTX: a folder on the server for compiled kernels, from which the next start takes them",
    )


class Release(Part):
    """Under which name engines that passed are registered in MLflow, and how they are served."""

    model: RegisteredName | None = Field(None, description="registered model in MLflow; default: the recipe's name")
    triton: Triton = Field(Triton(), description="how Triton is to serve the engines")
    serve: Literal["required"] | None = Field(
        None, description="required: an engine passes only after a Triton server served its package"
    )


class Waiver(Part):
    """A named failure that is accepted until a day: who answers for it, and why."""

    check: NonEmptyText = Field(description="the check's name, e.g. cosine[logits], or a glob: * and ? only")
    engine: NonEmptyText = Field("*", description="glob over precision/target, e.g. int8/*")
    owner: NonEmptyText = Field(description="who answers for it")
    reason: NonEmptyText = Field(description="why it is accepted")
    expires: Day = Field(description="last day on which it holds (UTC), YYYY-MM-DD")


class TimeLimits(Part):
    """Seconds after which a step of a kind is killed; by default 7200, for builds what the target says."""

    export: Seconds | None = Field(None, description="of the export to ONNX")
    prepare: Seconds | None = Field(None, description="of turning texts or images into arrays")
    fold: Seconds | None = Field(None, description="of folding and checking the model")
    calibrate: Seconds | None = Field(None, description="of calibration")
    lower: Seconds | None = Field(None, description="of lowering to one precision")
    build: Seconds | None = Field(None, description="instead of the target's time_limit_s")
    reference: Seconds | None = Field(None, description="of the fp32 reference")
    lowered_reference: Seconds | None = Field(None, description="of the lowered model's own outputs")
    compare: Seconds | None = Field(None, description="of comparing one engine")
    measure: Seconds | None = Field(None, description="of measuring one engine")
    compare_champion: Seconds | None = Field(None, description="of measuring engine and champion side by side")
    serve: Seconds | None = Field(None, description="of serving one engine's package")
    peer: Seconds | None = Field(None, description="of measuring one peer (--compare)")


class Recipe(Part):
    """What to build, from which model and data, and the limits that an engine must meet."""

    recipe: Name = Field(description="name of the recipe: first part of every engine's id")
    description: str = Field("", description="what the model is for; shapes nothing")
    owner: str = Field("", description="who answers for it; the nightly chooses by it")
    tags: tuple[Name, ...] = Field((), description="words to choose recipes by, as the nightly does")
    model: Model = Field(description="the model, and how it is exported")
    inputs: dict[str, Input] = Field(min_length=1, description="the model's inputs by name")
    outputs: dict[str, tuple[Length | DimName, ...]] = Field(
        min_length=1, description="shapes of the model's outputs by name: lengths and names of dimensions"
    )
    shapes: dict[Name, dict[DimName, Triple]] = Field(
        default_factory=dict, description="one optimization profile each: dimension: [min, opt, max]"
    )
    batch: DimName | None = Field(
        None, description="dimension that counts samples; default: the one called batch…, else the first input's axis 0"
    )
    precisions: Annotated[tuple[Precision | Name, ...], BeforeValidator(_auto_as_list)] = Field(
        min_length=1,
        json_schema_extra=beside({"const": AUTO}),
        description="what engines compute in, one engine each, or names of mixtures; auto: try and choose per target",
    )
    mixtures: dict[Name, Mixture] = Field(default_factory=dict, description="custom precisions")
    data: Data = Field(description="samples of the model's inputs")
    calibration: Calibration = Field(Calibration(), description="how activations are quantized")
    targets: tuple[Name, ...] = Field(min_length=1, description="names in _targets.yaml")
    accuracy: Accuracy = Field(description="how good an engine must be")
    performance: Performance = Field(
        Performance(at={}), description="what is measured, and how fast and small an engine must be"
    )
    release: Release = Field(Release(), description="name in the registry, and how engines are served")
    waivers: tuple[Waiver, ...] = Field((), description="failures that are accepted, each until a day")
    time_limits: TimeLimits = Field(TimeLimits(), description="seconds after which a step is killed")
