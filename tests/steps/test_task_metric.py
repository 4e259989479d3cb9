"""The task metric of both sides: a custom metric that raises, wavers, or works in place; classes that are lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engineworks.errors import EngineworksError, ModelError
from engineworks.measure.accuracy_report import DeadClass, MetricValues
from engineworks.measure.gates.gates import evaluate_gates
from engineworks.measure.task_metrics import dead_classes
from engineworks.recipe.recipe import Limits
from engineworks.recipe.samples import open_samples
from engineworks.steps.job import StepJob
from engineworks.steps.task_metric import TaskComparison
from engineworks.tensors import TensorSpec
from tests.typed_reports import accuracy

X = TensorSpec("x", "float32", ("batch", 3))
LABELS = np.arange(60) % 3


def compared(
    folder: Path,
    metric: dict[str, Any],
    engine: NDArray[Any],
    reference: NDArray[Any],
    labels: NDArray[Any] = LABELS,
    slices: NDArray[Any] | None = None,
) -> MetricValues:
    x = np.zeros((len(labels), 3), np.float32)
    named = {} if slices is None else {"part": slices}
    np.savez(folder / "data.npz", x=x, y=labels, **named)
    samples = open_samples(folder / "data.npz", [X], {}, samples=None, labels="y", slices="part" if named else None)
    params = {"metric": metric, "output": None}
    job = StepJob("t/compare", params, {}, {"evaluation": "", "folder": str(folder)}, folder, lambda _: None)
    task = TaskComparison(job, samples, {"y": 0})
    half = len(labels) // 2
    for part in (slice(0, half), slice(half, None)):
        task.add({"x": x[part]}, {"y": engine[part]}, {"y": reference[part]})
    found = task.result()
    assert found is not None
    return found


def own(folder: Path, body: str, name: str) -> dict[str, Any]:
    """A custom metric; the module's name is its test's, for modules are imported once."""
    (folder / f"{name}.py").write_text(
        f"import numpy as np\ndef score(outputs, labels, inputs):\n{body}", encoding="utf-8"
    )
    return {"name": "python", "python": f"{name}:score"}


RIGHT = np.eye(3, dtype=np.float32)[LABELS]


def test_a_metric_that_raises_says_where(tmp_path: Path) -> None:
    metric = own(tmp_path, "    return 1 / len(labels[:0])\n", "metric_raises")
    with pytest.raises(EngineworksError, match=r"metric_raises.py:3: .*raised ZeroDivisionError: division by zero"):
        compared(tmp_path, metric, RIGHT, RIGHT)


@pytest.mark.parametrize("value", ["None", "'high'", "np.zeros(3)", "[0.5]"])
def test_a_metric_that_gives_no_number_is_told(tmp_path: Path, value: str) -> None:
    metric = own(tmp_path, f"    return {value}\n", f"metric_gives_{abs(hash(value))}")
    with pytest.raises(ModelError, match="not a number"):
        compared(tmp_path, metric, RIGHT, RIGHT)


@pytest.mark.parametrize("value", ["float('nan')", "float('inf')", "-float('inf')"])
def test_a_metric_that_is_not_finite_fails_every_limit(tmp_path: Path, value: str) -> None:
    found = compared(tmp_path, own(tmp_path, f"    return {value}\n", f"metric_is_{abs(hash(value))}"), RIGHT, RIGHT)
    assert (found.engine, found.reference, found.ratio) == (None, None, None)
    for limits in (Limits(metric=0.5), Limits(metric_ratio=0.5), Limits(metric_delta=9), Limits(metric_between=(0, 9))):
        verdict = evaluate_gates(accuracy(found), None, limits, {})
        assert (verdict.verdict, "not a number" in verdict.checks[1].message) == ("fail", True)


def test_a_metric_that_throws_dice_decides_nothing(tmp_path: Path) -> None:
    found = compared(tmp_path, own(tmp_path, "    return float(np.random.rand())\n", "metric_dice"), RIGHT, RIGHT)
    assert found.repeated not in (None, found.engine)
    assert evaluate_gates(accuracy(found), None, Limits(metric=0.0), {}).verdict == "inconclusive"


def test_what_a_metric_does_to_its_arguments_stays_with_it(tmp_path: Path) -> None:
    body = "    outputs['y'][:] += 1\n    labels += 1\n    inputs['x'] += 1\n"
    metric = own(
        tmp_path, f"{body}    return float(outputs['y'].sum() + labels.sum() + inputs['x'].sum())\n", "in_place"
    )
    found = compared(tmp_path, metric, RIGHT, RIGHT)
    assert found.engine == found.reference
    assert found.repeated is None


def lost(rows: NDArray[np.float32], one: int) -> NDArray[np.float32]:
    spoiled = rows.copy()
    spoiled[one == LABELS_OF_MANY] = np.eye(rows.shape[1], dtype=np.float32)[(one + 1) % rows.shape[1]]
    return spoiled


LABELS_OF_MANY = np.concatenate([np.zeros(1000, int), np.full(6, 1), np.full(4, 2)])
MANY = np.eye(3, dtype=np.float32)[LABELS_OF_MANY]


@pytest.mark.parametrize("metric", [{"name": "top1"}, {"name": "f1", "f1": "micro", "threshold": 0.5}], ids=str)
def test_a_rare_class_that_is_lost_is_named_and_one_of_four_samples_is_not(tmp_path: Path, metric: Any) -> None:
    if metric["name"] == "f1":
        pytest.importorskip("sklearn")
    found = compared(tmp_path, metric, lost(MANY, 1), MANY, LABELS_OF_MANY)
    assert found.ratio is not None
    assert found.ratio > 0.99
    assert found.dead_classes == (DeadClass(1, 6, 6),)
    assert compared(tmp_path, metric, lost(MANY, 2), MANY, LABELS_OF_MANY).dead_classes == ()


def test_a_class_that_fp32_does_not_know_either_is_not_lost() -> None:
    labels = np.repeat([0, 1], 10)
    reference = np.where(np.arange(20) < 16, 0, 1)[:, np.newaxis]  # 4 of 10 of class 1: it does not really know it
    assert dead_classes(np.zeros((20, 1), int), reference, labels) == []
    assert dead_classes(np.zeros((20, 1), int), labels[:, np.newaxis], labels) == [(1, 10, 10)]
    places = np.tile(labels, (3, 1))  # one class per place, as in segmentation
    assert len(dead_classes(np.zeros((3, 20, 1), int), places[..., np.newaxis], places)) == 1


@pytest.mark.parametrize("metric", [{"name": "top1"}, {"name": "cosine"}, {"name": "auc"}], ids=str)
def test_every_slice_has_the_metric_of_its_own_rows(tmp_path: Path, metric: Any) -> None:
    if metric["name"] == "auc":
        pytest.importorskip("sklearn")
    rows = np.tile(np.eye(3, dtype=np.float32), (20, 1))
    engine = np.where(np.arange(60)[:, np.newaxis] < 30, rows, rows[:, ::-1])
    names = np.repeat(["first", "second"], 30)
    first, second = compared(tmp_path, metric, engine, rows, np.arange(60) % 3, names).slices
    assert (first.name, first.samples, first.ratio) == ("first", 30, pytest.approx(1))
    assert (second.ratio or 1.0) < 0.6


def test_ids_are_no_slices(tmp_path: Path) -> None:
    labels = np.arange(300) % 3
    rows = np.eye(3, dtype=np.float32)[labels]
    with pytest.raises(ModelError, match="300 different names among 300 samples, limit 200"):
        compared(tmp_path, {"name": "top1"}, rows, rows, labels, np.arange(300))


def test_a_metric_of_ones_own_is_judged_on_slices_too(tmp_path: Path) -> None:
    body = "    return float((outputs['y'].argmax(1) == labels).mean())\n"
    engine = np.where(np.arange(60)[:, np.newaxis] < 30, RIGHT, np.roll(RIGHT, 1, axis=1))
    names = np.repeat(["first", "second"], 30)
    first, second = compared(tmp_path, own(tmp_path, body, "by_slice"), engine, RIGHT, LABELS, names).slices
    assert (first.ratio, second.ratio) == (1.0, 0.0)


def test_a_function_of_ones_own_names_the_slices(tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text("def by_label(inputs, labels):\n    return labels % 2\n", encoding="utf-8")
    np.savez(tmp_path / "data.npz", x=np.zeros((60, 3), np.float32), y=LABELS)
    samples = open_samples(tmp_path / "data.npz", [X], {}, samples=None, labels="y")
    params = {"metric": {"name": "top1"}, "output": None}
    job = StepJob("t/compare", params, {}, {"evaluation": "", "folder": str(tmp_path)}, tmp_path, lambda _: None)
    task = TaskComparison(job, replace(samples, slices="python:parts:by_label"), {"y": 0})
    task.add({"x": np.zeros((60, 3), np.float32)}, {"y": RIGHT}, {"y": RIGHT})
    found = task.result()
    assert found is not None
    assert [(part.name, part.samples) for part in found.slices] == [("0", 40), ("1", 20)]


def test_samples_without_a_name_are_a_slice_of_their_own(tmp_path: Path) -> None:
    names = np.array(["a", "", "  ", " a "])[np.arange(60) % 4]
    found = compared(tmp_path, {"name": "top1"}, RIGHT, RIGHT, LABELS, names)
    assert [(part.name, part.samples) for part in found.slices] == [("(unnamed)", 30), ("a", 30)]


def test_rows_of_another_shape_have_cosine_0_and_keep_their_slices(tmp_path: Path) -> None:
    engine = np.pad(RIGHT, ((0, 0), (0, 1)))
    found = compared(tmp_path, {"name": "cosine"}, engine, RIGHT, slices=np.where(LABELS == 0, "a", "b"))
    assert found.engine == 0
    assert [(s.name, s.samples, s.ratio) for s in found.slices] == [("a", 20, 0), ("b", 40, 0)]


def test_values_that_are_equally_infinite_leave_the_cosine_of_their_row_alone(tmp_path: Path) -> None:
    masked = np.pad(RIGHT, ((0, 0), (0, 2)), constant_values=-np.inf)
    masked[:, 4] = np.nan
    assert compared(tmp_path, {"name": "cosine"}, masked, masked).engine == pytest.approx(1)
    other = masked.copy()
    other[0, 3] = 1
    assert compared(tmp_path, {"name": "cosine"}, other, masked).engine is None
