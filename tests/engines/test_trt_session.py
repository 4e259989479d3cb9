"""Running an engine: what the session does with CUDA and TensorRT, shown on a GPU made of host memory."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import CudaError, FakeContext, FakeEngine, FakeRuntime, FakeTensor, FakeVendor

from engineworks.engines.backends import _cuda, _trt_load, _trt_log, _trt_tf32, tensorrt, tensorrt_rtx
from engineworks.engines.backends._trt import Vendor
from engineworks.engines.backends._trt_load import load
from engineworks.engines.backends._trt_session import TrtSession
from engineworks.engines.backends._trt_tf32 import SWITCH, environment, switched
from engineworks.engines.backends.base import Serving
from engineworks.errors import RunError
from engineworks.host.gpu import Gpu
from engineworks.tensors import TensorSpec

NO_GRAPHS = Serving()
PROFILES = [((1, 4), (2, 4), (8, 4)), ((8, 4), (16, 4), (64, 4))]


@pytest.fixture(params=["tensorrt_rtx", "tensorrt"])
def vendor(request: pytest.FixtureRequest) -> Vendor:
    return {"tensorrt_rtx": tensorrt_rtx.VENDOR, "tensorrt": tensorrt.VENDOR}[request.param]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRuntime]:
    fake = FakeRuntime()
    monkeypatch.setattr(_cuda, "runtime", lambda: fake)
    monkeypatch.setattr(_trt_log, "_loggers", {})
    yield fake
    assert fake.captured is None


def doubling(cuda: FakeRuntime, *, found_of: str | None = None) -> FakeEngine:
    """y = 2 x; with `found_of`, also the positive values of x, however many there are."""
    outputs = {"y": FakeTensor("FLOAT", (-1, 4))}
    if found_of:
        outputs["found"] = FakeTensor("FLOAT", (-1,))

    def compute(given: Any) -> Any:
        made = {"y": given["x"] * 2}
        return made | ({"found": given["x"][given["x"] > 0]} if found_of else {})

    def shapes(given: Any) -> Any:
        return {"y": given["x"], "found": (-1,)}

    return FakeEngine({"x": FakeTensor("FLOAT", (-1, 4), PROFILES)}, outputs, compute, shapes, cuda)


@pytest.fixture
def start(tmp_path: Path, vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrtSession]:
    (tmp_path / "engine").write_bytes(b"plan")
    monkeypatch.setattr(_trt_load, "first_gpu", lambda: None)  # the engine's header is not looked at

    def start(
        engine: FakeEngine | None, serving: Serving = NO_GRAPHS, cache: Path | None = None, of_model: str = "float32",
        **fake: Any,
    ) -> Any:  # fmt: skip
        module = FakeVendor(engine, **fake)
        monkeypatch.setattr(Vendor, "load", lambda self: module)
        return load(vendor, tmp_path / "engine", {}, serving, cache, [TensorSpec("x", of_model, ("batch", 4))])

    return start


def batch(size: int) -> dict[str, Any]:
    return {"x": np.arange(size * 4, dtype=np.float32).reshape(size, 4) - 3}


def test_outputs_are_right_at_every_shape_up_and_down(cuda: FakeRuntime, start: Callable[..., TrtSession]) -> None:
    session = start(doubling(cuda))
    for size in (2, 8, 1, 64, 3, 9, 1):
        assert np.array_equal(session.run(batch(size))["y"], batch(size)["x"] * 2)


def test_a_result_is_kept_when_the_next_run_overwrites_the_buffers(
    cuda: FakeRuntime, start: Callable[..., TrtSession]
) -> None:
    session = start(doubling(cuda))
    first = session.run(batch(2))["y"]
    session.run({"x": np.full((2, 4), 7, np.float32)})
    assert np.array_equal(first, batch(2)["x"] * 2)


def test_the_profile_changes_only_where_the_present_one_does_not_fit(
    cuda: FakeRuntime, start: Callable[..., TrtSession]
) -> None:
    engine = doubling(cuda)
    session = start(engine)
    for size in (1, 8, 9, 8, 64, 7):  # 8 lies in both profiles
        session.run(batch(size))
    assert engine.contexts[0].switches == 2


def test_a_shape_outside_every_profile_is_refused_with_what_they_take(
    cuda: FakeRuntime, start: Callable[..., TrtSession]
) -> None:
    session = start(doubling(cuda))
    said = r"x \[65, 4\] lies outside every profile of the engine: x \[1, 4\] to \[8, 4\]; x \[8, 4\] to \[64, 4\]"
    with pytest.raises(RunError, match=said):
        session.run(batch(65))
    assert session.run(batch(64))["y"].shape == (64, 4)


def test_dimensions_have_the_names_that_the_builder_knew(cuda: FakeRuntime, start: Callable[..., TrtSession]) -> None:
    session = start(doubling(cuda))
    assert [str(s) for s in (*session.inputs, *session.outputs)] == [
        "x: float32[batch, 4]", "y: float32[y_0, 4]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "input 'x' is missing"),
        ({"x": np.ones((1, 4))}, "input 'x' is float64, the engine takes float32"),
        ({"x": np.ones((1, 5), np.float32)}, r"input 'x' is \[1, 5\]"),
    ],
)
def test_wrong_feeds_are_refused_by_name(
    cuda: FakeRuntime, start: Callable[..., TrtSession], given: Any, said: str
) -> None:
    with pytest.raises(RunError, match=said):
        start(doubling(cuda)).run(given)


def test_a_model_in_double_is_fed_as_it_declares_and_answers_in_the_engines_type(
    cuda: FakeRuntime, start: Callable[..., TrtSession]
) -> None:
    session, wide = start(doubling(cuda), of_model="float64"), batch(3)["x"].astype(np.float64)
    assert session.notes == start(doubling(cuda), of_model="float64").notes  # nothing was converted yet
    for given in (wide, wide.astype(np.float32)):
        got = session.run({"x": given})["y"]
        assert got.dtype == np.float32
        assert np.array_equal(got, wide * 2)
    assert session.time_runs({"x": wide}, 2).host_ms
    said = "input 'x' is float64 in the model, float32 in the engine: converted before each run"
    assert [note for note in session.notes if "converted" in note] == [said]
    with pytest.raises(RunError, match="input 'x' has values that float32, the type of this engine's input, cannot"):
        session.run({"x": np.full((1, 4), 1e300)})
    assert np.isinf(session.run({"x": np.full((1, 4), np.inf)})["y"]).all()


@pytest.mark.parametrize(("value", "fits"), [(2**31 - 1, True), (2**31, False)])
def test_ids_in_int64_reach_an_engine_in_int32_or_are_refused(
    cuda: FakeRuntime, start: Callable[..., TrtSession], value: int, fits: bool
) -> None:
    inputs = {"x": FakeTensor("INT32", (-1, 4), PROFILES)}
    outputs = {"y": FakeTensor("INT32", (-1, 4))}
    engine = FakeEngine(inputs, outputs, lambda g: {"y": g["x"]}, lambda s: {"y": s["x"]}, cuda)
    session, given = start(engine, of_model="int64"), {"x": np.full((1, 4), value)}
    if fits:
        assert np.array_equal(session.run(given)["y"], given["x"])
    else:
        with pytest.raises(RunError, match="input 'x' has values that int32"):
            session.run(given)


def test_outputs_whose_shape_depends_on_the_data_come_whole(
    cuda: FakeRuntime, start: Callable[..., TrtSession]
) -> None:
    session = start(doubling(cuda, found_of="x"))
    for size in (2, 64, 1):
        x = batch(size)["x"]
        assert np.array_equal(session.run({"x": x})["found"], x[x > 0])
    assert session.run({"x": np.full((3, 4), -1, np.float32)})["found"].shape == (0,)


@pytest.mark.parametrize(
    ("vendor_name", "dtype"),
    [("HALF", "float16"), ("INT64", "int64"), ("INT32", "int32"), ("BOOL", "bool"), ("UINT8", "uint8")],
)
def test_every_dtype_goes_in_and_out_unchanged(
    cuda: FakeRuntime, start: Callable[..., TrtSession], vendor_name: str, dtype: str
) -> None:
    tensors = {"a": FakeTensor(vendor_name, (-1, 4), PROFILES)}
    engine = FakeEngine(
        tensors, {"b": FakeTensor(vendor_name, (-1, 4))}, lambda g: {"b": g["a"]}, lambda s: {"b": s["a"]}, cuda
    )
    given = (np.arange(8).reshape(2, 4) % 3).astype(dtype)
    found = start(engine).run({"a": given})["b"]
    assert found.dtype == given.dtype
    assert np.array_equal(found, given)


def test_shape_tensors_stay_in_host_memory(cuda: FakeRuntime, start: Callable[..., TrtSession]) -> None:
    tensors = {"n": FakeTensor("INT64", (2,), [((2,), (2,), (2,))], location="HOST")}
    engine = FakeEngine(
        tensors, {"y": FakeTensor("INT64", (2,), location="HOST")}, lambda g: {"y": g["n"] + 1},
        lambda s: {"y": (2,)}, cuda,
    )  # fmt: skip
    copies: list[int] = []
    cuda.cudaMemcpyAsync = lambda *a: copies.append(1) or (0,)  # type: ignore[method-assign,assignment,func-returns-value]
    assert start(engine).run({"n": np.array([3, 4])})["y"].tolist() == [4, 5]
    assert copies == []


def test_equal_shapes_in_a_row_are_set_once(
    cuda: FakeRuntime, start: Callable[..., TrtSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes_set: list[int] = []
    set_shape = FakeContext.set_input_shape

    def counted(context: FakeContext, name: str, shape: tuple[int, ...]) -> bool:
        shapes_set.append(shape[0])
        return set_shape(context, name, shape)

    monkeypatch.setattr(FakeContext, "set_input_shape", counted)
    session = start(doubling(cuda))
    for number, size in enumerate([2, 2, 2, 3, 2, 2, 40, 40, 2]):
        given = {"x": batch(size)["x"] + number}
        assert np.array_equal(session.run(given)["y"], given["x"] * 2)
    assert shapes_set == [2, 3, 2, 40, 2]


def test_timed_runs_have_both_clocks_and_leave_the_feeds_be(
    cuda: FakeRuntime, start: Callable[..., TrtSession]
) -> None:
    engine = doubling(cuda)
    session, given = start(engine), batch(4)
    times = session.time_runs(given, 7)
    assert len(times.host_ms) == len(times.device_ms) == 7
    assert min(times.device_ms) > 0
    assert engine.contexts[0].runs == 8
    with_copies = session.time_runs(given, 3, copies=True)
    assert len(with_copies.host_ms) == 3
    assert np.array_equal(given["x"], batch(4)["x"])


def test_streams_have_contexts_of_their_own_which_are_freed(
    cuda: FakeRuntime, start: Callable[..., TrtSession]
) -> None:
    engine = doubling(cuda)
    session = start(engine)
    before = cuda.in_use, cuda.streams
    session.run(batch(4))
    used = cuda.in_use
    assert session.throughput(batch(4), 3, 0.02) > 0
    assert len(engine.contexts) == 3
    assert (cuda.in_use, cuda.streams) == (used, before[1])


def test_closing_frees_everything_and_may_be_done_twice(cuda: FakeRuntime, start: Callable[..., TrtSession]) -> None:
    session = start(doubling(cuda, found_of="x"), Serving(cuda_graphs=True))
    session.run(batch(4))
    assert cuda.in_use > 0
    session.close()
    session.close()
    assert (cuda.in_use, cuda.streams) == (0, 0)
    with pytest.raises(RunError, match="this session was closed"):
        session.run(batch(4))


def test_a_session_that_is_dropped_frees_everything_too(cuda: FakeRuntime, start: Callable[..., TrtSession]) -> None:
    session = start(doubling(cuda, found_of="x"), Serving(cuda_graphs=True))
    session.run(batch(4))
    assert cuda.in_use > 0
    del session
    gc.collect()
    assert (cuda.in_use, cuda.streams) == (0, 0)


def test_no_memory_for_a_shape_is_one_message_and_smaller_ones_still_run(
    cuda: FakeRuntime, start: Callable[..., TrtSession]
) -> None:
    cuda.total = 3000
    session = start(doubling(cuda))
    with pytest.raises(RunError, match="the GPU is out of memory for 0 MiB"):
        session.run(batch(64))
    assert session.run(batch(2))["y"].shape == (2, 4)


def test_no_memory_for_an_output_of_unknown_size_is_the_same_message(
    cuda: FakeRuntime, start: Callable[..., TrtSession]
) -> None:
    session = start(doubling(cuda, found_of="x"))
    session.run({"x": np.full((64, 4), -1, np.float32)})
    cuda.total = cuda.in_use + 100
    with pytest.raises(RunError, match="the GPU is out of memory"):
        session.run({"x": np.full((64, 4), 1, np.float32)})


def test_what_fails_on_the_gpu_names_the_shape(cuda: FakeRuntime, start: Callable[..., TrtSession]) -> None:
    session = start(doubling(cuda))
    cuda.fails_at_wait = CudaError.cudaErrorIllegalAddress
    with pytest.raises(RunError, match=r"the engine failed at x \[2, 4\]: CUDA: an illegal memory access"):
        session.run(batch(2))


def test_graphs_give_the_same_outputs_at_every_shape(cuda: FakeRuntime, start: Callable[..., TrtSession]) -> None:
    session = start(doubling(cuda), Serving(cuda_graphs=True))
    for size in (2, 8, 8, 1, 64, 2):
        assert np.array_equal(session.run(batch(size))["y"], batch(size)["x"] * 2)
    assert session.facts["cuda_graphs"] is True
    assert session.notes == ()


def test_tensorrt_replays_what_was_captured_and_rtx_does_it_by_itself(
    cuda: FakeRuntime, start: Callable[..., TrtSession], vendor: Vendor
) -> None:
    engine = doubling(cuda)
    session = start(engine, Serving(cuda_graphs=True))
    for size in (2, 2, 4, 2, 64):
        session.run(batch(size))
    assert cuda.graph_launches == (0 if vendor.rtx else 5)
    assert engine.strategies == (["disabled", "whole graph"] if vendor.rtx else [None])


def test_what_can_not_be_captured_is_said_and_runs_without(cuda: FakeRuntime, start: Callable[..., TrtSession]) -> None:
    engine = doubling(cuda)
    engine.capturable = False
    session = start(engine, Serving(cuda_graphs=True))
    assert np.array_equal(session.run(batch(2))["y"], batch(2)["x"] * 2)
    session.run(batch(2))
    assert session.facts["cuda_graphs"] is False
    (note,) = session.notes
    assert note.startswith("no CUDA graph at x [2, 4]: ")
    assert note.endswith("; runs without")


def test_outputs_of_unknown_size_are_not_captured(cuda: FakeRuntime, start: Callable[..., TrtSession]) -> None:
    engine = doubling(cuda, found_of="x")
    session = start(engine, Serving(cuda_graphs=True))
    for size in (2, 64, 1):
        found = session.run(batch(size))["found"]
        assert np.array_equal(found, batch(size)["x"][batch(size)["x"] > 0])
    assert "whole graph" not in engine.strategies
    assert session.notes
    assert all("the shape of an output depends on the data" in note for note in session.notes)


@pytest.mark.parametrize("capturable", [True, False])
def test_a_context_that_is_only_tried_asks_for_no_specialized_kernels(
    cuda: FakeRuntime, start: Callable[..., TrtSession], vendor: Vendor, capturable: bool
) -> None:
    """What it asked for would be lost with it, and TensorRT-RTX would not compile it for the context that stays."""
    engine = doubling(cuda)
    engine.capturable = capturable
    session = start(engine, Serving(cuda_graphs=True))
    for size in (2, 4, 64):
        session.run(batch(size))
    assert engine.kernels == (["none", "lazy"] if vendor.rtx else [None])


def test_without_graphs_the_first_context_stays(
    cuda: FakeRuntime, start: Callable[..., TrtSession], vendor: Vendor
) -> None:
    engine = doubling(cuda)
    session = start(engine, Serving(kernels="eager"))
    session.run(batch(2))
    assert engine.kernels == (["eager"] if vendor.rtx else [None])


def test_an_engine_that_does_not_load_gives_the_vendors_reason(
    cuda: FakeRuntime, start: Callable[..., TrtSession]
) -> None:
    with pytest.raises(RunError, match="cannot load this engine: Serialization assertion failed"):
        start(None, says="IRuntime::deserializeCudaEngine: Error Code 1: Serialization assertion failed")
    with pytest.raises(RunError, match="the GPU has no room for this engine"):
        start(None, says="Error Code 2: OutOfMemory (Requested size was 1000 bytes.)")
    engine = doubling(cuda)
    engine.fails = True
    with pytest.raises(RunError, match="made no execution context"):
        start(engine)


def test_an_engine_that_does_not_fit_is_refused_before_it_is_deserialized(
    cuda: FakeRuntime, vendor: Vendor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "engine").write_bytes(b"plan")
    monkeypatch.setattr(_trt_load, "first_gpu", lambda: Gpu("NVIDIA H100", "9.0", "580.1", "13.0"))
    monkeypatch.setattr(FakeVendor, "Runtime", lambda *_: pytest.fail("deserialized"))
    monkeypatch.setattr(_trt_load, "why_not_fit", lambda *_: "this engine was built by 1.7, here is 1.6")
    module = FakeVendor(doubling(cuda))
    monkeypatch.setattr(Vendor, "load", lambda self: module)
    with pytest.raises(RunError, match=r"engine: this engine was built by 1\.7, here is 1\.6"):
        load(vendor, tmp_path / "engine", {}, NO_GRAPHS, None, [])


def test_a_failure_to_load_is_explained_by_what_the_vendor_finds_wrong_with_the_engine(
    cuda: FakeRuntime, start: Callable[..., TrtSession]
) -> None:
    with pytest.raises(RunError, match="cannot load this engine: version mismatch, unsupported cc: it gave no reason"):
        start(None, validity=2, diagnostics=3)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (CudaError.cudaErrorInsufficientDriver, "driver version is insufficient .*update the NVIDIA driver"),
        (CudaError.cudaErrorNoDevice, "cudaErrorNoDevice"),
    ],
)
def test_a_host_without_a_usable_gpu_is_one_message(
    cuda: FakeRuntime, start: Callable[..., TrtSession], error: CudaError, said: str
) -> None:
    cuda.error = error
    with pytest.raises(RunError, match=said):
        start(doubling(cuda))


class TestRuntimeCache:
    """TensorRT-RTX keeps its compiled kernels; TensorRT has no such cache."""

    @pytest.fixture
    def vendor(self) -> Vendor:
        return tensorrt_rtx.VENDOR

    def test_it_is_made_once_and_used_afterwards(
        self, cuda: FakeRuntime, start: Callable[..., TrtSession], tmp_path: Path
    ) -> None:
        first = start(doubling(cuda), cache=tmp_path / "cache")
        assert first.facts["runtime_cache"] == "new"
        first.close()
        assert (tmp_path / "cache" / "runtime.cache").read_bytes() == b"cache of this GPU"
        second = start(doubling(cuda), cache=tmp_path / "cache")
        assert second.facts["runtime_cache"] == "reused"

    def test_one_of_another_gpu_is_refused_said_and_replaced(
        self, cuda: FakeRuntime, start: Callable[..., TrtSession], tmp_path: Path
    ) -> None:
        (tmp_path / "runtime.cache").write_bytes(b"another")
        session = start(doubling(cuda), cache=tmp_path)
        assert session.facts["runtime_cache"] == "refused"
        assert "not used, and made again" in session.notes[0]
        session.close()
        assert (tmp_path / "runtime.cache").read_bytes() == b"cache of this GPU"

    def test_without_a_folder_nothing_is_kept(self, cuda: FakeRuntime, start: Callable[..., TrtSession]) -> None:
        session = start(doubling(cuda), Serving(kernels="eager"))
        assert session.facts == {
            "kernels": "eager", "runtime_cache": "none", "runtime_cache_bytes": 0, "cuda_graphs": False,
            "scratch_mib": 1.0,
        }  # fmt: skip


class TestTf32:
    """An engine remembers the driver's switch of its build, and runs under no other."""

    @pytest.fixture
    def vendor(self, monkeypatch: pytest.MonkeyPatch) -> Vendor:
        monkeypatch.setattr(_trt_tf32, "_kept", [])
        return tensorrt_rtx.VENDOR

    @pytest.mark.parametrize(("first", "then", "refused"), [
        (None, "0", True), ("1", "0", True), ("0", "0", False), ("0", None, False), (None, None, False),
    ])  # fmt: skip
    def test_a_process_that_ran_an_engine_with_tf32_runs_none_without(
        self, cuda: FakeRuntime, start: Callable[..., TrtSession], monkeypatch: pytest.MonkeyPatch, first: str | None,
        then: str | None, refused: bool,
    ) -> None:  # fmt: skip
        monkeypatch.setenv(SWITCH, "gone after the test")
        _trt_tf32._set(first)
        start(doubling(cuda)).close()
        _trt_tf32._set(then)
        if refused:
            with pytest.raises(RunError, match="has run another engine with TF32"):
                start(doubling(cuda))
            assert (cuda.in_use, cuda.streams) == (0, 0)
        else:
            assert np.array_equal(start(doubling(cuda)).run(batch(2))["y"], batch(2)["x"] * 2)

    @pytest.mark.parametrize(("built", "here"), [("0", None), ("-1", "0")])
    def test_the_switch_is_set_as_the_engine_wants_it(
        self,
        cuda: FakeRuntime,
        start: Callable[..., TrtSession],
        monkeypatch: pytest.MonkeyPatch,
        built: str,
        here: str,
    ) -> None:
        wanted = None if built == "-1" else built
        monkeypatch.setenv(SWITCH, "gone after the test")
        _trt_tf32._set(here)
        says = f"[header.cpp:98] Inconsistent setting of {SWITCH} env var at build {built} and at execution -1"
        engine = doubling(cuda)
        engine.refuses_context = lambda: os.environ.get(SWITCH) != wanted
        session = start(engine, says=says)
        assert np.array_equal(session.run(batch(2))["y"], batch(2)["x"] * 2)
        assert os.environ.get(SWITCH) == wanted

    def test_only_fp32_engines_of_rtx_are_bound_to_the_switch(self) -> None:
        bound = [p for p in ("fp32", "fp16", "bf16", "int8") if environment(p, rtx=True, tf32=False)]
        assert bound == ["fp32"]
        assert environment("fp32", rtx=True, tf32=True) == environment("fp32", rtx=False, tf32=False) == {}

    def test_a_build_leaves_the_switch_as_it_was(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for before in (None, "1"):
            monkeypatch.setenv(SWITCH, "x")
            _trt_tf32._set(before)
            with switched({SWITCH: "0"}):
                assert os.environ[SWITCH] == "0"
            assert os.environ.get(SWITCH) == before


def test_an_input_that_is_an_output_too_keeps_the_models_name() -> None:
    """The parser calls it '__x'; an input that the model itself calls so stays."""
    from engineworks.engines.backends._trt_tensors import given_names

    assert given_names(["__x", "z"], ["y", "x"]) == {"x": "__x", "z": "z"}
    assert given_names(["__x"], ["y"]) == {"__x": "__x"}
