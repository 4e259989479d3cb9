"""Task metrics by established libraries: an output with rows on axis 0, and labels → one number.

Each metric is two functions. `reduce` takes one run's rows to predictions (not logits), so that memory does not grow
with the vocabulary. `score` takes all reduced rows and all labels to the metric. A NaN in an output is never right: it
becomes class -1, or makes the metric NaN, which no gate passes.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from engineworks.errors import ModelError
from engineworks.host.lazy import Array, NDArray, np

NO_LABEL = -100
"""Padding: top_k, f1 and span leave out this label; perplexity and texts leave out every label below zero."""

LONGEST_ANSWER = 30
"""Maximum tokens of an answer, as in evaluations of SQuAD."""


@dataclass(frozen=True)
class TaskMetric:
    """name: as in reports. reduce(rows, labels of these rows or None); score(reduced rows, labels or None)."""

    name: str
    reduce: Callable[[Array, Array | None], Array]
    score: Callable[[Array, Array], float]


def task_metric(settings: Mapping[str, Any]) -> TaskMetric:
    """The metric that the recipe names, with its settings (`recipe.metric.metric_settings`)."""
    name = settings["name"]
    if name in ("top1", "top_k"):
        k = settings.get("top_k", 1)
        return TaskMetric(f"top{k}", lambda rows, _: largest(rows, k), hit_rate)
    if name == "f1":
        threshold, average = settings["threshold"], settings["f1"]
        return TaskMetric(f"f1 ({average})", lambda rows, _: classes(rows, threshold), lambda p, y: f1(p, y, average))
    if name in ("word_error", "character_error"):
        decoding, blank, space = settings[name], settings["blank"], settings.get("space")
        by_word = name == "word_error"
        return TaskMetric(
            name.replace("_", " ") + " rate",
            lambda rows, _: token_ids(rows, decoding, blank),
            lambda ids, y: text_error(ids, y, by_word=by_word, space=space),
        )
    return {
        "span": TaskMetric("exact spans", lambda rows, _: best_spans(rows), span_rate),
        "auc": TaskMetric("area under the ROC curve", lambda rows, _: rows, auc),
        "spearman": TaskMetric("Spearman's rank correlation", lambda rows, _: rows, spearman),
        "perplexity": TaskMetric("perplexity", token_losses, lambda losses, _: perplexity(losses)),
        "mean_average_precision": TaskMetric("mean average precision", lambda rows, _: rows, mean_average_precision),
    }[name]


def ratio_to_reference(engine: float, reference: float, *, lower_is_better: bool) -> float:
    """Quality of the engine relative to the reference: 1 is as good, less is worse, whichever way the metric goes.

    engine / reference, or reference / engine if smaller is better (1 if the engine makes no error at all). NaN if the
    reference is not above zero, because the ratio is then meaningless.
    """
    if lower_is_better:
        if engine == 0:
            return 1.0
        return reference / engine if engine > 0 and reference >= 0 else math.nan
    return engine / reference if reference > 0 else math.nan


def largest(logits: Array, k: int) -> Array:
    """The k classes with the largest logits (last axis), i64[..., k], the largest last; -1 for NaN logits.

    logits: float[..., classes].
    """
    scores = np.asarray(logits, np.float64)
    if k > scores.shape[-1]:
        raise ModelError(f"top_k: {k} of {scores.shape[-1]} classes")
    some = np.argpartition(scores, -k, axis=-1)[..., -k:] if k > 1 else scores.argmax(axis=-1)[..., np.newaxis]
    rising = np.take_along_axis(scores, some, axis=-1).argsort(axis=-1, kind="stable")
    top = np.take_along_axis(some, rising, axis=-1)
    return np.where(np.isnan(scores).any(axis=-1, keepdims=True), -1, top)


def hit_rate(predictions: Array, labels: Array) -> float:
    """Share of the labels among the predicted classes. predictions: i64[..., k]; labels: int[...]."""
    if labels.shape != predictions.shape[:-1]:
        raise ModelError(
            f"labels of shape {list(labels.shape)} do not fit outputs of shape {list(predictions.shape[:-1])}"
        )
    counted = _counted("top_k", labels)
    labels = _whole("top_k", labels)
    return float((predictions == labels[..., np.newaxis]).any(axis=-1)[counted].mean())


def best_spans(logits: Array) -> Array:
    """First and last token, i64[rows, 2], with the largest sum of logits; -1 where a logit is NaN.

    last ≥ first, at most `LONGEST_ANSWER` tokens (Devlin et al. 2019, section 4.2). logits: float[rows, length, 2], of
    starts and of ends.
    """
    if logits.ndim != 3 or logits.shape[-1] != 2:
        raise ModelError(f"span needs logits of starts and ends [rows, length], not {list(logits.shape)}")
    scores = np.asarray(logits, np.float64)
    length = scores.shape[1]
    first, last = np.arange(length)[:, np.newaxis], np.arange(length)[np.newaxis, :]
    allowed = (last >= first) & (last < first + LONGEST_ANSWER)
    spans = np.empty((len(scores), 2), np.int64)
    for row, (starts, ends) in zip(spans, np.moveaxis(scores, -1, 1), strict=True):
        sums = np.where(allowed, starts[:, np.newaxis] + ends[np.newaxis, :], -np.inf)
        row[:] = -1 if np.isnan(sums).any() else divmod(int(sums.argmax()), length)
    return spans


def span_rate(predictions: Array, labels: Array) -> float:
    """Share of the answers whose first and last token are both right. predictions, labels: int[rows, 2]."""
    if labels.shape != predictions.shape:
        raise ModelError(f"span: labels of shape {list(labels.shape)} do not fit answers {list(predictions.shape)}")
    counted = _counted("span", labels).all(axis=-1)
    labels = _whole("span", labels)
    return float((predictions == labels).all(axis=-1)[counted].mean())


def _counted(name: str, labels: Array) -> Array:
    """bool, shape of `labels`: which labels are not padding. Raises `ModelError` if all are."""
    counted: Array = labels != NO_LABEL
    if not counted.any():
        raise ModelError(f"{name}: every label is {NO_LABEL}, so that none counts")
    return counted


def _whole(name: str, labels: Array) -> NDArray[np.int64]:
    """The labels as i64, same shape. Raises `ModelError` if one is no whole number, which int64 would cut."""
    if labels.dtype.kind not in "biuf":
        raise ModelError(f"{name}: labels are {labels.dtype.str.lstrip('|=')}, not numbers")
    if labels.dtype.kind == "f" and (cut := labels[labels != np.floor(labels)]).size:
        raise ModelError(f"{name}: the label {cut[0]:g} is no whole number", hint="labels are classes or ids of tokens")
    return labels.astype(np.int64)


LEAST_KNOWN = 5
"""Minimum number of a class's samples that the reference gets right for a check of the class.

Even if each sample tipped with probability one in four, this many would tip together only once in a thousand.
"""


def dead_classes(engine: Array, reference: Array, labels: Array) -> list[tuple[int, int, int]]:
    """Classes with no sample right in the engine, but at least `LEAST_KNOWN` and at least half right in the reference.

    Each is (class, samples, number right in the reference).

    engine, reference: reduced rows of top-k, int[..., k], or f1, int[...]; labels: int[...], the classes.
    """
    y = labels.reshape(-1)
    right = []
    for predictions in (engine, reference):
        kept = (
            predictions.reshape(len(y), -1) if len(y) and predictions.size % len(y) == 0 else predictions.reshape(-1, 1)
        )
        right.append((kept == y[:, np.newaxis]).any(axis=1))
    dead = []
    for label in np.unique(y).tolist():
        rows = y == label
        samples, known, found = int(rows.sum()), int(right[1][rows].sum()), int(right[0][rows].sum())
        if not found and known >= max(LEAST_KNOWN, samples / 2):
            dead.append((int(label), samples, known))
    return dead


MOST_NAMED = 5
"""Classes that a message names."""


def classes(rows: Array, threshold: float) -> Array:
    """One class per row, i64[...]: integers as they are, the largest of several logits, or whether a score ≥ threshold.

    rows: int or bool[...] classes, float[..., classes] logits, or float[...] or [..., 1] scores.
    """
    if rows.dtype.kind in "iub":
        return _flat(rows).astype(np.int64)
    if rows.ndim > 1 and rows.shape[-1] > 1:
        return largest(rows, 1)[..., 0]
    scores = _flat(rows).astype(np.float64)
    return np.where(np.isnan(scores), -1, scores >= threshold).astype(np.int64)


def f1(predictions: Array, labels: Array, average: str) -> float:
    """F1 score by scikit-learn; -1 (a NaN) counts as a class that is never right.

    predictions: int[...]; labels: the same shape, or with a last axis of 1.
    """
    y = _whole("f1", _fitting("f1", labels, predictions))
    counted = _counted("f1", y)
    y, predictions = y[counted], predictions[counted]
    known = [1] if average == "binary" else sorted(set(y.tolist()) | (set(predictions.ravel().tolist()) - {-1}))
    kind = "macro" if average == "binary" else average
    metrics = _library("f1", "sklearn.metrics", "scikit-learn")
    return float(metrics.f1_score(y.ravel(), predictions.ravel(), labels=known, average=kind, zero_division=0.0))


def auc(rows: Array, labels: Array) -> float:
    """Area under the ROC curve by scikit-learn.

    rows: float[rows] or [rows, 1], one score, or float[rows, classes], two logits or more. labels: int[rows]. For three
    classes or more, the mean of each class against the rest.
    """
    scores = np.asarray(rows, np.float64)
    y = labels.reshape(-1)
    if not np.isfinite(scores).all():
        return math.nan
    metrics = _library("auc", "sklearn.metrics", "scikit-learn")
    width = scores.shape[-1] if scores.ndim > 1 else 1
    needed, found = max(2, width), np.unique(y)
    if len(found) < needed:  # scikit-learn gives NaN
        only = ", ".join(map(str, found[:MOST_NAMED].tolist())) + (" …" if len(found) > MOST_NAMED else "")
        raise ModelError(
            f"auc needs labels of all {needed} classes, these are of {len(found)} ({only})",
            hint="give the evaluation data samples of every class",
        )
    try:
        if scores.ndim < 2 or scores.shape[-1] == 1:
            return float(metrics.roc_auc_score(y, scores.reshape(-1)))
        if scores.shape[-1] == 2:
            return float(metrics.roc_auc_score(y, scores[..., 1].reshape(-1) - scores[..., 0].reshape(-1)))
        logits = scores.reshape(-1, scores.shape[-1])
        probabilities = np.exp(_log_softmax(logits))
        return float(metrics.roc_auc_score(y, probabilities, multi_class="ovr", labels=list(range(scores.shape[-1]))))
    except ValueError as error:
        raise ModelError(f"auc cannot be computed of these labels: {error}") from None


def spearman(rows: Array, labels: Array) -> float:
    """Rank correlation (-1 … 1) of one score per row with the labels, by SciPy.

    rows: float[rows] or [rows, 1]; labels: [rows].
    """
    scores, y = _flat(rows).astype(np.float64), np.asarray(labels, np.float64)
    if scores.shape != y.shape:
        raise ModelError(f"spearman needs one score per row: labels {list(y.shape)}, outputs {list(scores.shape)}")
    if np.ptp(y) == 0:
        raise ModelError(f"spearman needs labels that differ: all are {y.flat[0]:g}")
    if not np.isfinite(scores).all() or np.ptp(scores) == 0:
        return math.nan
    return float(_library("spearman", "scipy.stats", "scipy").spearmanr(scores, y).statistic)


def token_losses(logits: Array, labels: Array | None) -> Array:
    """-log p(label) of every position, f64[rows, length]; NaN without a label (below zero).

    logits: float[rows, length, classes]. labels: int[rows, length], the tokens that the logits at the same position
    predict: shift them when writing the data.
    """
    assert labels is not None  # checked with the recipe
    if labels.shape != logits.shape[:-1]:
        raise ModelError(
            f"perplexity: labels of shape {list(labels.shape)} do not fit logits of shape {list(logits.shape)}"
        )
    y = _whole("perplexity", labels)
    if int(y.max(initial=0)) >= logits.shape[-1]:
        raise ModelError(f"perplexity: label {int(y.max())} of {logits.shape[-1]} logits")
    log_p = _log_softmax(np.asarray(logits, np.float64))
    picked = np.take_along_axis(log_p, np.maximum(y, 0)[..., np.newaxis], axis=-1)[..., 0]
    # A NaN among the logits must not look like padding: its loss is infinite.
    return np.where(y < 0, np.nan, np.where(np.isnan(picked), np.inf, -picked))


def perplexity(losses: Array) -> float:
    """exp of the mean loss per token (Jelinek, Mercer, Bahl & Baker 1977).

    losses: f64[rows, length], NaN for padding.
    """
    counted = losses[~np.isnan(losses)]
    if not counted.size:
        raise ModelError("perplexity: every label is below zero, so that none counts")
    mean = float(counted.mean())
    return math.exp(mean) if mean < 700 else math.inf


def token_ids(rows: Array, decoding: str, blank: int) -> Array:
    """Ids per row, i64[rows, length], padded with -100.

    rows: float[rows, length, classes] logits, or int[rows, length] ids. ctc (Graves et al. 2006): the best class of
    every position, then merged repeats, then blanks removed.
    """
    ids = np.asarray(rows, np.int64) if rows.dtype.kind in "iu" else largest(rows, 1)[..., 0]
    if ids.ndim != 2:
        raise ModelError(f"word and character errors need ids [rows, length] or their logits, not {list(rows.shape)}")
    if decoding == "ids":
        return np.where(ids == -1, NO_LABEL + 1, ids)
    decoded = np.full(ids.shape, NO_LABEL, np.int64)
    for row, places in zip(decoded, ids.tolist(), strict=True):
        kept = [key for key, _ in groupby(places) if key != blank]
        row[: len(kept)] = kept
    return np.where(decoded == -1, NO_LABEL + 1, decoded)


def text_error(ids: Array, labels: Array, *, by_word: bool, space: int | None) -> float:
    """Edits per word or character of the labels, by jiwer.

    ids, labels: int[rows, length], padded with values below zero.
    """
    if len(ids) != len(labels) or labels.ndim != 2:
        raise ModelError(f"labels of shape {list(labels.shape)} are no ids [rows, length] of {len(ids)} rows")
    metric = "word_error" if by_word else "character_error"
    jiwer = _library(metric, "jiwer", "jiwer")
    wanted = [_text(row, by_word=by_word, space=space) for row in _whole(metric, labels).tolist()]
    texts = [_text(row, by_word=by_word, space=space) for row in ids.tolist()]
    if not all(wanted):
        raise ModelError("word and character errors need labels of one id at least in every row")
    return float(jiwer.wer(wanted, texts) if by_word else jiwer.cer(wanted, texts))


def _text(ids: Sequence[int], *, by_word: bool, space: int | None) -> str:
    """Ids as text for jiwer: one private character each (Unicode plane 15), or one word each."""
    kept = [i for i in ids if i > NO_LABEL and (i >= 0 or i == NO_LABEL + 1)]
    if by_word and space is None:
        return " ".join(str(i) for i in kept)
    return "".join(" " if by_word and i == space else chr(0xF0000 + i % 0xFFFD) for i in kept).strip()


def mean_average_precision(rows: Array, labels: Array) -> float:
    """COCO's mean average precision (IoU .50 to .95), by faster-coco-eval.

    rows: float[images, n, 6], x1, y1, x2, y2, score, class. labels: float[images, m, 5], x1, y1, x2, y2, class. A class
    below zero is padding.
    """
    if rows.ndim != 3 or rows.shape[-1] != 6 or labels.ndim != 3 or labels.shape[-1] != 5:
        raise ModelError(
            "mean_average_precision reads outputs [images, n, 6] (x1, y1, x2, y2, score, class) and labels "
            f"[images, m, 5] (x1, y1, x2, y2, class), not {list(rows.shape)} and {list(labels.shape)}",
            hint="for other layouts write metric: {python: module:function}",
        )
    if not np.isfinite(rows).all():
        return math.nan
    coco = _library("mean_average_precision", "faster_coco_eval", "faster-coco-eval")
    truth, detections = _boxes(labels, 4), _boxes(rows, 5)
    if not truth:
        raise ModelError("mean_average_precision: the labels hold no box")
    if not detections:
        return 0.0
    images = [{"id": i + 1} for i in range(len(labels))]
    categories = [{"id": c} for c in sorted({b["category_id"] for b in (*truth, *detections)})]
    ground = coco.COCO({"images": images, "annotations": truth, "categories": categories, "info": {}})
    evaluation = coco.COCOeval_faster(ground, ground.loadRes(detections), "bbox", print_function=lambda *_: None)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


def _boxes(array: Array, class_at: int) -> list[dict[str, Any]]:
    """[images, n, 5 or 6] → COCO entries; `class_at`: index of the class, below zero for padding."""
    entries: list[dict[str, Any]] = []
    for image, boxes in enumerate(np.asarray(array, np.float64), 1):
        for box in boxes[boxes[:, class_at] >= 0].tolist():
            x1, y1, x2, y2 = box[:4]
            entry: dict[str, Any] = {
                "id": len(entries) + 1, "image_id": image, "category_id": int(box[class_at]) + 1, "iscrowd": 0,
                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1),
            }  # fmt: skip
            entries.append(entry | ({"score": box[4]} if class_at == 5 else {}))
    return entries


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _flat(rows: Array) -> Array:
    """[rows, 1] → [rows]; other shapes stay."""
    return rows[..., 0] if rows.ndim > 1 and rows.shape[-1] == 1 else rows


def _fitting(name: str, labels: Array, predictions: Array) -> Array:
    """The labels in the predictions' shape, without a last axis of 1. Raises `ModelError` if they do not fit."""
    fitting = _flat(labels) if labels.ndim > predictions.ndim else labels
    if fitting.shape != predictions.shape:
        raise ModelError(f"{name}: labels {list(labels.shape)} do not fit predictions {list(predictions.shape)}")
    return fitting


def _library(metric: str, module: str, distribution: str) -> Any:
    """The library that computes the metric. Raises `ModelError` if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ModelError(
            f"the metric '{metric}' is computed by {distribution}, which cannot be imported: {error}",
            hint="pip install 'engineworks[metrics]'",
        ) from None
