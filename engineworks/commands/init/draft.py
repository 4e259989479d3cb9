"""Known and guessed facts of a model, as frozen values: the material of a first recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from engineworks.tensors import Dim, TensorSpec

Triples = Mapping[str, tuple[int, int, int]]
"""By dimension: min, opt, max."""

Range = tuple[float, float]


@dataclass(frozen=True)
class RawTensor:
    """An input or output as the model declares it; a dimension without a length or a name is None."""

    name: str
    dtype: str
    dims: tuple[Dim | None, ...]


@dataclass(frozen=True)
class ModelFacts:
    """Facts that the model itself states.

    ranges: minimum and maximum value of inputs that look up a table. quantized: it holds Q/DQ. half: inputs or weights
    are float16 or bfloat16. task: of a Hugging Face folder. limits: the maximum length of a dimension, by its name, if
    a config states it. by_values: lengths of outputs may follow from values, as NonZero's.
    """

    inputs: tuple[RawTensor, ...]
    outputs: tuple[RawTensor, ...]
    ranges: Mapping[str, Range] = field(default_factory=dict)
    quantized: bool = False
    half: bool = False
    task: str | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
    by_values: bool = False


@dataclass(frozen=True)
class InitOptions:
    """Requests of the user beyond the model: by options, answers, a trtexec command line or an Olive file.

    precisions: () leaves the choice to us. shapes: input → (min, opt, max) shapes. dropped: what could not be
    translated, one sentence each. kept: what was translated, likewise.
    """

    model: str = ""
    name: str = ""
    task: str | None = None
    precisions: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    evaluation: str | None = None
    calibration: str | None = None
    labels: str | None = None
    cuda_graphs: bool = False
    streams: tuple[int, ...] = ()
    metric_delta: float | None = None
    kept: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataFile:
    """Samples for the recipe: `file` as the recipe names it, kind: by which key. names: input → array, if they differ.
    columns: those of texts, if they are not the usual one."""

    file: str
    names: Mapping[str, str] = field(default_factory=dict)
    labels: str | None = None
    stand_in: bool = False
    kind: Literal["npz", "text", "images"] = "npz"
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Draft:
    """The contents of the written recipe. tried: a sentence on how the shapes were tried. why_shapes: the basis of each
    guess, by dimension. schema: the JSON Schema next to the recipe, for editors; '' for none."""

    name: str
    description: str
    source: str
    inputs: tuple[TensorSpec, ...]
    outputs: Mapping[str, tuple[Dim, ...]]
    precisions: tuple[str, ...]
    targets: tuple[str, ...]
    evaluation: DataFile
    ranges: Mapping[str, Range] = field(default_factory=dict)
    shapes: Triples = field(default_factory=dict)
    calibration: DataFile | None = None
    tried: str = ""
    why_shapes: Mapping[str, str] = field(default_factory=dict)
    metric: str | None = None
    options: InitOptions = field(default_factory=InitOptions)
    target_note: str = ""
    schema: str = ""
