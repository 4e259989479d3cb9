"""Whole reports for tests, of which a test names only what it is about."""

from __future__ import annotations

from typing import Any

from engineworks.measure.accuracy import OutputAccuracy
from engineworks.measure.accuracy_report import Accuracy, MetricFigures


def output(cosine: float | None = 0.99999, **changes: Any) -> OutputAccuracy:
    known: dict[str, Any] = {
        "max_abs": 0.1, "mean_abs": 0.01, "cosine": cosine, "sqnr_db": 30.0, "nonfinite": 0, "elements": 100,
        "worst_row": 7, "worst_row_cosine": 0.9,
    }  # fmt: skip
    return OutputAccuracy.from_json(known | changes)


def metric(engine: float | None = 0.9, **changes: Any) -> MetricFigures:
    known: dict[str, Any] = {
        "name": "top1", "kind": "labels", "samples": 597, "lower_is_better": False, "engine": engine, "reference": 0.99,
        "ratio": None if engine is None else engine / 0.99,
    }  # fmt: skip
    return MetricFigures.from_json(known | changes)


def accuracy(figures: MetricFigures | None = None, **outputs: OutputAccuracy) -> Accuracy:
    return Accuracy(outputs or {"logits": output()}, figures, 597, (8,))
