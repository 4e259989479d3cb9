"""What serving costs: latencies of a served model, of the same engine alone, and of a model that answers at once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from engineworks.engines.backends.base import Session
from engineworks.measure.statistics import quantile_interval
from engineworks.serving.answers import Question
from engineworks.serving.client import Client

NAME = "engineworks-identity"

MODEL = '''"""Answers at once with outputs of the right shapes."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as triton

OUTPUTS = json.loads(Path(__file__).with_name("outputs.json").read_text())


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        rows = triton.get_input_tensor_by_name(request, INPUT).shape()[0]
        tensors = []
        for name, (shape, dtype) in OUTPUTS.items():
            capsule = np.zeros([rows, *shape[1:]], dtype).__dlpack__()
            tensors.append(triton.Tensor.from_dlpack(name, capsule))
        return triton.InferenceResponse(output_tensors=tensors)
'''


def write_identity(repository: Path, config: Mapping[str, Any], question: Question) -> None:
    """Write the model into a repository. config: of the model that it stands beside, as the server gives it."""
    folder = repository / NAME / "1"
    folder.mkdir(parents=True, exist_ok=True)
    outputs = {name: [list(a.shape), np.dtype(a.dtype).name] for name, a in question.outputs.items()}
    (folder / "outputs.json").write_text(json.dumps(outputs), encoding="utf-8")
    text = MODEL.replace("INPUT", repr(next(iter(question.feeds))))
    (folder / "model.py").write_text(text, encoding="utf-8")
    (repository / NAME / "config.pbtxt").write_text(f'name: "{NAME}" backend: "python"\n', encoding="utf-8")


def identity_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity model's configuration: the other's tensors, batch and place, without batching."""
    kept = {k: config[k] for k in ("input", "output", "max_batch_size") if k in config}
    groups = [{**group, "count": 1} for group in config["instance_group"][:1]]
    return {"name": NAME, "backend": "python", **kept, "instance_group": groups}


ROUNDS, BLOCK, WARM = 60, 5, 3
"""Blocks of each of the four, timed runs of a block, and untimed ones before them."""


def serving_cost(client: Client, model: str, identity: str, session: Session, question: Question) -> dict[str, Any]:
    """Ask both models and run the engine alone, in alternating blocks; returns medians in ms.

    A block takes some ms, so other programs disturb the four of a round alike; the order changes from round to round.
    The engine alone runs at the pace at which a server runs it, with a pause as long as the identity model's answer:
    the threads of a processor and the clocks of a GPU wake after a pause, whoever asks. "back_to_back_ms" is without.
    Each block begins with untimed runs.

    "ratio": the median over the rounds of what the served engine costs over its own time, relative to what the identity
    model costs. "low", "high": its 95% interval.
    """
    inputs = client.inputs(question.feeds)
    pause_s = [0.0]

    def asked(name: str) -> list[float]:
        times = []
        for _ in range(WARM + BLOCK):
            start = time.perf_counter()
            client.answer(name, inputs)
            times.append(1000 * (time.perf_counter() - start))
        if name == identity:
            pause_s[0] = median(times) / 1000
        return times[WARM:]

    def alone(*, paced: bool) -> list[float]:
        times = []
        for _ in range(WARM + BLOCK):
            if paced:
                time.sleep(pause_s[0])
            start = time.perf_counter()
            session.run(question.feeds)
            times.append(1000 * (time.perf_counter() - start))
        return times[WARM:]

    asked(identity)
    work: dict[str, Callable[[], list[float]]] = {
        "served": lambda: asked(model), "identity": lambda: asked(identity), "engine": lambda: alone(paced=True),
        "back_to_back": lambda: alone(paced=False),
    }  # fmt: skip
    rounds = [
        {name: median(work[name]()) for name in (work if number % 2 else reversed(work))} for number in range(ROUNDS)
    ]
    ratios = sorted((one["served"] - one["engine"]) / one["identity"] for one in rounds)
    interval = quantile_interval(ratios, 0.5)
    return {
        **{f"{name}_ms": median(one[name] for one in rounds) for name in work},
        "ratio": median(ratios), "low": interval.low if interval else None, "high": interval.high if interval else None,
        "rounds": ROUNDS,
    }  # fmt: skip
