"""The task metrics that a recipe may name, and their properties, without computing them.

`metric: top1`, `metric: {top_k: 5}`, `metric: {f1: binary, threshold: 0.0}`, `metric: {python: module:function}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, StringConstraints, Tag

from engineworks.recipe.part import Extent, Length, Number, Part

Factory = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
Average = Literal["macro", "micro", "binary"]
Decoding = Literal["ids", "ctc"]

MetricName = Literal[
    "top1", "f1", "auc", "span", "spearman", "perplexity", "word_error", "character_error", "mean_average_precision",
    "cosine",
]  # fmt: skip
"""Metrics that may stand alone, with their usual settings."""

LOWER_IS_BETTER = frozenset({"perplexity", "word_error", "character_error"})

WITHOUT_LABELS = frozenset({"top1", "top_k", "span", "cosine", "python"})
"""Without labels top1, top_k and span measure agreement with the reference; cosine never reads labels; python may."""

CLASSIFIES = ("top1", "top_k", "f1")
"""Metrics whose labels are classes."""

LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "f1": ("scikit-learn",),
    "auc": ("scikit-learn",),
    "spearman": ("scipy",),
    "word_error": ("jiwer",),
    "character_error": ("jiwer",),
    "mean_average_precision": ("faster-coco-eval",),
}
"""Distributions that compute a metric; all are in the extra `metrics`."""

UNKNOWN_METRIC = "unknown_metric"
"""Type of the error for a mapping that names no metric."""


class TopK(Part):
    top_k: Length = Field(description="the label is among so many largest logits")


class F1(Part):
    f1: Average = Field(description="how the classes' scores are put together; binary: that of class 1")
    threshold: Number = Field(0.5, description="binary with one score per row: from here on it is class 1")


class WordError(Part):
    word_error: Decoding = Field(description="ids: the largest logit at each place; ctc: repeats and blanks left out")
    blank: Extent = Field(0, description="the blank of ctc")
    space: Extent | None = Field(None, description="id that parts words; default: every id is a word")


class CharacterError(Part):
    character_error: Decoding = Field(description="ids: the largest logit at each place; ctc: repeats, blanks left out")
    blank: Extent = Field(0, description="the blank of ctc")


class PythonMetric(Part):
    python: Factory = Field(description="module:function(outputs, labels, inputs) -> float, beside the recipe")
    lower_is_better: bool = Field(False, description="whether smaller values are better")


METRIC_KINDS: Mapping[str, type[BaseModel]] = {
    "top_k": TopK, "f1": F1, "word_error": WordError, "character_error": CharacterError, "python": PythonMetric,
}  # fmt: skip
"""Metrics with settings, by the key that names them."""


def _kind(value: Any) -> str | None:
    """The branch of the union that the value means, so that an error names only that one."""
    if isinstance(value, Mapping):
        return next((f"[{key}]" for key in METRIC_KINDS if key in value), None)
    return next((f"[{key}]" for key, kind in METRIC_KINDS.items() if isinstance(value, kind)), "[name]")


EXAMPLES: Mapping[str, Mapping[str, str]] = {
    "TopK": {"top_k": "5"},
    "F1": {"f1": "binary", "threshold": "0.5"},
    "WordError": {"word_error": "ctc", "blank": "0", "space": "3"},
    "CharacterError": {"character_error": "ctc", "blank": "0"},
    "PythonMetric": {"python": "metrics:character_accuracy", "lower_is_better": "true"},
}
"""As in `examples.EXAMPLES`."""

Metric = Annotated[
    Annotated[MetricName, Tag("[name]")]
    | Annotated[TopK, Tag("[top_k]")]
    | Annotated[F1, Tag("[f1]")]
    | Annotated[WordError, Tag("[word_error]")]
    | Annotated[CharacterError, Tag("[character_error]")]
    | Annotated[PythonMetric, Tag("[python]")],
    Discriminator(_kind, custom_error_type=UNKNOWN_METRIC, custom_error_message="names no metric"),
]

METRIC_WORDS = ("top_k", "python", *MetricName.__args__)  # type: ignore[attr-defined]
"""Every word that may name a metric."""


def metric_fields(location: Sequence[str | int]) -> list[str]:
    """The keys of the metric whose union branch an error location names; none without a branch."""
    return [field for key, kind in METRIC_KINDS.items() if f"[{key}]" in location for field in kind.model_fields]


def metric_name(metric: Metric) -> str:
    """The metric's name in recipes: 'top1', 'top_k', 'python' …"""
    return (
        metric if isinstance(metric, str) else next(k for k, kind in METRIC_KINDS.items() if isinstance(metric, kind))
    )


def metric_settings(metric: Metric) -> dict[str, Any]:
    """The metric as JSON: `name`, and its settings under their own names."""
    if isinstance(metric, str):
        defaults: dict[str, dict[str, Any]] = {
            "f1": F1(f1="macro").model_dump(),
            "word_error": WordError(word_error="ids").model_dump(),
            "character_error": CharacterError(character_error="ids").model_dump(),
        }
        return {"name": metric, **defaults.get(metric, {})}
    return {"name": metric_name(metric), **metric.model_dump()}


def python_metric(metric: Metric | None) -> str | None:
    """'module:function' of a user's custom metric, None for all others."""
    return metric.python if isinstance(metric, PythonMetric) else None


def is_lower_better(settings: Mapping[str, Any]) -> bool:
    """Whether smaller values of the metric with these settings are better."""
    return settings["name"] in LOWER_IS_BETTER or bool(settings.get("lower_is_better"))
