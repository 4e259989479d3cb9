"""A decoder of several engines on a GPU made of host memory: right in every situation, planted faults are found."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_decoder_gpu import OnnxVendor, use_fake_gpu
from fake_gpu import FakeRuntime
from onnx import helper, numpy_helper

from engineworks.engines.backends import tensorrt, tensorrt_rtx
from engineworks.engines.backends._cuda import DeviceMemoryError
from engineworks.engines.decoder.parts import LEAST_PREFILL, Part, parts_for, pieces, windows
from engineworks.engines.decoder.trt import TrtDecoder
from engineworks.errors import RunError
from engineworks.measure.decoder.situations import is_right
from engineworks.model.decoder.interface import DecoderInterface, read_interface
from engineworks.model.decoder.static import fix_shape
from engineworks.model.onnx_files import graph_inputs, graph_outputs, load_model
from engineworks.steps.decoder.situations import Situations

MODEL = Path("recipes/models/tiny-decoder/model.onnx")
PARTS = [Part("1x1", 1, 1), Part("2x1", 2, 1), Part("4x1", 4, 1), Part("1x16", 1, 16)]
VENDORS = {"tensorrt_rtx": tensorrt_rtx.VENDOR, "tensorrt": tensorrt.VENDOR}


@pytest.fixture(scope="module")
def face() -> DecoderInterface:
    model = load_model(MODEL)
    return read_interface(graph_inputs(model), graph_outputs(model), 96, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any, face: DecoderInterface) -> Path:
    made: Path = tmp_path_factory.mktemp("parts")
    model = load_model(MODEL)
    for part in PARTS:
        fix_shape(model, face, part.batch, part.tokens)
        (made / part.file).write_bytes(model.SerializeToString())
    return made


@pytest.fixture
def start(folder: Path, face: DecoderInterface, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Opens a session; `start.cuda` and `start.vendor` are of the last one."""
    sessions = []

    def start(
        streams: int = 4, kind: str = "tensorrt_rtx", total: int = 1 << 30, folder: Path = folder, **fault: Any
    ) -> Any:
        start.cuda = FakeRuntime(total)  # type: ignore[attr-defined]
        start.vendor = OnnxVendor(start.cuda, **fault)  # type: ignore[attr-defined]
        use_fake_gpu(monkeypatch, start.vendor)  # type: ignore[attr-defined]
        sessions.append(TrtDecoder(VENDORS[kind], folder, PARTS, face, streams))
        return sessions[-1]

    yield start
    for session in sessions:
        session.close()
    if sessions:
        assert start.cuda.in_use == 0  # type: ignore[attr-defined]


def situations_of(session: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 256, 20 - i) for i in range(3)]
    situations = Situations(session, texts, rng.integers(0, 256, 96))
    return situations.run() | situations.end(3)[0]


def wrong_in(session: Any) -> set[str]:
    return {name for name, found in situations_of(session).items() if not is_right(found, "fp32")}


@pytest.mark.parametrize("kind", VENDORS)
@pytest.mark.parametrize("streams", [3, 4])
def test_every_situation_is_right(start: Any, streams: int, kind: str) -> None:
    session = start(streams, kind)
    found = situations_of(session)
    assert {name for name, f in found.items() if not is_right(f, "fp32")} == set()
    assert set(found) >= {"graph", "beside", "joining", "beyond"}
    assert start.cuda.graph_launches > 10
    assert not session.notes


def test_every_part_that_fits_is_run(start: Any) -> None:
    situations_of(start(3))
    runs = [sum(c.runs for c in e.contexts) for e in start.vendor.engines]
    assert len(runs) == 3  # 1 × 1, 2 × 1 and 1 × 16: four streams do not fit into three
    assert all(runs)


@pytest.mark.parametrize(
    ("part", "expected"), [((4, 1), "beside"), ((1, 16), "at_once"), ((1, 1), "at_once")]
)  # fmt: skip
def test_a_part_that_computes_something_else_is_found(start: Any, part: Any, expected: str) -> None:
    def changed(batch: int, tokens: int, made: Any) -> Any:
        if (batch, tokens) == part:
            made["logits"] = np.roll(made["logits"], 1, -1) * 0.3 + made["logits"] * 0.7
        return made

    assert expected in wrong_in(start(changed=changed))


def test_a_part_that_writes_another_streams_cache_is_found(start: Any) -> None:
    def changed(batch: int, tokens: int, made: Any) -> Any:
        if batch == 4:
            for name, value in made.items():
                made[name] = value[[1, 0, 2, 3]] if name.startswith("present") else value
        return made

    assert wrong_in(start(changed=changed)) & {"beside", "places", "joining"}


FAULTS = {
    "a mask that reads one position too many": ("LessOrEqual", 1, 1),
    "a mask that reads one position too few": ("LessOrEqual", 1, -1),
    "keys written one place too far": ("TensorScatter", 2, 1),
}
"""Operator, the input that is off, and by how much."""


@pytest.mark.parametrize(
    ("fault", "part"),
    [(fault, part) for fault in FAULTS for part in PARTS[2:] if "keys" not in fault or part.tokens == 1],
)
def test_a_fault_inside_a_part_is_found(
    start: Any, fault: str, part: Part, face: DecoderInterface, folder: Path, tmp_path: Path
) -> None:
    kind, given, off = FAULTS[fault]
    model = load_model(MODEL)
    fix_shape(model, face, part.batch, part.tokens)
    model.graph.initializer.append(numpy_helper.from_array(np.array([off], np.int64), "off"))
    for node in [n for n in model.graph.node if n.op_type == kind]:
        moved = helper.make_node("Add", [node.input[given], "off"], [f"{node.output[0]}_moved"])
        node.input[given] = moved.output[0]
        model.graph.node.insert(list(model.graph.node).index(node), moved)
    for other in PARTS:
        (tmp_path / other.file).write_bytes((folder / other.file).read_bytes())
    (tmp_path / part.file).write_bytes(model.SerializeToString())
    assert wrong_in(start(folder=tmp_path)) & {"at_once", "beside"}


def test_a_graph_of_another_streams_cache_is_found(start: Any) -> None:
    """Graphs keep the addresses of their capture: one per place in the cache, not one per engine."""
    session = start()
    situations_of(session)
    first = session._bind(1, 16, 0)
    for (batch, tokens, _), bound in session._bound.items():
        if (batch, tokens) == (1, 16):
            bound._graph = first._graph
    assert wrong_in(session) & {"beside", "places", "joining"}
    for (batch, tokens, at), bound in session._bound.items():
        bound._graph = None if (batch, tokens) == (1, 16) and at else bound._graph


def test_without_a_capture_it_runs_and_says_so(start: Any) -> None:
    session = start()
    for engine in start.vendor.engines:
        engine.capturable = False
    assert wrong_in(session) == set()
    assert any(note.startswith("no CUDA graph: ") for note in session.notes)


def test_a_timed_step_appends_to_every_stream(start: Any) -> None:
    session, text = start(3), np.arange(7, 15)
    session.step(dict.fromkeys(range(3), text[:5]))
    session.next_step(np.full(3, text[5]))
    after = session.step({2: text[6:8]})[2]
    session.reset()
    assert after == pytest.approx(session.step({0: text})[0][-2:], abs=1e-4)


def test_streams_that_do_not_fit_are_refused_before_anything_is_loaded(start: Any) -> None:
    said = r"4 streams do not fit the GPU: engines of \d+ MiB and 0\.\d MiB of cache for each stream, .* MiB are free"
    with pytest.raises(DeviceMemoryError, match=said):
        start(total=1000)
    assert not start.vendor.engines


def test_a_session_that_is_dropped_frees_everything(
    folder: Path, face: DecoderInterface, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeRuntime(1 << 30)
    use_fake_gpu(monkeypatch, OnnxVendor(cuda))
    session = TrtDecoder(VENDORS["tensorrt_rtx"], folder, PARTS, face, 2)
    session.step({0: np.array([1])})
    assert cuda.in_use > 0
    del session
    gc.collect()
    assert (cuda.in_use, cuda.streams) == (0, 0)


def test_a_closed_session_says_so(start: Any) -> None:
    session = start()
    session.close()
    with pytest.raises(RunError, match="was closed"):
        session.step({0: np.array([1])})


@pytest.mark.parametrize(
    ("count", "length", "expected"),
    [
        (1, 0, [(1, 1)]),
        (128, 0, [(128, 128)]),
        (2, 0, [(128, 2)]),
        (600, 0, [(512, 512), (128, 88)]),
        (50, 960, [(1, 1)] * 50),
    ],
)
def test_a_prompt_is_cut_into_the_lengths_of_the_parts(count: int, length: int, expected: Any) -> None:
    assert pieces(count, length, 1024, (1, 128, 512)) == [*expected]
    assert sum(real for _, real in expected) == count


@pytest.mark.parametrize(
    ("wanted", "streams", "full", "expected"),
    [
        ([0, 1, 2, 3], 4, [], [(0, 4)]),
        ([0, 1, 2], 3, [], [(0, 2), (2, 1)]),
        ([1], 4, [], [(1, 1)]),
        ([0, 3], 4, [], [(0, 4)]),
        ([0, 3], 4, [2], [(0, 1), (3, 1)]),
        ([0, 1, 4], 5, [], [(0, 2), (4, 1)]),
        ([2], 4, [2], [(2, 1)]),
    ],
)
def test_single_steps_run_in_as_few_parts_as_fit(wanted: Any, streams: int, full: Any, expected: Any) -> None:
    assert windows(wanted, streams, (1, 2, 4), full) == expected


def test_parts_follow_from_the_recipes_situations() -> None:
    made = parts_for([1, 8], [128, 512], 1024)
    assert [(p.batch, p.tokens) for p in made] == [(1, 1), (8, 1), (1, 128), (1, 512)]
    assert len({p.file for p in made}) == 4
    assert [(p.batch, p.tokens) for p in parts_for([1], [3], 1024)] == [(1, 1), (1, LEAST_PREFILL)]
    assert [(p.batch, p.tokens) for p in parts_for([1], [], 96)] == [(1, 1), (1, 96)]
