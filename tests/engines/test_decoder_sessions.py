"""A stream's logits are the same in every situation, for both forms of a cache; a planted fault is found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from growing_decoder import write_growing_decoder

from engineworks.engines.decoder.base import runs_of
from engineworks.engines.decoder.open import open_onnx_decoder
from engineworks.engines.decoder.ort import OrtInPlaceDecoder
from engineworks.errors import ModelError, RunError
from engineworks.measure.decoder.report import Exact
from engineworks.measure.decoder.situations import is_right
from engineworks.model.decoder.interface import DecoderInterface, guess_cache, read_interface
from engineworks.model.onnx_files import graph_inputs, graph_outputs, load_model
from engineworks.steps.decoder.fused_model import SourceModel, fused_model
from engineworks.steps.decoder.situations import Situations
from engineworks.tensors import TensorSpec

IN_PLACE = Path("recipes/models/tiny-decoder/model.onnx")
OPTIONS = {"threads": 1, "spinning": False}


def interface_of(path: Path, context: int) -> DecoderInterface:
    model = load_model(path, weights=False)
    return read_interface(graph_inputs(model), graph_outputs(model), context, {})


@pytest.fixture(params=["in_place", "growing", "fused"])
def opened(request, tmp_path):
    path = write_growing_decoder(tmp_path / "growing.onnx") if request.param == "growing" else IN_PLACE
    face = interface_of(path, 96)
    assert (face.form == "growing") == (request.param == "growing")
    if request.param == "fused":
        made = fused_model(SourceModel(path, face), tmp_path / "fused.onnx")
        path, face = made.path, made.interface
    session = open_onnx_decoder(path, face, 4, OPTIONS)
    yield session
    session.close()


def texts_for(session, count=3, length=20):
    rng = np.random.default_rng(0)
    return [rng.integers(0, session.interface.vocabulary, length - i) for i in range(count)]


def situations_of(session):
    long = np.random.default_rng(1).integers(0, session.interface.vocabulary, session.interface.context)
    situations = Situations(session, texts_for(session), long)
    return situations.run() | situations.end(3)[0]


def wrong_in(session):
    return {name for name, found in situations_of(session).items() if not is_right(found, "fp32")}


def test_every_situation_is_right(opened):
    found = situations_of(opened)
    assert {name for name, f in found.items() if not is_right(f, "fp32")} == set()
    assert len(found) == 11
    assert {found["leak"], found["neighbour"]} == {Exact(True)}


def test_a_step_beyond_the_context_changes_nothing(opened):
    opened.step({0: np.zeros(94, np.int64)})
    with pytest.raises(RunError, match="stream 0 holds 94 of 96 positions: 3 more do not fit"):
        opened.step({0: np.zeros(3, np.int64), 1: np.zeros(3, np.int64)})
    assert opened.lengths == (94, 0, 0, 0)


def test_the_last_logits_are_those_of_a_step(opened):
    texts = dict(enumerate(texts_for(opened)))
    last = opened.last_logits(texts)
    opened.reset()
    for stream, logits in opened.step(texts).items():
        assert last[stream] == pytest.approx(logits[-1], abs=1e-5)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({7: [1]}, "there is no stream 7"),
        ({0: []}, "stream 0 was given no tokens"),
        ({0: [-1]}, "token -1 is outside"),
        ({0: [100_000]}, "token 100000 is outside"),
    ],
)
def test_tokens_that_cannot_be(opened, tokens, message):
    with pytest.raises(RunError, match=message):
        opened.step({stream: np.array(ids, np.int64) for stream, ids in tokens.items()})


def test_a_timed_step_appends_to_every_stream(opened):
    text = texts_for(opened)[0]
    opened.step(dict.fromkeys(range(4), text[:5]))
    opened.next_step(np.full(4, text[5]))
    after = opened.step({2: text[6:8]})[2]
    opened.reset()
    assert after == pytest.approx(opened.step({0: text[:8]})[0][-2:], abs=1e-4)


class Faulty(OrtInPlaceDecoder):
    """An in-place session with one fault."""

    fault, _seen = "", 0

    def step(self, tokens):
        if self.fault == "next position" and any(len(t) == 1 for t in tokens.values()):
            self._lengths = [min(n + 1, self.interface.context - 1) for n in self._lengths]
        if self.fault == "all rows at the first's position" and len(tokens) > 1:
            own, first = list(self._lengths), self._lengths[min(tokens)]
            self._lengths = [first] * len(own)
            made = super().step(tokens)
            self._lengths = [n + len(tokens.get(s, ())) for s, n in enumerate(own)]
            return made
        made = super().step(tokens)
        if self.fault == "leak" and len(tokens) > 1:
            low, high = min(tokens), max(tokens)
            for cache in self._caches.values():
                cache[high, :, 0] = cache[low, :, 0]
        if self.fault == "the last place is wrong" and self.streams - 1 in tokens:
            made[self.streams - 1] = made[self.streams - 1][:, ::-1]
        if self.fault == "padding is read" and len({len(t) for t in tokens.values()}) > 1:
            longest = max(len(t) for t in tokens.values())
            self._lengths = [longest if s in tokens else n for s, n in enumerate(self._lengths)]
            self._lengths = [min(n, self.interface.context - 1) for n in self._lengths]
        if self.fault == "the end is overwritten" and max(self._lengths) == self.interface.context:
            made = {s: logits + 1e-2 * np.arange(logits.shape[1]) * (len(logits) == 1) for s, logits in made.items()}
        if self.fault == "faint trace":  # far below every tolerance
            made = {s: logits + np.float32(1e-6 * self._seen) for s, logits in made.items()}
            self._seen = int(tokens[0][0]) if 0 in tokens and len(tokens[0]) > 20 else self._seen
        if self.fault == "faint neighbour" and {0, 1} <= set(tokens):
            made[0] = made[0] + np.float32(1e-6 * int(tokens[1][0]))
        self._calls = getattr(self, "_calls", 0) + 1
        if self.fault == "worn" and self._calls > 60:
            made = {s: np.roll(logits, 1, axis=-1) for s, logits in made.items()}
        return made

    def reset(self, streams=None):
        if self.fault == "stale" and streams:
            return
        super().reset(streams)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("next position", "at_once"),
        ("all rows at the first's position", "joining"),
        ("leak", "beside"),
        ("stale", "reused"),
        ("the last place is wrong", "places"),
        ("padding is read", "lengths"),
        ("the end is overwritten", "end"),
        ("worn", "again"),
        ("faint trace", "leak"),
        ("faint neighbour", "neighbour"),
    ],
)
def test_a_planted_fault_is_found(fault, expected):
    opened = open_onnx_decoder(IN_PLACE, interface_of(IN_PLACE, 96), 4, OPTIONS)
    faulty = Faulty(opened._session, opened.interface, 4)
    faulty.fault = fault
    assert expected in wrong_in(faulty)


def test_no_error_beyond_the_context_is_found(monkeypatch):
    session = open_onnx_decoder(IN_PLACE, interface_of(IN_PLACE, 96), 4, OPTIONS)
    own = session.step

    def forgiving(tokens):
        if session.lengths[0] == 96 and set(tokens) == {0}:
            return {0: np.zeros((1, session.interface.vocabulary), np.float32)}
        return own(tokens)

    monkeypatch.setattr(session, "step", forgiving)
    assert wrong_in(session) == {"beyond"}


def test_neighbouring_streams_run_together():
    assert runs_of([4, 0, 1, 3]) == [(0, 2), (3, 5)]


def test_caches_by_their_usual_names():
    inputs = ["input_ids", "past_key_values.0.key", "past_v", "past.3", "other"]
    outputs = ["logits", "present.0.key", "present_v", "present.3"]
    assert guess_cache(inputs, outputs) == {
        "past_key_values.0.key": "present.0.key", "past_v": "present_v", "past.3": "present.3",
    }  # fmt: skip


IDS, LOGITS = TensorSpec("input_ids", "int64", ("b", "s")), TensorSpec("logits", "float32", ("b", "s", 8))
PAST, PRESENT = TensorSpec("past_k", "float32", ("b", 2, "p", 4)), TensorSpec("present_k", "float32", ("b", 2, "t", 4))


@pytest.mark.parametrize(
    ("inputs", "outputs", "named", "message"),
    [
        ([IDS], [LOGITS], {}, "no cache is found"),
        ([IDS, PAST], [LOGITS, PRESENT], {"past_q": "present_k"}, "no input 'past_q'"),
        ([IDS, PAST], [LOGITS, PRESENT], {"past_k": "present_q"}, "no output 'present_q'"),
        ([IDS, PAST, TensorSpec("bias", "float32", ("b",))], [LOGITS, PRESENT], {}, "input 'bias' is neither"),
        ([IDS, PAST], [TensorSpec("logits", "float32", ("b", "s", "v")), PRESENT], {}, "how long the vocabulary is"),
        ([IDS, TensorSpec("past_k", "float32", (1, 2, "p", 4))], [LOGITS, PRESENT], {}, "no one dimension"),
    ],
)
def test_what_cannot_be_fed_is_named(inputs, outputs, named, message):
    with pytest.raises(ModelError, match=message):
        read_interface(inputs, outputs, 16, named)


def test_a_fixed_cache_of_another_capacity_is_refused():
    with pytest.raises(ModelError, match="holds 96 positions, not 64"):
        interface_of(IN_PLACE, 64)


def test_the_interface_survives_json():
    face = interface_of(IN_PLACE, 96)
    assert DecoderInterface.from_json(json.loads(json.dumps(face.to_json()))) == face
