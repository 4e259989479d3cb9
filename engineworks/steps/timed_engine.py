"""An engine in a process of its own that runs on request, so that engines of two environments are timed interleaved.

Reads one JSON object a line: first the payload, then orders ({"do": "load"}, {"do": "time", shape, runs}, {"do":
"close"}, {"do": "sample"}). Answers each with a line: {} or what was asked for, or {"error": message}.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from engineworks.engines.backends.base import Serving, Session
from engineworks.engines.decoder.base import DecoderSession
from engineworks.engines.decoder.open import open_decoder
from engineworks.engines.engine_session import load_engine, runner_of
from engineworks.engines.verified import verified_engine
from engineworks.errors import EngineworksError
from engineworks.recipe.samples import feeds_at, samples_from_json
from engineworks.steps.compare_champion import come_to_rest, eager_serving
from engineworks.steps.decoder.measure import TimedShape
from engineworks.steps.decoder.texts import read_texts
from engineworks.tensors import spec_from_json


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    engine: TimedEngine | None = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if engine is None:
                engine, answer = TimedEngine(order), dict[str, Any]()
            else:
                answer = engine.follow(order)
        except EngineworksError as error:
            answer = {"error": error.message}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class TimedEngine:
    """payload: folder of the engine, params of its step `measure` (at, inputs, samples, serving, target; of a decoder
    at, decoder, serving, target), evaluation (paths)."""

    def __init__(self, payload: Mapping[str, Any]) -> None:
        self._folder, self._params = Path(payload["folder"]), payload["params"]
        self._runs = _decoder_runs(payload) if "decoder" in self._params else _runs(payload)
        self._watch = runner_of(self._params["target"]).device_watch()
        self._cache = tempfile.TemporaryDirectory(prefix="engineworks-rehearse-")
        self._loaded: Runs | None = None

    def follow(self, order: Mapping[str, Any]) -> dict[str, Any]:
        match order["do"]:
            case "load":
                self._loaded = self._runs(eager_serving(self._params), Path(self._cache.name))
            case "time":
                assert self._loaded is not None
                timed = self._loaded.time(order["shape"], order["runs"])
                come_to_rest()
                return {"ms": list(timed)}
            case "sample":
                return {"reading": dict(self._watch.sample())}
            case "close" if self._loaded is not None:
                self._loaded.close()
                self._loaded = None
                come_to_rest()
        return {}


class Runs(Protocol):
    """A loaded engine."""

    def time(self, shape: str, runs: int) -> Sequence[float]:
        """Return the milliseconds of each run at a named shape: of a decoder, of each step."""
        ...

    def close(self) -> None: ...


Loader = Callable[[Serving, Path], Runs]
"""Loads the engine; the path is a folder for what makes the next load faster."""


def _runs(payload: Mapping[str, Any]) -> Loader:
    params = payload["params"]
    specs = tuple(spec_from_json(s) for s in params["inputs"])
    samples = samples_from_json(payload["evaluation"], params["samples"])
    feeds = {name: feeds_at(specs, samples, at["dims"]) for name, at in params["at"].items()}
    folder, target = Path(payload["folder"]), params["target"]
    return lambda serving, cache: _Engine(load_engine(folder, target, serving=serving, cache=cache), feeds)


@dataclass(frozen=True)
class _Engine:
    session: Session
    feeds: Mapping[str, Mapping[str, NDArray[Any]]]

    def time(self, shape: str, runs: int) -> Sequence[float]:
        return self.session.time_runs(self.feeds[shape], runs).host_ms

    def close(self) -> None:
        self.session.close()


def _decoder_runs(payload: Mapping[str, Any]) -> Loader:
    (evaluation,) = payload["evaluation"]
    long, folder, params = read_texts(Path(evaluation)).long, Path(payload["folder"]), payload["params"]

    def load(serving: Serving, cache: Path) -> Runs:
        with verified_engine(folder) as engine:
            sessions = {
                name: open_decoder(engine, params["target"], at["dims"]["streams"], serving=serving, cache=cache)
                for name, at in params["at"].items()
            }
        return _Decoder(
            sessions, {name: TimedShape(s, params["at"][name]["dims"], long) for name, s in sessions.items()}
        )

    return load


@dataclass(frozen=True)
class _Decoder:
    """A session for each shape: they differ in their number of streams."""

    sessions: Mapping[str, DecoderSession]
    shapes: Mapping[str, TimedShape]

    def time(self, shape: str, runs: int) -> Sequence[float]:
        return self.shapes[shape].steps(runs).host_ms

    def close(self) -> None:
        for session in self.sessions.values():
            session.close()
