"""Engines are compared as they are served: sessions with faults of every kind, made by a fake runner, must fail and say
where; healthy ones must pass."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engineworks.engines import backends
from engineworks.engines.backends.base import RunTimes
from engineworks.errors import RunError
from engineworks.measure import served as served_limits
from engineworks.measure.accuracy_report import Accuracy
from engineworks.measure.check import Check
from engineworks.measure.gates.gates import evaluate_gates
from engineworks.measure.served_checks import synthetic_warnings
from engineworks.measure.served_report import LoweredFacts, Served
from engineworks.recipe.recipe import Limits
from engineworks.steps import compare, lowered_reference, reference
from engineworks.steps.job import StepJob
from engineworks.tensors import TensorSpec
from tests.typed_reports import write_sidecar

Array = NDArray[Any]
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
WIDTH = 6
PROFILES = {"small": {"batch": [1, 2, 8]}, "bulk": {"batch": [4, 16, 40]}}
TEXT = {"text": {"batch": [1, 4, 8], "length": [2, 8, 24]}}


@dataclass
class FakeSession:
    """Runs the right model by ONNX Runtime, then spoils what it gives. log: shape of the first input of every run."""

    right: Any
    spoil: Callable[[FakeSession, Mapping[str, Array], dict[str, Array]], dict[str, Array]]
    log: list[tuple[int, ...]] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    timed: int = 0

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        return self.right.inputs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        return self.right.outputs

    @property
    def facts(self) -> Mapping[str, object]:
        return {}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.log.append(next(iter(feeds.values())).shape)
        given = {name: np.array(value) for name, value in self.right.run(feeds).items()}
        return self.spoil(self, feeds, given)

    def time_runs(self, feeds: Mapping[str, Array], runs: int, *, copies: bool = False) -> RunTimes:
        self.timed += runs
        return RunTimes((100.0,) * runs, (100.0,) * runs)

    def close(self) -> None:
        pass


def healthy(session: FakeSession, feeds: Mapping[str, Array], y: dict[str, Array]) -> dict[str, Array]:
    return y


def linear(folder: Path, dims: Sequence[int | str] = ("batch", WIDTH), *, nodes: Any = None, outs: Any = None) -> Path:
    """y = relu(x @ w), unless other nodes are given."""
    random = np.random.default_rng(0)
    weight = numpy_helper.from_array(random.normal(size=(WIDTH, 4)).astype(np.float32), "w")
    nodes = nodes or [helper.make_node("MatMul", ["x", "w"], ["y"])]
    outs = outs or [helper.make_tensor_value_info("y", FLOAT, [*dims[:-1], 4])]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", FLOAT, list(dims))], outs, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    folder.mkdir(exist_ok=True)
    onnx.save(model, str(folder / "model.onnx"))
    return folder


@dataclass
class Bench:
    """A reference and an engine of one model, compared by the real steps. `session`: the fake of the last run."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    sessions: list[FakeSession] = field(default_factory=list)

    def compare(
        self, spoil: Any = healthy, *, model: Path | None = None, dims: Sequence[int | str] = ("batch", WIDTH),
        profiles: Mapping[str, Any] = PROFILES, precision: str = "fp32", data: Sequence[int] = (),
        capability: Sequence[str] = (), engine: Path | None = None, ranges: Mapping[str, Any] | None = None,
        limits: Limits | None = None, lowered: Path | None = None, count: int = 40,
    ) -> list[Check]:  # fmt: skip
        model = model or linear(self.folder / "fold", dims)
        self._register(engine or model, spoil)
        shape = tuple(data) or tuple(d for d in dims[1:] if isinstance(d, int))
        np.savez(self.folder / "data.npz", x=np.random.default_rng(1).normal(size=(count, *shape)).astype(np.float32))
        batch = dims[0] if isinstance(dims[0], str) else None
        samples = {
            "arrays": {"x": "x"},
            "count": count,
            "total": count,
            "specs": [TensorSpec("x", "float32", tuple(dims)).to_json()],
        }
        plan = {
            "profiles": profiles, "batch": batch, "fixed_batch": 1 if batch else dims[0], "ranges": ranges or {},
        }  # fmt: skip
        params = {
            "samples": samples, "batches": [1, 8] if batch else [dims[0]], "shapes": plan, "labels": None, "metric": None,
            "serving": {"cuda_graphs": False, "kernels": "lazy"},
            "output": None, "target": {"backend": "fake", "compute_capability": list(capability), "options": {}},
        }  # fmt: skip
        build = self.folder / "build"
        build.mkdir(exist_ok=True)
        (build / "engine").write_bytes(b"of the fake backend")
        write_sidecar(build, precision=precision)
        unkeyed = {"evaluation": str(self.folder / "data.npz")}
        reference.run(StepJob("t/reference", params, {"fold": model}, unkeyed, self.folder, lambda _: None))
        own = self.folder / "lowered"
        own.mkdir(exist_ok=True)
        folded = lowered is None
        params |= {"ranges": plan["ranges"], "folded": folded}
        inputs = {"lower": model if folded else lowered, "reference": self.folder}
        lowered_reference.run(StepJob("t/lowered-reference", params, inputs, unkeyed, own, lambda _: None))
        inputs = {"build": build, "reference": self.folder, "lowered": own}
        compare.run(StepJob("t/compare", params, inputs, unkeyed, self.folder, lambda _: None))
        self.report = json.loads((self.folder / "accuracy.json").read_text(encoding="utf-8"))
        return list(evaluate_gates(Accuracy.from_json(self.report), None, limits or Limits(), {}).checks)

    def failures(self, spoil: Any = healthy, **options: Any) -> dict[str, str]:
        return {c.name: c.message for c in self.compare(spoil, **options) if c.verdict != "pass"}

    def _register(self, model: Path, spoil: Any) -> None:
        from engineworks.engines.backends import onnxruntime

        def load(engine: Path, options: Any, *, serving: Any = None, cache: Any = None, known: Any = ()) -> FakeSession:
            self.sessions.append(
                FakeSession(onnxruntime.load(model / "model.onnx", {"threads": 1, "spinning": False}), spoil)
            )
            return self.sessions[-1]

        module = ModuleType("fake_backend")
        vars(module).update(
            TRAITS=onnxruntime.TRAITS,
            load=load,
            why_not_run=lambda _: None,
            memory_meter=lambda: None,
            device_watch=lambda: None,
        )
        self.monkeypatch.setitem(sys.modules, "fake_backend", module)
        self.monkeypatch.setattr(backends, "BACKENDS", {**backends.BACKENDS, "fake": "fake_backend"})


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


@pytest.mark.parametrize("profiles", [PROFILES, {"one": {"batch": [1, 1, 1]}}, {"pair": {"batch": [2, 2, 2]}}], ids=str)
def test_a_healthy_engine_passes_at_all_its_shapes(bench: Bench, profiles: Any) -> None:
    assert bench.failures(profiles=profiles) == {}
    served = bench.report["served"]
    assert served["failures"] == []
    assert all(v["runs"] >= 12 for v in served["sequence"])
    assert served["notes"] == []


def test_the_sequence_goes_up_and_down_in_every_profile(bench: Bench) -> None:
    bench.compare()
    batches = [n for n, _ in dict.fromkeys((s[0], i // 14) for i, s in enumerate(bench.sessions[0].log[: 15 * 14]))]
    assert batches[:5] == [1, 2, 8, 5, 4]
    assert {1, 2, 8, 5, 4, 16, 40, 29} <= set(batches)
    again = [(v["profile"], v["role"]) for v in bench.report["served"]["sequence"] if v["tour"] == 2]
    assert again == [(p, r) for p in ("bulk", "small") for r in ("max", "min", "opt", "odd")]


def test_wrong_at_max_names_the_shape_and_where_it_was_right(bench: Bench) -> None:
    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        y["y"][17:] *= -1 if len(y["y"]) == 40 else 1
        return y

    sentence = bench.failures(spoil)["shapes[y]"]
    assert sentence.startswith("y: wrong at batch 40 (profile bulk, 7th shape, first run): row ")
    assert "cosine -1" in sentence
    assert "right at batch 1; batch 2; batch 8" in sentence


def test_a_wrong_second_row_is_named(bench: Bench) -> None:
    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        y["y"][1:2] = y["y"][:1]
        return y

    failures = bench.failures(spoil)
    assert "wrong at batch 2 (profile small, 2nd shape, first run): row 1 differs" in failures["shapes[y]"]
    assert "row 1 at batch 2" in failures["rows[y]"]
    assert "from the same sample alone" in failures["rows[y]"]


def test_only_row_0_right(bench: Bench) -> None:
    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        return {"y": np.concatenate([y["y"][:1], np.zeros_like(y["y"][1:])])}

    assert "right at batch 1." in bench.failures(spoil)["shapes[y]"]


def test_rows_that_trade_places(bench: Bench) -> None:
    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        return {"y": np.roll(y["y"], 8, axis=0) if len(y["y"]) == 16 else y["y"]}

    assert "wrong at batch 16" in bench.failures(spoil, precision="int8")["shapes[y]"]


def test_a_graph_that_mixes_rows_fails_though_the_reference_does_so_too(bench: Bench) -> None:
    """y = x @ w + its first row: engine and reference agree, and yet the answer depends on the neighbours."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.array([0], np.int64))),
        helper.make_node("Gather", ["p", "zero"], ["first"], axis=0),
        helper.make_node("Add", ["p", "first"], ["y"]),
    ]
    model = linear(bench.folder / "mixing", nodes=nodes)
    failures = bench.failures(model=model)
    assert list(failures) == ["rows[y]"]
    assert "row 1 at batch 2" in failures["rows[y]"]
    assert "the fp32 reference does so too: in this model rows depend on each other" in failures["rows[y]"]


def test_an_engine_whose_graph_mixes_rows(bench: Bench) -> None:
    nodes = [
        helper.make_node("CumSum", ["x", "zero"], ["c"]),
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.array(0, np.int64))),
        helper.make_node("MatMul", ["c", "w"], ["y"]),
    ]
    engine = linear(bench.folder / "engine", nodes=[nodes[1], nodes[0], nodes[2]])
    failures = bench.failures(engine=engine)
    assert "row 1" in failures["shapes[y]"]
    assert "row 1" in failures["rows[y]"]
    assert "reference does so too" not in failures["rows[y]"]


@pytest.mark.parametrize("broken_from", [11, 14])
def test_wrong_only_after_the_tenth_run(bench: Bench, broken_from: int) -> None:
    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        return y if len(s.log) < broken_from else {"y": y["y"] * 0.5}

    sentence = bench.failures(spoil)["shapes[y]"]
    assert f"wrong at batch 1 (profile small, 1st shape, run {broken_from}): row 0" in sentence


def test_wrong_only_after_a_change_of_shape(bench: Bench) -> None:
    """What was left in the buffers of the larger shape shines through."""

    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        shrunk = len(s.log) > 1 and s.log[-1][0] < s.log[-2][0]
        return {"y": y["y"] + 1} if shrunk else y

    assert "wrong at batch 5 (profile small, 4th shape, first run)" in bench.failures(spoil)["shapes[y]"]


def test_right_on_the_first_visit_wrong_on_the_second(bench: Bench) -> None:
    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        seen = [shape for i, shape in enumerate(s.log) if i == 0 or shape != s.log[i - 1]]
        return {"y": -y["y"]} if seen.count(s.log[-1]) > 1 else y

    sentence = bench.failures(spoil)["shapes[y]"]
    assert "wrong at batch 40 (profile bulk, 7th shape, 2nd visit, first run)" in sentence
    assert "right before that at batch 1; batch 2; batch 8; batch 5; batch 4; batch 16 and 2 more" in sentence


def test_right_at_first_wrong_once_warm_on_a_device(bench: Bench) -> None:
    """Kernels that are swapped in later: only the timed runs bring them in."""

    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        return {"y": -y["y"]} if s.timed else y

    assert "1st shape, run 15 after warm-up)" in bench.failures(spoil, capability=["8.9"])["shapes[y]"]
    assert bench.failures(spoil) == {}  # a CPU has no such kernels: no timed runs


def test_answers_of_the_run_before(bench: Bench) -> None:
    """A graph that was captured with the inputs of its first run gives their answer for ever."""

    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        kept = vars(s).setdefault("kept", {})
        return {"y": kept.setdefault(y["y"].shape, y["y"])}

    assert "wrong at batch 1 (profile small, 1st shape, run 2)" in bench.failures(spoil)["shapes[y]"]


def test_nan_only_at_odd_sizes(bench: Bench) -> None:
    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        if len(y["y"]) == 5:
            y["y"][3, 0] = np.nan
        return y

    failures = bench.failures(spoil, precision="int8")
    assert "batch 5 (profile small, 4th shape, first run): row 3 has 1 values that are NaN" in failures["shapes[y]"]
    assert (
        "y: at batch 5 (profile small) row 3 has 1 values that are NaN or infinite"
        in bench.report["served"]["failures"]
    )


def test_an_engine_that_does_not_run_at_a_shape_is_a_verdict_not_a_crash(bench: Bench) -> None:
    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        if len(y["y"]) == 29:
            raise RunError("out of memory")
        return y

    sentence = bench.failures(spoil)["shapes[y]"]
    assert "the engine did not run at batch 29 (profile bulk, 8th shape): out of memory" in sentence
    assert len(bench.sessions) == 2


def test_missing_rows(bench: Bench) -> None:
    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        return {"y": y["y"][:30]}

    assert "the output has shape [30, 4], the reference [40, 4]" in bench.failures(spoil)["shapes[y]"]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_class_ids(bench: Bench, precision: str) -> None:
    """Outputs of int64 and bool: the right ones pass, a wrong second row fails; below fp32 one tipped class does not."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("ArgMax", ["p"], ["y"], axis=1, keepdims=0),
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.array(0, np.float32))),
        helper.make_node("Greater", ["p", "zero"], ["flags"]),
    ]
    outs = [
        helper.make_tensor_value_info("y", INT64, ["batch"]),
        helper.make_tensor_value_info("flags", BOOL, ["batch", 4]),
    ]
    model = linear(bench.folder / "ids", nodes=nodes, outs=outs)
    assert bench.failures(model=model, precision=precision) == {}

    def second(s: FakeSession, feeds: Any, y: Any) -> Any:
        y["y"][1:2] = (y["y"][1:2] + 1) % 4
        return y

    failures = bench.failures(second, model=model, precision=precision)
    assert set(failures) == {"shapes[y]", "rows[y]"}

    first = {}

    def tipped(s: FakeSession, feeds: Any, y: Any) -> Any:
        sample = first.setdefault("x", np.array(feeds["x"][0]))
        y["y"][(feeds["x"] == sample).all(axis=1)] = 9
        return y

    assert set(bench.failures(tipped, model=model, precision=precision)) == (
        {"shapes[y]"} if precision == "fp32" else set()
    )


def test_outputs_without_a_batch_are_compared_and_not_row_by_row(bench: Bench) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("ReduceMean", ["p"], ["y"], keepdims=0)]
    outs = [helper.make_tensor_value_info("y", FLOAT, [])]
    model = linear(bench.folder / "mean", nodes=nodes, outs=outs)
    assert bench.failures(model=model) == {}
    assert bench.report["served"]["rows"]["y"]["tested"] is False
    assert bench.report["served"]["reference"]["mode"] == "runs"

    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        return {"y": y["y"] + np.float32(len(feeds["x"]) == 16)}

    assert "wrong at batch 16" in bench.failures(spoil, model=model)["shapes[y]"]


def test_a_fixed_batch_has_rows_at_other_places_only(bench: Bench) -> None:
    options: dict[str, Any] = {"dims": (4, WIDTH), "profiles": {"static": {}}}
    assert bench.failures(**options) == {}
    assert bench.report["served"]["rows"]["y"] | {"places": 0} == {"tested": True, "samples": 13, "places": 0}

    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        y["y"][2] = y["y"][1]
        return y

    assert "row 2" in bench.failures(spoil, **options)["shapes[y]"]


def test_a_batch_of_one_says_that_rows_are_not_tested(bench: Bench) -> None:
    checks = bench.compare(dims=(1, WIDTH), profiles={"static": {}})
    assert [c.name for c in checks] == ["finite[y]", "shapes[y]"]
    assert bench.report["served"]["rows"]["y"]["why"] == "every run takes one sample"
    assert "Its rows were not told apart: every run takes one sample" in checks[1].message


def test_lengths_that_the_data_does_not_have_get_made_rows(bench: Bench) -> None:
    options: dict[str, Any] = {"dims": ("batch", "length", WIDTH), "profiles": TEXT, "data": (8, WIDTH)}
    assert bench.failures(**options) == {}
    data = {v["dims"]["length"]: v["data"] for v in bench.report["served"]["sequence"]}
    assert data == {2: "seeded", 8: "evaluation", 24: "seeded", 17: "seeded"}

    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        if y["y"].shape[1] == 24 and len(y["y"]) > 1:
            y["y"][2, 20:] = 0
        return y

    assert "batch 8, length 24 (profile text" in bench.failures(spoil, **options)["shapes[y]"]


def test_declared_ranges_are_kept_to(bench: Bench) -> None:
    seen: list[float] = []

    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        if feeds["x"].shape[1] != 8:
            seen.extend((feeds["x"].min(), feeds["x"].max()))
        return y

    bench.compare(spoil, dims=("batch", "length", WIDTH), profiles=TEXT, data=(8, WIDTH), ranges={"x": [5, 6]})
    assert 5 <= min(seen) < 5.1
    assert 5.9 < max(seen) <= 6


def test_sizes_that_the_model_itself_does_not_take_are_left_out_and_told(bench: Bench) -> None:
    """Reshape to pairs takes even lengths only: 17 is replaced by a multiple of what min, opt and max share."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Constant", [], ["pairs"], value=numpy_helper.from_array(np.array([0, -1, 8], np.int64))),
        helper.make_node("Reshape", ["p", "pairs"], ["y"]),
    ]
    dims = ("batch", "length", WIDTH)
    outs = [helper.make_tensor_value_info("y", FLOAT, ["batch", "half", 8])]
    model = linear(bench.folder / "pairs", dims, nodes=nodes, outs=outs)
    checks = bench.compare(model=model, dims=dims, profiles=TEXT, data=(8, WIDTH))
    assert {c.verdict for c in checks} == {"pass"}
    assert {v["dims"]["length"] for v in bench.report["served"]["sequence"]} == {2, 8, 18, 24}
    assert "What was not tried: length 17: not compared, the fp32 reference does not run there" in checks[1].message


def test_two_profiles_that_overlap(bench: Bench) -> None:
    """The same shape is right in one profile and wrong when the session comes from the other."""

    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        return {"y": -y["y"]} if len(y["y"]) == 8 and (40, WIDTH) in s.log else y

    profiles = {"small": {"batch": [1, 4, 8]}, "large": {"batch": [1, 8, 40]}}
    assert "batch 8 (profile large" in bench.failures(spoil, profiles=profiles)["shapes[y]"]


@pytest.mark.parametrize(("precision", "noise"), [("fp16", 2e-3), ("bf16", 1e-2), ("int8", 5e-2)])
def test_the_noise_of_a_precision_is_no_fault(bench: Bench, precision: str, noise: float) -> None:
    """Other kernels at other batch sizes, even other rounding at every run."""
    random = np.random.default_rng(0)

    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        size = np.sqrt(np.square(y["y"]).mean(axis=1, keepdims=True))
        return {"y": (y["y"] + size * noise * random.normal(size=y["y"].shape)).astype(np.float32)}

    assert bench.failures(spoil, precision=precision) == {}
    assert bench.failures(spoil, precision="fp32")


def test_rows_that_are_permuted_only_beyond_opt(bench: Bench) -> None:
    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        return {"y": y["y"][::-1].copy() if len(y["y"]) > 16 else y["y"]}

    failures = bench.failures(spoil)
    assert "wrong at batch 40 (profile bulk, 7th shape, first run)" in failures["shapes[y]"]
    assert "right at batch 1; batch 2; batch 8; batch 5; batch 4; batch 16" in failures["shapes[y]"]
    assert "rows[y]" in failures


def two_outputs(folder: Path) -> Path:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Tanh", ["a"], ["b"])]
    outs = [helper.make_tensor_value_info(n, FLOAT, ["batch", 4]) for n in "ab"]
    return linear(folder, nodes=nodes, outs=outs)


def test_outputs_that_trade_names(bench: Bench) -> None:
    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        return {"a": y["b"], "b": y["a"]}

    failures = bench.failures(spoil, model=two_outputs(bench.folder / "two"), precision="int8")
    assert {"shapes[a]", "shapes[b]"} <= set(failures)


def test_an_output_that_is_missing_is_a_verdict(bench: Bench) -> None:
    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        return {"a": y["a"]} if len(y["a"]) == 40 else y

    failures = bench.failures(spoil, model=two_outputs(bench.folder / "two"))
    assert "the engine did not run at batch 40" in failures["shapes[b]"]
    assert "the engine has no output 'b'" in failures["shapes[b]"]


@pytest.mark.parametrize("dtype", ["float16", "float64", "int64"])
def test_an_output_of_another_dtype(bench: Bench, dtype: str) -> None:
    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        return {"y": y["y"].astype(dtype)}

    assert bench.failures(spoil, precision="fp16")["dtype[y]"] == f"y: the engine gives {dtype}, the model float32."


def test_right_at_the_datas_shape_only(bench: Bench) -> None:
    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        return y if y["y"].shape[1] == 8 else {"y": np.zeros_like(y["y"])}

    failures = bench.failures(spoil, dims=("batch", "length", WIDTH), profiles=TEXT, data=(8, WIDTH))
    assert "wrong at batch 1, length 2 (profile text, 1st shape, first run)" in failures["shapes[y]"]


def test_wrong_after_a_larger_shape_for_good(bench: Bench) -> None:
    """Right at every first visit, and at the data's batches too; once 40 rows were there, nothing is right again."""

    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        return {"y": -y["y"]} if any(shape[0] == 40 for shape in s.log[:-1]) else y

    assert "wrong at batch 40 (profile bulk, 7th shape, run 2)" in bench.failures(spoil)["shapes[y]"]


def test_wrong_in_the_second_profile_only(bench: Bench) -> None:
    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        return {"y": y["y"] * np.float32(1.02)} if len(y["y"]) > 8 else y

    sentence = bench.failures(spoil)["shapes[y]"]
    assert "wrong at batch 16 (profile bulk" in sentence
    assert "limit" in sentence


def test_a_buffer_that_the_next_run_overwrites_is_no_fault_of_the_answer(bench: Bench) -> None:
    """Sessions on a device may hand out the same memory at every run."""
    memory = np.empty((40, 4), np.float32)

    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        rows = len(y["y"])
        memory[:rows] = y["y"]
        return {"y": memory[:rows]}

    assert bench.failures(spoil) == {}


def test_the_previous_answer_is_told_at_the_run_at_which_it_comes(bench: Bench) -> None:
    """Every run gives what the run before it should have given."""

    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        before = vars(s).get("before")
        vars(s)["before"] = y["y"]
        return {"y": before if before is not None and before.shape == y["y"].shape else y["y"]}

    assert "wrong at batch 1 (profile small, 1st shape, run 2): row 0" in bench.failures(spoil)["shapes[y]"]


def test_outputs_that_are_all_zero_pass_and_noise_in_their_place_fails(bench: Bench) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Sub", ["p", "p"], ["y"])]
    model = linear(bench.folder / "zero", nodes=nodes)
    assert bench.failures(model=model) == {}

    def spoil(s: FakeSession, feeds: Any, y: Any) -> Any:
        return {"y": y["y"] + np.float32(1e-3)}

    assert "shapes[y]" in bench.failures(spoil, model=model)


def test_a_batch_whose_least_is_zero_is_tried_from_one_on(bench: Bench) -> None:
    assert bench.failures(profiles={"none": {"batch": [0, 2, 8]}}) == {}
    assert bench.report["served"]["sequence"][0]["dims"] == {"batch": 1}


def tiled(folder: Path, values: int) -> Path:
    """y: 4 numbers a row, over and over."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node(
            "Constant", [], ["times"], value=numpy_helper.from_array(np.array([1, values // 4], np.int64))
        ),
        helper.make_node("Tile", ["p", "times"], ["y"]),
    ]
    return linear(folder, nodes=nodes, outs=[helper.make_tensor_value_info("y", FLOAT, ["batch", values // 4 * 4])])


@pytest.mark.parametrize(
    ("values", "count"), [(12, 40), (800_000, 16), pytest.param(10_000_000, 5, marks=pytest.mark.slow)]
)
def test_outputs_of_any_size_pass_against_themselves(bench: Bench, values: int, count: int) -> None:
    """The fewer rows a pool has, the other ones they are: both sides read them from the reference."""
    model = tiled(bench.folder / "tiled", values)
    assert bench.failures(model=model, profiles={"one": {"batch": [1, 1, 2]}}, count=count) == {}


@pytest.mark.parametrize("seed", range(6))
def test_models_of_any_cost_pass_against_themselves(bench: Bench, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Every limit, from one that cuts all that can be cut to one that cuts nothing."""
    random = np.random.default_rng(seed)
    for name in ("POOL_OPERATIONS", "RUN_OPERATIONS", "VISIT_OPERATIONS", "CPU_OPERATIONS"):
        monkeypatch.setattr(served_limits, name, int(2 ** random.uniform(17, 27)))
    for name in ("POOL_VALUES", "RUN_VALUES"):
        monkeypatch.setattr(served_limits, name, int(2 ** random.uniform(4, 12)))
    assert bench.failures() == {}
    rows = {len(v["pool_rows"]) for v in bench.report["served"]["sequence"]}
    assert rows <= set(range(2, 14))


@pytest.mark.parametrize("capability", [[], ["8.9"]], ids=["cpu", "device"])
def test_the_clock_decides_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch, capability: list[str]) -> None:
    clocks = {n: getattr(time, n) for n in ("monotonic", "perf_counter", "process_time", "thread_time", "time")}
    found = []
    for factor in (1.0, 100.0, 0.01):
        for name, clock in clocks.items():
            monkeypatch.setattr(time, name, lambda clock=clock, factor=factor: clock() * factor)
        checks = bench.compare(capability=capability, dims=("batch", "length", WIDTH), profiles=TEXT, data=(8, WIDTH))
        served = {k: v for k, v in bench.report["served"].items() if "seconds" not in k}
        found.append(((bench.folder / "shapes.json").read_bytes(), served, checks))
    assert found[0] == found[1] == found[2]
    assert {c.verdict for c in found[0][2]} == {"pass"}


def test_what_is_compared_is_written_down(bench: Bench) -> None:
    """Rows of the file by number, evenly spread; made ones by theirs; which of them stand in which run."""
    bench.compare(dims=("batch", "length", WIDTH), profiles=TEXT, data=(8, WIDTH))
    plan = json.loads((bench.folder / "shapes.json").read_text(encoding="utf-8"))
    pools = {p["lengths"][0][1]: p for p in plan["pools"]}
    assert pools[8]["rows"] == [i * 40 // 13 for i in range(13)]
    assert (pools[2]["data"], pools[2]["rows"]) == ("seeded", list(range(13)))
    visits = [(v["dims"], v["picks"]) for v in bench.report["served"]["sequence"]]
    assert visits == [(s["visit"]["dims"], s["picks"]) for s in plan["cpu"]["stops"]]


def coarse(folder: Path, dims: Sequence[int | str] = ("batch", WIDTH)) -> Path:
    """int8 with a scale so large that a third of the signal is lost."""
    constants = {"s": np.array(1.0, np.float32), "z": np.array(0, np.int8)}
    nodes = [helper.make_node("Constant", [], [n], value=numpy_helper.from_array(v)) for n, v in constants.items()]
    nodes += [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    return linear(folder, dims, nodes=nodes)


def _mixed(s: FakeSession, feeds: Any, y: Any) -> Any:
    return {"y": np.roll(y["y"], 1, axis=0) if len(y["y"]) == 16 else y["y"]}


def _at_one_shape(s: FakeSession, feeds: Any, y: Any) -> Any:
    return {"y": y["y"] * np.float32(1.3) if len(y["y"]) == 40 else y["y"]}


def _after_ten_runs(s: FakeSession, feeds: Any, y: Any) -> Any:
    return {"y": y["y"] * np.float32(0.7) if len(s.log) > 10 else y["y"]}


def _only_row_0(s: FakeSession, feeds: Any, y: Any) -> Any:
    return {"y": np.concatenate([y["y"][:1], y["y"][:1].repeat(len(y["y"]) - 1, axis=0)])}


@pytest.mark.parametrize("spoil", [_mixed, _at_one_shape, _after_ten_runs, _only_row_0])
def test_int8_engines_are_held_to_their_own_lowered_model(bench: Bench, spoil: Any) -> None:
    """What the precision itself loses is no fault of the engine, and hides none."""
    model = coarse(bench.folder / "coarse")
    limits = Limits(cosine=0.5)
    assert bench.failures(lowered=model, engine=model, precision="int8", limits=limits) == {}
    assert "shapes[y]" in bench.failures(spoil, lowered=model, engine=model, precision="int8", limits=limits)


def test_an_int8_engine_that_is_not_what_was_lowered(bench: Bench) -> None:
    """It is nearer to fp32 than the lowered model is, and yet another model."""
    failures = bench.failures(lowered=coarse(bench.folder / "coarse"), precision="int8")
    assert "differs from the lowered model in ONNX Runtime" in failures["shapes[y]"]


def test_loss_on_made_rows_is_a_warning_and_fails_by_its_limit(bench: Bench) -> None:
    dims = ("batch", "length", WIDTH)
    model = coarse(bench.folder / "coarse", dims)
    options: dict[str, Any] = {"dims": dims, "profiles": TEXT, "data": (8, WIDTH), "precision": "int8"}
    assert bench.failures(lowered=model, engine=model, **options) == {}
    assert list(synthetic_warnings(Served.from_json(bench.report["served"]), 0.98)) == []  # within what a row may lose
    (line,) = synthetic_warnings(Served.from_json(bench.report["served"]), 0.9999)
    assert "the lowered model is far from fp32 on made-up rows (error 0.4" in line
    assert "length" in line
    failures = bench.failures(lowered=model, engine=model, limits=Limits(synthetic_cosine=0.99), **options)
    assert list(failures) == ["synthetic_cosine[y]"]
    assert bench.failures(lowered=model, engine=model, limits=Limits(synthetic_cosine=0.8), **options) == {}


def test_a_lowered_model_that_onnx_runtime_can_not_run(bench: Bench) -> None:
    """Then fp32 is what the engine is compared with, and the check says so."""
    b16 = TensorProto.BFLOAT16
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=b16),
        helper.make_node("Cast", ["w"], ["v"], to=b16),
        helper.make_node("MatMul", ["h", "v"], ["p"]),
        helper.make_node("Cast", ["p"], ["y"], to=FLOAT),
    ]
    checks = bench.compare(lowered=linear(bench.folder / "bf16", nodes=nodes), precision="bf16")
    shapes = next(c for c in checks if c.name == "shapes[y]")
    assert shapes.verdict == "pass"
    assert "Compared with fp32, for ONNX Runtime cannot run the lowered model" in shapes.message


@pytest.mark.parametrize("found", [0.0, 1.0])
def test_outputs_whose_length_the_data_decides(bench: Bench, found: float) -> None:
    """A detector that finds nothing, or not always as much."""
    constants = {"least": np.array(1e9 if not found else 0.5, np.float32), "all": np.array([-1], np.int64)}
    nodes = [helper.make_node("Constant", [], [n], value=numpy_helper.from_array(v)) for n, v in constants.items()]
    nodes += [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Greater", ["p", "least"], ["hits"]),
        helper.make_node("Compress", ["p", "flat"], ["y"]),
        helper.make_node("Reshape", ["hits", "all"], ["flat"]),
    ]
    nodes[-1], nodes[-2] = nodes[-2], nodes[-1]
    model = linear(bench.folder / "hits", nodes=nodes, outs=[helper.make_tensor_value_info("y", FLOAT, ["n"])])
    assert bench.failures(model=model, limits=Limits(cosine=0.99999, sqnr_db=60, mean_abs=0.1, max_abs=0.1)) == {}
    output = bench.report["outputs"]["y"]
    assert output["cosine"] == 1.0
    assert (output["elements"] > 0) == bool(found)

    def one_more(s: FakeSession, feeds: Any, y: Any) -> Any:
        return {"y": np.concatenate([y["y"], np.ones(1, np.float32)])}

    failures = bench.failures(one_more, model=model, limits=Limits(cosine=0.99999))
    assert "the output has shape" in failures["shape[y]"]
    assert "not a number" in failures["cosine[y]"]
    assert "shapes[y]" in failures


def test_engines_are_compared_with_fp32_where_the_lowered_model_crashed_onnx_runtime(tmp_path: Path) -> None:
    said: list[str] = []
    crash = "tiny/int8/lowered-reference: crashed with SIGSEGV"
    lowered_reference.run(StepJob("tiny", {}, {}, {}, tmp_path, said.append, crashes=(crash,)))
    found = LoweredFacts.read(tmp_path)
    assert not found.stored
    assert found.why == f"ONNX Runtime does not run the lowered model: {crash}"
    assert said == [f"engines are compared with fp32: {found.why}"]
