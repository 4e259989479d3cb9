"""A recipe as frozen values: what to build, never how. The JSON Schema that editors use is generated from here.

Fields say what they are in `description`, which is also the text of the schema. Values are checked one by one here;
what needs two fields at once is checked in `recipe_checks`, what needs files or a model in the step that reads them.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=80)]
DimName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=80)]
Length = Annotated[int, Field(ge=1, strict=True)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Streams = Annotated[int, Field(ge=1, le=64, strict=True)]
Factory = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
Extent = Annotated[int, Field(ge=0, strict=True)]
"""A length that may be 0: an empty KV cache, say."""
Triple = Annotated[tuple[Extent, ...], Field(min_length=3, max_length=3)]

Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")

LATER = {
    "release": "releases come with the release issue; remove the block until then",
    "model.source.mlflow": "MLflow models as sources come later; give the ONNX file for now",
}
"""Fields of the design that a later version brings: refused with this sentence, never ignored."""

LATER_PRECISIONS = ("fp8", "int4", "int8_weights", "int4_weights", "as_is", "auto")
"""Precisions of the design that a later version brings."""


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(Part):
    """Where the model comes from: exactly one of these."""

    onnx: str | None = Field(None, description="ONNX file, relative to the recipe")
    torch: Factory | None = Field(None, description="module:factory of a torch.nn.Module, run in a child process")
    huggingface: str | None = Field(None, description="folder of a Hugging Face model, or a cached id")
    task: str | None = Field(None, description="Hugging Face task, e.g. text-classification; default: from its config")


class Model(Part):
    source: Source
    opset: int = Field(18, ge=13, le=23, description="ONNX opset to export with; ONNX files keep theirs")
    files: tuple[str, ...] = Field((), description="files that a torch factory reads; a change of one rebuilds")


class Input(Part):
    dtype: Literal["float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool"]
    shape: tuple[Length | DimName, ...] = Field(description="lengths, and names for dynamic dimensions")


class Samples(Part):
    """Arrays by name in one .npz file; axis 0 counts the samples."""

    npz: str = Field(description="file, relative to the recipe; pickled arrays are refused")
    samples: Length | None = Field(None, description="use this many, evenly spread over the file; default: all")
    names: dict[str, str] = Field(default_factory=dict, description="model input: array name, where they differ")


class Evaluation(Samples):
    labels: str | None = Field(None, description="name of the array with the labels, one per sample")


class Data(Part):
    calibration: Samples | None = None
    evaluation: Evaluation


class Calibration(Part):
    method: Literal["minmax", "entropy", "percentile", "mse", "moving_average"] = "entropy"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    averaging: Fraction | None = Field(
        None, description="moving_average: weight of a new batch, e.g. 0.01; default: the mean over all batches"
    )
    batch: Length = Field(8, description="samples per calibration step")
    keep: tuple[str, ...] = Field((), description="globs of node names left in high precision")


class Limits(Part):
    """Limits of one precision; every one that is given is one check."""

    metric: float | None = Field(None, description="smallest task metric of the engine")
    metric_ratio: Positive | None = Field(None, description="smallest task metric relative to the fp32 reference")
    cosine: Fraction | None = Field(None, description="smallest cosine similarity to the reference")
    sqnr_db: float | None = Field(None, description="smallest signal-to-quantization-noise ratio, of every output")
    max_abs: Positive | None = Field(
        None, description="largest absolute difference from the reference, of every output"
    )
    mean_abs: Positive | None = Field(None, description="largest mean absolute difference, of every output")


class PythonMetric(Part):
    python: Factory = Field(description="module:function(outputs, labels, inputs) -> float, beside the recipe")


class Accuracy(Part):
    metric: Literal["top1"] | PythonMetric | None = Field(
        None, description="task metric on the labels; without labels: agreement with the reference"
    )
    output: str | None = Field(None, description="output that top1 reads; default: the first")
    limits: dict[Precision, Limits]


class Budget(Part):
    """Limits at one named shape; every one that is given is one check."""

    p50_ms: Positive | None = None
    p90_ms: Positive | None = None
    p99_ms: Positive | None = None
    throughput_per_s: Positive | None = Field(None, description="samples per second, batch / p50")
    memory_mib: Positive | None = Field(None, description="memory that loading and running the engine adds")
    load_ms: Positive | None = None
    first_run_ms: Positive | None = Field(None, description="the very first run at this shape, with copies")
    engine_mib: Positive | None = Field(None, description="size of the engine")


class Sweep(Part):
    """Batches to measure, one after the other, and to choose from."""

    batch: tuple[Length, ...] = Field(min_length=1, description="batch sizes, e.g. [1, 8, 16, 32]")
    at: Name | None = Field(None, description="named shape that gives the other dimensions; default: the first")
    latency_ms: Positive | None = Field(None, description="largest median latency of the recommended batch")


class ServingOptions(Part):
    """How engines are run, when they are compared and when they are measured."""

    cuda_graphs: bool = Field(False, description="replay the launches of a shape as one CUDA graph")
    kernels: Literal["lazy", "eager", "none"] = Field(
        "lazy", description="TensorRT-RTX's specialized kernels: made meanwhile, before the first run, or not at all"
    )


def _percent_schema(schema: dict[str, Any]) -> None:
    """Editors take both: 0.05 and '5%'."""
    number = dict(schema)
    schema.clear()
    schema["anyOf"] = [number, {"type": "string", "pattern": r"^\d+(\.\d*)?\s*%$"}]


def _fraction_of(value: object) -> object:
    """'5%' → 0.05; numbers stay."""
    fraction = value
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d*)?\s*%", value.strip()):
        fraction = float(value.strip().rstrip("% ")) / 100
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise PydanticCustomError("percent", "it should be a percentage such as 5%, or a fraction such as 0.05")
    return fraction


Percent = Annotated[
    float, Field(gt=0, lt=1, json_schema_extra=_percent_schema), BeforeValidator(_fraction_of)
]  # fmt: skip
"""'5%' or 0.05."""


class Regression(Part):
    """How much worse than the champion an engine may be; every one that is given is one check."""

    latency: Percent | None = Field(None, description="median latency at every named shape, e.g. 5%")
    accuracy: Percent | None = Field(None, description="task metric on the same evaluation data, e.g. 0.5%")
    most_s: Positive | None = Field(
        None, description="seconds that one measurement of both engines may take; default: by their speed, 20 to 300"
    )


class Performance(Part):
    at: dict[Name, dict[DimName, Extent]] = Field(description="named shapes to measure")
    budget: dict[Name, Budget] = Field(default_factory=dict, description="limits per named shape")
    sweep: Sweep | None = Field(None, description="batches to measure; the best is recommended")
    streams: tuple[Streams, ...] = Field((), description="runs in flight at once, each a throughput: e.g. [1, 2, 4]")
    serving: ServingOptions = ServingOptions()
    regression: Regression | None = Field(None, description="limits against the champion")


class Recipe(Part):
    """What to build, from which model and data, and the limits that an engine must meet."""

    recipe: Name = Field(description="name of the recipe: first part of every engine's id")
    description: str = ""
    owner: str = ""
    model: Model
    inputs: dict[str, Input] = Field(min_length=1)
    outputs: dict[str, tuple[Length | DimName, ...]] = Field(min_length=1)
    shapes: dict[Name, dict[DimName, Triple]] = Field(
        default_factory=dict, description="one optimization profile each: dimension: [min, opt, max]"
    )
    precisions: tuple[Precision, ...] = Field(min_length=1)
    data: Data
    calibration: Calibration = Calibration()
    targets: tuple[Name, ...] = Field(min_length=1, description="names in _targets.yaml")
    accuracy: Accuracy
    performance: Performance = Performance(at={})
