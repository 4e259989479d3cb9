"""Why two engines differ, said once, by the input that it was."""

from __future__ import annotations

from typing import Any

import pytest

from engineworks.measure.latency_report import Latency
from engineworks.report.why.why import Explanation, Side, explain
from tests.typed_reports import latency as report_with
from tests.typed_reports import shape_json

EXPORT: dict[str, Any] = {"key": "e1", "version": 1, "params": {}, "digests": {"m.onnx": "a" * 64}, "libraries": {}}
CALIBRATE = {"key": "c1", "version": 1, "params": {"method": "entropy"}, "digests": {"samples": "b" * 64}}
BUILD: dict[str, Any] = {"key": "b1", "version": 2, "params": {"precision": "int8"}, "libraries": {"ort": "1.31.1"}}
MEASURE = {"key": "m1", "version": 1, "params": {}, "hardware": {"gpu": "H100", "driver": "580"}}
DOCUMENTS: dict[str, dict[str, Any]] = {
    "export": EXPORT, "fold": {**EXPORT, "key": "f1"}, "calibrate": CALIBRATE, "build": BUILD, "measure": MEASURE,
}  # fmt: skip


def side(**given: Any) -> Side:
    return Side(
        **{"engine": "r/int8/cpu", "run": "1", "verdict": "pass", "started_at": 0.0, "documents": DOCUMENTS, **given}
    )


def changed(kind: str, **parts: Any) -> Explanation:
    documents = {**DOCUMENTS, kind: {**DOCUMENTS[kind], **parts, "key": "other"}}
    return explain(side(), side(run="2", documents=documents))


@pytest.mark.parametrize(
    ("step", "part", "kind", "words"),
    [
        ("export", {"digests": {"m.onnx": "c" * 64}}, "model", "m.onnx: other contents"),
        ("calibrate", {"digests": {"samples": "c" * 64}}, "data", "samples: other contents"),
        ("build", {"libraries": {"ort": "1.32.0"}}, "version", "ort: 1.31.1 → 1.32.0"),
        ("measure", {"hardware": {"gpu": "H200", "driver": "580"}}, "hardware", "gpu: H100 → H200"),
        ("build", {"version": 3}, "version", "own step build: version 2 → 3"),
        ("build", {"params": {"precision": "fp16"}}, "setting", "precision: int8 → fp16"),
    ],
)  # fmt: skip
def test_each_input_is_named(step: str, part: dict[str, Any], kind: str, words: str) -> None:
    found = changed(step, **part)
    assert [(d.kind, d.steps) for d in found.differences] == [(kind, (step,))]
    assert words in found.differences[0].what
    assert found.rebuilt == (step,)


def test_a_line_of_the_recipe_is_said_once_and_not_again_as_a_setting() -> None:
    documents = {**DOCUMENTS, "calibrate": {**CALIBRATE, "key": "c2", "params": {"method": "minmax"}}}
    before = side(resolved={"calibration": {"method": "entropy"}})
    after = side(documents=documents, resolved={"calibration": {"method": "minmax"}})
    (only,) = explain(before, after).differences
    assert (only.kind, only.what) == ("recipe", "calibration.method: entropy → minmax")


def test_nothing_differs_between_equal_inputs() -> None:
    found = explain(side(), side(run="2"))
    assert (found.differences, found.effects, found.rebuilt) == ((), (), ())


def test_the_description_explains_nothing() -> None:
    assert not explain(side(resolved={"description": "a"}), side(resolved={"description": "b"})).differences


def test_older_runs_without_all_documents_are_called_incomplete() -> None:
    assert not explain(side(documents={"build": BUILD}), side()).complete


def latency(p50: float, low: float, high: float, **more: Any) -> Latency:
    return report_with({"one": shape_json(p50, median_interval=[low, high], **more)})


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (latency(2.0, 1.9, 2.1), "100.0% slower: the 95% intervals do not meet"),
        (latency(1.05, 0.95, 1.1), "no difference: the 95% intervals overlap"),
        (latency(2.0, 1.9, 2.1, complaints=["hot"]), "something was wrong with the device"),
    ],
)
def test_a_latency_counts_only_beyond_its_interval(after: Latency, words: str) -> None:
    (effect,) = explain(side(latency=latency(1.0, 0.9, 1.1)), side(latency=after)).effects
    assert words in effect.note


def test_checks_that_turned_are_told_with_their_sentence() -> None:
    checks = [({"name": "cosine[y]", "verdict": word, "message": f"it is a {word}."},) for word in ("pass", "fail")]
    found = explain(side(checks=checks[0]), side(verdict="fail", checks=checks[1])).effects
    assert [(e.name, e.before, e.after) for e in found] == [
        ("verdict", "pass", "fail"), ("check cosine[y]", "pass", "fail"),
    ]  # fmt: skip
    assert found[1].note == "it is a fail."
