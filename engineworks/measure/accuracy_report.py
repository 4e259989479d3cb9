"""The accuracy report: how far a stored engine's outputs are from the reference, and what that costs in the metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from engineworks.measure.accuracy import OutputAccuracy
from engineworks.measure.decoder.report import DecoderAccuracy
from engineworks.measure.served_report import Served
from engineworks.measure.slices import Slice
from engineworks.measure.statistics import number_text
from engineworks.typed_json import Count, Document, Report


@dataclass(frozen=True)
class DeadClass(Document):
    """A class that fp32 gets right and the engine never does: its samples, and how many fp32 gets right."""

    label: Annotated[int, Field(alias="class")]
    samples: Count
    reference: Count


MetricKind = Literal["labels", "agreement", "tokens"]


@dataclass(frozen=True)
class MetricValues(Document):
    """The task metric of engine and fp32.

    kind: on labels, as agreement with fp32, or on tokens of text. engine, reference: None if they are no number. ratio:
    quality relative to fp32. repeated: what a second call gave, if that differs. interval: of the ratio, 95%.
    agreement: share of positions with fp32's most probable token.
    """

    name: str
    kind: MetricKind
    samples: Count
    lower_is_better: bool
    engine: float | None
    reference: float | None
    ratio: float | None
    repeated: float | Literal["not a number"] | None = None
    dead_classes: tuple[DeadClass, ...] = ()
    slices: tuple[Slice, ...] = ()
    interval: tuple[float, float] | None = None
    agreement: float | None = None

    @property
    def nondeterministic(self) -> str:
        """Why no limit can decide on a metric that answers the same outputs in two ways; '' for any other."""
        if self.repeated is None:
            return ""
        again = number_text(self.repeated) if isinstance(self.repeated, float) else self.repeated
        values = f"gave {number_text(self.engine)} and then {again} for the same outputs"
        return f"Not to be trusted: {self.name} {values}; take the chance out of it (a fixed seed)."

    def loss(self) -> float | None:
        """The lost share of fp32's metric on labels, inf if a figure is no number; None without labels, because the
        outputs are more precise then."""
        if self.kind != "labels":
            return None
        if self.engine is None or self.reference is None:
            return float("inf")
        lost = self.engine - self.reference if self.lower_is_better else self.reference - self.engine
        return lost / max(abs(self.reference), 1e-12)


Outputs = Annotated[Mapping[str, OutputAccuracy], Field(min_length=1)]


@dataclass(frozen=True)
class Accuracy(Report):
    """outputs: by name. metric: None where the recipe names none. batches: sizes of the runs on the evaluation data.
    served: at the shapes of every profile, None if the step was not asked to. decoder: None for other models."""

    FILE = "accuracy.json"

    outputs: Outputs
    metric: MetricValues | None
    samples: Count
    batches: tuple[int, ...]
    served: Served | None = None
    decoder: DecoderAccuracy | None = None

    @property
    def worst_cosine(self) -> float | None:
        """The smallest cosine of the outputs; None if one is not a number."""
        cosines = [output.cosine for output in self.outputs.values()]
        return None if None in cosines else min(c for c in cosines if c is not None)

    @property
    def worst_row(self) -> int:
        """The sample whose cosine is the smallest of any output."""
        known = [(o.worst_row_cosine, o.worst_row) for o in self.outputs.values() if o.worst_row_cosine is not None]
        return min(known, default=(0.0, 0))[1]

    @property
    def quality(self) -> float | None:
        """The metric relative to fp32, else the smallest cosine."""
        return self.metric.ratio if self.metric and self.metric.ratio is not None else self.worst_cosine
