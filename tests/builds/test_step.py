"""A step run for real: published whole, or not at all; its log kept either way."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engineworks.builds.step import Outcome, _environment, run_step
from engineworks.engines.backends import attempts
from engineworks.errors import ChildDefect, FoldError, StepError, StoreError, TimeLimitError
from engineworks.fingerprint import digest_of
from engineworks.host.child import ChildPool, default_pool
from engineworks.measure.accuracy_report import Accuracy
from engineworks.plan.kinds import STEP_KINDS, StepName
from engineworks.plan.steps import Step
from engineworks.store.store import Store
from tests.typed_reports import accuracy, fold_json, sidecar, write_sidecar


def step(params: Mapping[str, Any], inputs: Mapping[str, str] | None = None, **unkeyed: Any) -> Step:
    document = {"step": "fold", "params": dict(params), "inputs": dict(inputs or {})}
    return Step("fold", "tiny/fold", digest_of(document), document, inputs or {}, unkeyed)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The module of the step is one of the test's own, in the children too."""
    (tmp_path / "fake_step.py").write_text(
        f"REPORTS = {{'build': ('engine.json', {json.dumps(sidecar().to_json())!r}), 'fold': ('fold.json', {fold_json({})!r})}}"
        """
import hashlib, os, sys, time
from pathlib import Path
from engineworks.errors import FoldError

def main(payload):
    print("working on", payload["id"])
    sys.stdout.flush()
    out = Path(payload["out"])
    (out / "half.txt").write_text("half")
    act = payload["params"]["act"]
    if act == "fail":
        raise FoldError("no way", hint="try another")
    if act == "defect":
        raise ZeroDivisionError("oops")
    if act == "crash":
        os.kill(os.getpid(), 11)
    if act == "crash twice" and len(payload["crashes"]) < 2:
        os.kill(os.getpid(), 6)
    if act == "killed":
        os.kill(os.getpid(), 9)
    if act == "hang":
        time.sleep(60)
    (out / "half.txt").write_text("whole")
    digests = {"half.txt": "0" * 64} if act == "forged" else {}
    if payload["kind"] in REPORTS:
        name, text = REPORTS[payload["kind"]]
        (out / name).write_text(text)
        digests[name] = hashlib.sha256(text.encode()).hexdigest()
    return {"reports": digests}
""",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("engineworks.builds.step.STEP_FUNCTION", "fake_step:main")


def run(store: Store, one: Step, pool: ChildPool | None = None) -> Outcome:
    return run_step(one, store, pool or default_pool(), echo=lambda line: None)


@pytest.mark.usefixtures("steps")
def test_a_step_is_run_once_and_its_log_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert run(store, step({"act": "work"})).how == "run"
    assert run(store, step({"act": "work"})).how == "reused"
    artifact = store.require(step({"act": "work"}).key)
    assert artifact.file("half.txt").read_text() == "whole"
    assert "working on tiny/fold" in artifact.file("log.txt").read_text()


@pytest.mark.usefixtures("steps")
def test_a_report_that_was_altered_before_it_was_stored_is_not_stored(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(StoreError, match=r"tiny/fold: half.txt was altered before it was stored; build again"):
        run(store, step({"act": "forged"}))
    assert not store.has(step({"act": "forged"}).key)


@dataclass(frozen=True)
class Answer:
    """A pool whose children leave this file, and answer with the digest of that text."""

    text: str
    answered: str

    def run(self, function: str, payload: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        (Path(payload["out"]) / "accuracy.json").write_text(self.text, encoding="utf-8")
        return {"reports": {"accuracy.json": hashlib.sha256(self.answered.encode()).hexdigest()}}


GOOD = json.dumps(accuracy().to_json())


@pytest.mark.parametrize(
    ("text", "answered", "why"),
    [
        ('{"outputs": {}, "metric": null, "samples": 9, "batches": [1]}', "", "did not write the accuracy.json"),
        (GOOD, "", "did not write the accuracy.json"),
        (json.dumps({**accuracy().to_json(), "outputs": {}}), None, "accuracy.json: 'outputs' is not as documented"),
        (GOOD.replace("0.99999", "NaN"), None, "should be a finite number"),
        (GOOD[:-1] + ', "verdict": "pass"}', None, "unknown key 'verdict'"),
    ],
)
def test_a_report_that_is_forged_or_incomplete_is_not_stored(
    tmp_path: Path, text: str, answered: str | None, why: str
) -> None:
    store, document = Store(tmp_path / "store"), {"step": "compare", "params": {}, "inputs": {}}
    one = Step("compare", "tiny/compare", digest_of(document), document, {}, {})
    with pytest.raises(StepError, match=re.escape(why)) as caught:
        run(store, one, cast(ChildPool, Answer(text, text if answered is None else answered)))
    assert str(caught.value).startswith("tiny/compare: ")
    assert store.get(one.key) is None
    assert run(store, one, cast(ChildPool, Answer(GOOD, GOOD))).how == "run"
    assert store.require(one.key).read(Accuracy) == accuracy()


@pytest.mark.usefixtures("steps")
def test_a_report_that_was_altered_after_it_was_stored_is_not_read(tmp_path: Path) -> None:
    with Store(tmp_path / "store").writing("0" * 64, {}, "tiny/compare") as writing:
        (writing.folder / "accuracy.json").write_text("{}", encoding="ascii")
    assert writing.published is not None
    assert writing.published.read_json("accuracy.json") == {}
    file = writing.published.file("accuracy.json")
    file.chmod(0o644)
    file.write_text('{"metric": 1}', encoding="ascii")
    with pytest.raises(StoreError, match=r"accuracy.json: was altered since it was stored; build again"):
        writing.published.read_json("accuracy.json")


@pytest.mark.usefixtures("steps")
@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [
        ("fail", FoldError, "no way; try another"),
        ("defect", ChildDefect, "tiny/fold raised ZeroDivisionError: oops"),
        ("crash", FoldError, "tiny/fold crashed with SIGSEGV"),
        ("hang", TimeLimitError, "tiny/fold did not end within 2 s"),
    ],
)
def test_a_failure_stores_nothing_and_is_told_in_one_message(
    tmp_path: Path, act: str, kind: type[Exception], message: str
) -> None:
    store = Store(tmp_path / "store")
    one = step({"act": act}, time_limit_s=2.0 if act == "hang" else 100.0)
    with pytest.raises(kind) as caught:
        run(store, one)
    assert str(caught.value).startswith(message)
    log = caught.value.log  # type: ignore[attr-defined]
    assert ("working on tiny/fold" in log) or act == "defect"
    assert store.get(one.key) is None
    assert list((store.root / "partial").iterdir()) == []


@pytest.mark.usefixtures("steps")
def test_a_build_that_crashes_is_tried_in_the_backends_other_ways(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    one = replace(step({"act": "crash twice", "target": {"backend": "onnxruntime"}}), kind="build")
    assert run(store, one).how == "run"
    log = store.require(one.key).file("log.txt").read_text()
    assert log.count("crashed with SIGABRT") == log.count("trying again with fewer optimizations") == 2
    assert log.splitlines().count("working on tiny/fold") == 3


@pytest.mark.usefixtures("steps")
@pytest.mark.parametrize(
    ("act", "kind", "backend", "attempts"),
    [
        ("crash", "build", "onnxruntime", attempts("onnxruntime")),
        ("crash", "lower", "tensorrt_rtx", attempts("onnxruntime")),
        ("crash", "build", "tensorrt_rtx", 1),  # there is no other way
        ("crash", "lowered_reference", "onnxruntime", 2),  # the second goes without it
        ("crash", "compare", "onnxruntime", 1),  # an engine is run as it was built, or not at all
        ("killed", "build", "onnxruntime", 1),  # for want of memory, or by somebody
    ],
)
def test_crashes_end_after_the_last_way(tmp_path: Path, act: str, kind: StepName, backend: str, attempts: int) -> None:
    one = replace(step({"act": act, "target": {"backend": backend}}), kind=kind)
    with pytest.raises(StepError) as caught:
        run(Store(tmp_path / "store"), one)
    assert caught.value.log.splitlines().count("working on tiny/fold") == attempts
    assert ("each with fewer optimizations" in caught.value.message) == (attempts > 1)


def test_an_input_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is missing from the store"):
        run(Store(tmp_path), step({"act": "work"}, {"export": "0" * 64}))


def test_every_step_has_a_module_with_run() -> None:
    import importlib

    for kind in STEP_KINDS:
        assert callable(importlib.import_module(f"engineworks.steps.{kind}").run)


def test_an_engine_gets_the_environment_that_it_wants(tmp_path: Path) -> None:
    """A vendor's library reads it once: engines that want something else must not share the process."""
    fake = {"target": {"backend": "tensorrt_rtx"}}
    (tmp_path / "engine").write_bytes(b"engine")
    step = SimpleNamespace(kind="compare", params=fake)
    marked = {"ENGINEWORKS_CHILD": "runs engines"}
    for details, wanted in (({}, marked), ({"environment": {"SWITCH": "0"}}, {**marked, "SWITCH": "0"})):
        write_sidecar(tmp_path, details=details)
        assert _environment(step, {"build": tmp_path}) == wanted  # type: ignore[arg-type]
    assert _environment(SimpleNamespace(kind="build", params=fake), {"build": tmp_path}) == {}  # type: ignore[arg-type]
