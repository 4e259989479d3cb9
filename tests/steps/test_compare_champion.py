"""Champion and candidate beside each other, with real sessions of ONNX Runtime; whether the machine is quiet is not the
question here, so the watch says nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engineworks.engines.backends import onnxruntime
from engineworks.engines.backends.base import Serving
from engineworks.errors import RunError
from engineworks.host.file_digests import digest_file
from engineworks.measure.champion import Champion
from engineworks.measure.champion_report import ChampionComparison
from engineworks.measure.regression import CONFIDENCE, LOOKS
from engineworks.plan.champion_lookup import ChampionError
from engineworks.steps import compare_champion
from engineworks.steps.job import StepJob
from engineworks.tensors import TensorSpec
from tests.typed_reports import write_sidecar

X, Y = TensorSpec("x", "float32", ("batch", 64)), TensorSpec("y", "float32", ("batch", 4))


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    class Quiet:
        def sample(self) -> Mapping[str, object]:
            return {}

        def complaints(self, readings: Sequence[Mapping[str, object]]) -> Sequence[str]:
            return []

    monkeypatch.setattr(onnxruntime, "device_watch", Quiet)


def engine(folder: Path, width: int, seed: int = 0) -> Path:
    """A build artifact: two MatMuls through `width` columns."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    weights = {"a": random.normal(size=(64, width)), "b": random.normal(size=(width, 4))}
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "engine")
    write_sidecar(folder, inputs=(X,), outputs=(Y,))
    return folder


def job(tmp_path: Path, candidate: Path, champion: Path, max_s: float = 60.0) -> StepJob:
    """`champion` stands where the run's artifacts would be downloaded to; the store is empty."""
    np.savez(tmp_path / "data.npz", x=np.ones((8, 64), np.float32))
    samples = {"arrays": {"x": "x"}, "count": 8, "total": 8, "specs": [X.to_json()]}
    given = {
        "at": {"one": {"dims": {"batch": 8}}}, "inputs": [X.to_json()], "samples": samples, "limit": 0.05,
        "target": {"backend": "onnxruntime", "compute_capability": [], "options": {"threads": 1}},
        "attempt": 0, "confidence": CONFIDENCE, "serving": Serving().to_json(),
    }  # fmt: skip
    who = Champion("tiny/fp32/cpu", "tiny", "3", digest_file(champion / "engine"), "0" * 64, "run")
    places = {"artifacts": str(tmp_path), "store": str(tmp_path / "store"), "tracking_uri": None}
    out = tmp_path / "out"
    out.mkdir()
    unkeyed = {
        "evaluation": str(tmp_path / "data.npz"), "champion": who.to_json(), "places": places, "conditions": "c",
        "max_s": max_s, "earlier": [],
    }  # fmt: skip
    return StepJob("tiny/fp32/cpu/compare-champion", given, {"build": candidate}, unkeyed, out, lambda _: None)


@pytest.fixture
def at_hand(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets the champion's engine be found in a folder."""

    def put(folder: Path) -> None:
        from contextlib import nullcontext

        monkeypatch.setattr(compare_champion, "engine_of", lambda *_: nullcontext(folder))

    return put


def report(done: StepJob) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((done.out / "champion_comparison.json").read_text(encoding="utf-8"))
    return found


def here(payload: dict[str, Any]) -> compare_champion.Measure:
    return lambda seed: compare_champion.attempt_in_child({**payload, "seed": seed})


def payload(one: StepJob, champion: Path) -> dict[str, Any]:
    folders = {"champion": str(champion), "candidate": str(one.inputs["build"])}
    params = {**one.params, "max_s": one.unkeyed["max_s"]}
    return {"folders": folders, "params": params, "evaluation": one.unkeyed["evaluation"]}


def test_the_same_bytes_are_not_measured(tmp_path: Path) -> None:
    same = engine(tmp_path / "same", 64)
    done = job(tmp_path, same, same)
    compare_champion.run(done)
    assert report(done)["method"] == "identical"
    assert "attempts" not in report(done)


def test_a_candidate_with_far_more_work_fails_twice(tmp_path: Path) -> None:
    champion, candidate = engine(tmp_path / "champion", 64), engine(tmp_path / "candidate", 64 * 200)
    measure = here(payload(job(tmp_path, candidate, champion), champion))
    found = compare_champion.compare_engines(measure, measure, 1, lambda _: None)
    assert found["shapes"]["one"]["verdict"] == "fail"
    assert found["shapes"]["one"]["interval"][0] > 5
    assert len(found["attempts"]) == 2
    assert all(len(a["rounds"]) >= LOOKS[0] for a in found["attempts"])


def test_the_report_holds_the_attempt_of_another_process_too(
    tmp_path: Path, at_hand: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is made to find the candidate slower; the second is a real one, with too little time to find anything."""
    attempt = compare_champion.attempt_in_child

    def slower(payload: Mapping[str, Any]) -> dict[str, Any]:
        found = attempt(payload)
        for shape in found["shapes"].values():
            shape.update(verdict="fail", ratio=2.0, interval=[1.9, 2.1])
        return found

    monkeypatch.setattr(compare_champion, "attempt_in_child", slower)
    champion = engine(tmp_path / "champion", 64)
    at_hand(champion)
    done = job(tmp_path, engine(tmp_path / "candidate", 128), champion, max_s=0.001)
    compare_champion.run(done)
    attempts = ChampionComparison.read(done.out).attempts
    assert [a.shapes["one"].verdict for a in attempts] == ["fail", "inconclusive"]


def test_a_candidate_with_far_less_work_passes_at_once(tmp_path: Path) -> None:
    champion, candidate = engine(tmp_path / "champion", 64 * 200), engine(tmp_path / "candidate", 64)
    measure = here(payload(job(tmp_path, candidate, champion), champion))
    found = compare_champion.compare_engines(measure, measure, 1, lambda _: None)
    assert found["shapes"]["one"]["verdict"] == "pass"
    assert len(found["attempts"]) == 1


def test_a_second_measurement_that_breaks_is_no_fail(tmp_path: Path) -> None:
    champion, candidate = engine(tmp_path / "champion", 64), engine(tmp_path / "candidate", 64 * 200)

    def broken(seed: int) -> dict[str, Any]:
        raise RunError("out of memory")

    found = compare_champion.compare_engines(
        here(payload(job(tmp_path, candidate, champion), champion)), broken, 1, lambda _: None
    )
    assert found["shapes"]["one"]["verdict"] == "inconclusive"
    assert "came to nothing: out of memory" in found["shapes"]["one"]["why"]


def test_too_little_time_is_inconclusive(tmp_path: Path, at_hand: Any) -> None:
    champion, candidate = engine(tmp_path / "champion", 64), engine(tmp_path / "candidate", 64 * 200)
    at_hand(champion)
    done = job(tmp_path, candidate, champion, max_s=0.001)
    compare_champion.run(done)
    found = report(done)
    assert (found["method"], found["shapes"]["one"]["verdict"]) == ("measured", "inconclusive")
    assert "an interval needs 11" in found["shapes"]["one"]["why"]


def test_the_second_measurement_is_in_another_process(tmp_path: Path) -> None:
    from engineworks.host.child import ChildPool

    champion = engine(tmp_path / "champion", 64)
    one = job(tmp_path, champion, champion, max_s=0.001)
    with ChildPool() as pool:
        first = compare_champion._in_fresh_process(pool, payload(one, champion), one, 1)
        assert set(first["shapes"]) == {"one"}
        assert not pool._idle  # and it does nothing after


def test_a_champion_that_is_gone_leaves_its_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    champion, candidate = engine(tmp_path / "champion", 64), engine(tmp_path / "candidate", 128)

    def gone(*_: object) -> Any:
        raise ChampionError("its engine is gone")

    monkeypatch.setattr(compare_champion, "engine_of", gone)
    monkeypatch.setattr(compare_champion, "history_of", lambda *_: {"one": [("d", 1.0)], "other": [("d", 9.0)]})
    done = job(tmp_path, candidate, champion)
    compare_champion.run(done)
    found = report(done)
    assert found["method"] == "history"
    assert found["history"] == {"one": [["d", 1.0]]}
    assert found["why"] == "its engine is gone"


def test_it_is_known_which_of_the_two_does_not_load(tmp_path: Path, at_hand: Any, monkeypatch: Any) -> None:
    sound, broken = engine(tmp_path / "sound", 64), engine(tmp_path / "broken", 128)
    (broken / "engine").write_bytes(b"not an engine")
    write_sidecar(broken, inputs=(X,), outputs=(Y,))  # as it was built: wrong, not altered
    monkeypatch.setattr(compare_champion, "history_of", lambda *_: {})
    at_hand(broken)
    done = job(tmp_path, sound, broken)
    compare_champion.run(done)
    assert report(done)["method"] == "history"
    at_hand(sound)
    (done.out / "champion_comparison.json").unlink()
    done.out.rmdir()
    with pytest.raises(RunError):
        compare_champion.run(job(tmp_path, broken, sound))
