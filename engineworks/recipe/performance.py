"""`performance`: what is measured, and how fast and small an engine must be."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from engineworks.recipe.part import DimName, Extent, Length, Name, Part, Positive, Seconds, Streams


class Budget(Part):
    """Limits at one named shape; every one that is given is one check."""

    p50_ms: Positive | None = Field(None, description="largest median latency")
    p90_ms: Positive | None = Field(None, description="largest 90% latency")
    p99_ms: Positive | None = Field(None, description="largest 99% latency; with too few runs it is inconclusive")
    throughput_per_s: Positive | None = Field(None, description="fewest samples per second, batch / p50")
    memory_mib: Positive | None = Field(None, description="most memory that loading and running the engine adds")
    load_ms: Positive | None = Field(None, description="longest time from the stored bytes to the first run")
    first_run_ms: Positive | None = Field(None, description="longest very first run at this shape, with copies")
    engine_mib: Positive | None = Field(None, description="largest size of the engine")
    first_token_ms: Positive | None = Field(None, description="decoders: longest median time to the first token")
    tokens_per_s: Positive | None = Field(None, description="decoders: fewest tokens per second of all streams")


class Sweep(Part):
    """Batches to measure, one after the other, and to choose from; of decoders every pair of streams and prompt."""

    batch: tuple[Length, ...] = Field((), description="batch sizes, e.g. [1, 8, 16, 32]")
    streams: tuple[Streams, ...] = Field((), description="decoders: sequences at once; default: those of the shapes")
    prompt: tuple[Length, ...] = Field((), description="decoders: tokens of a prompt; default: those of the shapes")
    at: Name | None = Field(None, description="named shape that gives the other dimensions; default: the first")
    latency_ms: Positive | None = Field(None, description="largest median latency of the recommended batch")


class ServedLoad(Part):
    """A load on the served model, by MLPerf's load generator: a check."""

    qps: Positive | None = Field(None, description="queries a second, at random times")
    find_qps: bool = Field(False, description="search the largest rate within p99_ms instead of a given one")
    p99_ms: Positive = Field(description="largest 99% latency of an answer")
    seconds: Seconds = Field(60.0, description="seconds that the load takes; each try of a search takes as long")


class ServingOptions(Part):
    """How engines are run, when they are compared and when they are measured."""

    cuda_graphs: bool = Field(False, description="replay the launches of a shape as one CUDA graph")
    kernels: Literal["lazy", "eager", "none"] = Field(
        "lazy", description="TensorRT-RTX's specialized kernels: made meanwhile, before the first run, or not at all"
    )
    load: ServedLoad | None = Field(None, description="load that the package must sustain on a Triton server")


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
    max_s: Seconds | None = Field(
        None, description="seconds that one measurement of both engines may take; default: by their speed, 20 to 300"
    )


class Performance(Part):
    at: dict[Name, dict[DimName, Extent]] = Field(description="named shapes; of decoders: prompt, new, streams")
    budget: dict[Name, Budget] = Field(default_factory=dict, description="limits per named shape")
    sweep: Sweep | None = Field(None, description="batches to measure and to choose from; of decoders streams × prompt")
    streams: tuple[Streams, ...] = Field((), description="runs in flight at once, each a throughput: e.g. [1, 2, 4]")
    serving: ServingOptions = Field(ServingOptions(), description="how engines are run here and by what loads them")
    regression: Regression | None = Field(None, description="limits against the champion")
