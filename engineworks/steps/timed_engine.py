"""An engine in a process of its own that runs on request, so that engines of two environments are timed interleaved.

Reads one JSON object a line: first the payload, then orders ({"do": "load"}, {"do": "time", shape, runs}, {"do":
"close"}, {"do": "sample"}). Answers each with a line: {} or what was asked for, or {"error": message}.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engineworks.engines.backends.base import Session
from engineworks.engines.engine_session import load_engine, runner_of, serving_from_json
from engineworks.errors import EngineworksError
from engineworks.recipe.samples import feeds_at, samples_from_json
from engineworks.steps.compare_champion import come_to_rest
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
    """payload: folder of the engine, params of its step `measure` (at, inputs, samples, serving, target), evaluation
    (paths)."""

    def __init__(self, payload: Mapping[str, Any]) -> None:
        self._folder, self._params = Path(payload["folder"]), payload["params"]
        specs = tuple(spec_from_json(s) for s in self._params["inputs"])
        samples = samples_from_json(payload["evaluation"], self._params["samples"])
        self._feeds = {name: feeds_at(specs, samples, at["dims"]) for name, at in self._params["at"].items()}
        self._watch = runner_of(self._params["target"]).device_watch()
        self._cache = tempfile.TemporaryDirectory(prefix="engineworks-rehearse-")
        self._session: Session | None = None

    def follow(self, order: Mapping[str, Any]) -> dict[str, Any]:
        match order["do"]:
            case "load":
                self._session = self._load()
            case "time":
                assert self._session is not None
                timed = self._session.time_runs(self._feeds[order["shape"]], order["runs"]).host_ms
                come_to_rest()
                return {"ms": list(timed)}
            case "sample":
                return {"reading": dict(self._watch.sample())}
            case "close" if self._session is not None:
                self._session.close()
                self._session = None
                come_to_rest()
        return {}

    def _load(self) -> Session:
        serving = serving_from_json(self._params["serving"])
        if serving.kernels == "lazy":  # a round ends before lazy kernels arrive
            serving = replace(serving, kernels="eager")
        return load_engine(self._folder, self._params["target"], serving=serving, cache=Path(self._cache.name))
