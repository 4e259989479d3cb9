"""Task metrics: known values, what does not fit is refused, and a NaN is never right."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engineworks.errors import ModelError
from engineworks.measure.task_metrics import ratio_to_reference, task_metric
from engineworks.recipe.metric import metric_settings
from engineworks.recipe.recipe import Accuracy

NAN = float("nan")


def value(metric: Any, rows: Any, labels: Any, parts: int = 2) -> float:
    """The metric as a recipe writes it, reduced run by run as `compare` does."""
    known = task_metric(metric_settings(Accuracy(metric=metric, limits={}).metric))
    rows, labels = np.asarray(rows), np.asarray(labels)
    pairs = zip(np.array_split(rows, parts), np.array_split(labels, parts), strict=True)
    return known.score(np.concatenate([known.reduce(r, y) for r, y in pairs]), labels)


def one_hot(ids: Any, classes: int = 5) -> NDArray[np.float32]:
    return np.eye(classes, dtype=np.float32)[np.asarray(ids)]


def test_top1_counts_hits_and_never_a_nan() -> None:
    assert value("top1", [[1, 2, 0], [5, 1, 0], [NAN, 0, 9]], [1, 2, 2]) == pytest.approx(1 / 3)


def test_top_k_takes_the_k_largest() -> None:
    logits = [[9, 5, 7, 1], [9, 5, 7, 1], [9, 5, 7, 1], [9, NAN, 7, 1]]
    assert value({"top_k": 2}, logits, [0, 2, 1, 0]) == 0.5
    assert value({"top_k": 3}, logits, [0, 2, 1, 0]) == 0.75
    with pytest.raises(ModelError, match="top_k: 9 of 4 classes"):
        value({"top_k": 9}, logits, [0, 2, 1, 0])


def test_labels_of_another_shape_are_refused() -> None:
    for metric in ("top1", "f1"):
        with pytest.raises(ModelError, match="labels"):
            value(metric, one_hot([0, 1]), [[0], [1]] if metric == "top1" else [[0, 1], [1, 1]])


@pytest.mark.parametrize(
    ("metric", "expected"), [("f1", (2 / 3 + 2 / 3) / 3), ({"f1": "macro"}, (2 / 3 + 2 / 3) / 3), ({"f1": "micro"}, 0.6)],
    ids=str,
)  # fmt: skip
def test_f1_of_several_classes(metric: Any, expected: float) -> None:
    """class 0: precision 1/2, recall 1; class 1: 2/3 and 2/3; class 2: never found."""
    assert value(metric, one_hot([0, 0, 1, 1, 1], 3), [0, 1, 1, 1, 2]) == pytest.approx(expected)


def test_f1_binary_reads_scores_at_a_threshold() -> None:
    scores, labels = [[0.1], [0.6], [0.7], [NAN]], [0, 1, 0, 1]
    assert value({"f1": "binary"}, scores, labels) == pytest.approx(0.5)
    assert value({"f1": "binary", "threshold": 0.65}, scores, labels) == 0.0
    assert value({"f1": "binary"}, [[2.0, 1.0], [0.0, 3.0]], [0, 1]) == 1.0
    assert value({"f1": "binary"}, np.array([0, 1, 1]), [0, 1, 0]) == pytest.approx(2 / 3)


def test_auc() -> None:
    assert value("auc", [[0.1], [0.4], [0.35], [0.8]], [0, 0, 1, 1]) == 0.75
    assert value("auc", [[0, 0.1], [0, 0.4], [0, 0.35], [0, 0.8]], [0, 0, 1, 1]) == 0.75
    assert value("auc", one_hot([0, 1, 2], 3), [0, 1, 2]) == 1.0
    assert math.isnan(value("auc", [[NAN], [1.0]], [0, 1]))


def test_labels_between_two_classes_are_an_error_and_whole_floats_are_classes() -> None:
    rows, ids = one_hot([0, 1], 2), np.array([[1, 2], [3, 4]])
    for metric in ("top1", "f1"):
        assert value(metric, rows, [0.0, 1.0]) == 1
        with pytest.raises(ModelError, match=r"the label 1\.5 is no whole number"):
            value(metric, rows, [0.0, 1.5])
    with pytest.raises(ModelError, match="perplexity: the label nan is no whole number"):
        value("perplexity", np.zeros((1, 2, 4)), [[1, NAN]])
    with pytest.raises(ModelError, match="top_k: labels are <U3, not numbers"):
        value("top1", rows, ["cat", "dog"])
    pytest.importorskip("jiwer")
    for metric in ("word_error", "character_error"):
        assert value(metric, ids, ids.astype(np.float32)) == 0


@pytest.mark.parametrize(
    ("metric", "rows", "labels", "part"),
    [
        ("auc", [[0.1], [0.4]], [1, 1], r"labels of all 2 classes, these are of 1 \(1\)"),
        ("auc", [[0.1, 0.3], [0.4, 0.2]], [0, 0], r"labels of all 2 classes, these are of 1 \(0\)"),
        ("auc", one_hot([0, 1, 2], 4), [0, 1, 2], r"labels of all 4 classes, these are of 3 \(0, 1, 2\)"),
        ("spearman", [1.0, 2.0, 3.0], [4, 4, 4], "labels that differ: all are 4"),
    ],
)
def test_labels_that_decide_nothing_are_an_error_and_no_figure(metric: str, rows: Any, labels: Any, part: str) -> None:
    with pytest.raises(ModelError, match=part):
        value(metric, rows, labels)


def test_spearman() -> None:
    assert value("spearman", [[1.0], [2.0], [9.0]], [10, 20, 30]) == pytest.approx(1)
    assert value("spearman", [3.0, 2.0, 1.0], [10, 20, 30]) == pytest.approx(-1)
    assert math.isnan(value("spearman", [NAN, 2.0], [1, 2]))
    with pytest.raises(ModelError, match="one score per row"):
        value("spearman", np.zeros((3, 2)), [1, 2, 3])


def test_perplexity_of_even_odds_is_the_vocabulary_and_padding_does_not_count() -> None:
    assert value("perplexity", np.zeros((3, 4, 7)), np.full((3, 4), 2)) == pytest.approx(7)
    logits = np.zeros((2, 3, 4))
    logits[0, 0, 1] = 50
    assert value("perplexity", logits, [[1, -100, -100], [-100, -100, -100]]) == pytest.approx(1)
    with pytest.raises(ModelError, match="every label is below zero"):
        value("perplexity", logits, np.full((2, 3), -100))
    logits[1, 0, 0] = NAN
    assert value("perplexity", logits, [[1, -100, -100], [1, -100, -100]]) == math.inf


def test_boxes_of_other_layouts_are_refused_with_a_way_out() -> None:
    with pytest.raises(ModelError, match="reads outputs") as caught:
        value("mean_average_precision", np.zeros((2, 3, 4)), np.zeros((2, 3, 5)))
    assert "python: module:function" in caught.value.hint


def test_a_missing_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(ModelError, match="'word_error' is computed by jiwer, which cannot be imported") as caught:
        value("word_error", [[1, 2]], [[1, 2]], parts=1)
    assert caught.value.hint == "pip install 'engineworks[metrics]'"


def test_word_and_character_errors() -> None:
    pytest.importorskip("jiwer")
    labels = [[1, 2, 3, -1], [4, 4, 1, 2]]
    ctc = one_hot([[1, 1, 0, 2, 3, 0], [4, 0, 4, 1, 2, 2]])
    assert value({"character_error": "ctc"}, ctc, labels) == 0
    assert value({"word_error": "ctc"}, ctc, labels) == 0
    assert value(
        {"character_error": "ctc"}, one_hot([[1, 1, 0, 2, 2, 0], [4, 0, 4, 1, 2, 2]]), labels
    ) == pytest.approx(1 / 7)
    assert value({"character_error": "ids"}, np.array([[1, 2, 3], [4, 4, 1]]), [[1, 2, 3], [4, 4, 2]]) == pytest.approx(
        1 / 6
    )
    words = {"word_error": "ids", "space": 0}
    assert value(words, np.array([[1, 2, 0, 3], [1, 0, 2, 2]]), [[1, 2, 0, 4], [1, 0, 2, 2]]) == pytest.approx(1 / 4)
    broken = ctc.copy()
    broken[0, 0] = NAN
    assert value({"character_error": "ctc"}, broken, labels) > 0


def test_mean_average_precision() -> None:
    pytest.importorskip("faster_coco_eval")
    labels = np.array([[[0, 0, 10, 10, 0], [20, 20, 40, 40, 1]], [[5, 5, 9, 9, 0], [0, 0, 0, 0, -1]]], np.float32)
    scores = np.array([[0.9, 0.8], [0.7, 0.1]])[..., None]
    found = np.concatenate([labels[..., :4], scores, labels[..., 4:]], axis=-1)
    assert value("mean_average_precision", found, labels) == pytest.approx(1)
    moved = found.copy()
    moved[0, 1, :4] += 100
    assert value("mean_average_precision", moved, labels) == pytest.approx(0.5)
    found[..., 5] = -1
    assert value("mean_average_precision", found, labels) == 0


@pytest.mark.parametrize(
    ("engine", "reference", "lower", "ratio"),
    [
        (0.9, 1.0, False, 0.9),
        (2.0, 1.0, True, 0.5),
        (0.5, 1.0, True, 2.0),
        (0.0, 0.0, True, 1.0),
        (0.1, 0.0, True, 0.0),
    ],
)
def test_a_ratio_below_one_is_worse_whichever_way_the_metric_goes(
    engine: float, reference: float, lower: bool, ratio: float
) -> None:
    assert ratio_to_reference(engine, reference, lower_is_better=lower) == pytest.approx(ratio)


@pytest.mark.parametrize("reference", [0.0, -0.4])
def test_a_reference_that_is_not_above_zero_gives_no_ratio(reference: float) -> None:
    assert math.isnan(ratio_to_reference(-0.5, reference, lower_is_better=False))


def test_padding_among_the_labels_of_tokens_does_not_count() -> None:
    logits = one_hot([[0, 1, 2], [3, 3, 3]])
    assert value("top1", logits, [[0, 2, -100], [3, -100, -100]]) == pytest.approx(2 / 3)
    assert value({"f1": "micro"}, logits, [[0, 2, -100], [3, -100, -100]]) == pytest.approx(2 / 3)
    with pytest.raises(ModelError, match="every label is -100"):
        value("top1", logits, [[-100] * 3] * 2)


def test_span_wants_the_first_and_the_last_token_of_an_answer() -> None:
    starts = np.array([[0, 5, 0, 0], [9, 0, 0, 8], [0, 0, 4, 0], [0, NAN, 0, 0]], np.float32)
    ends = np.array([[0, 0, 5, 0], [0, 0, 7, 0], [6, 0, 0, 5], [0, 9, 0, 0]], np.float32)
    both = np.stack([starts, ends], axis=-1)
    assert value("span", both, [[1, 2], [0, 2], [2, 3], [1, 1]]) == 0.75
    assert value("span", both, [[1, 2], [0, 3], [-100, -100], [-100, -100]]) == 0.5
    with pytest.raises(ModelError, match="span: labels of shape"):
        value("span", both, [1, 2, 3, 1])
