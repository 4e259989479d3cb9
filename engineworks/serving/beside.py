"""Champion and candidate, each on a server of its own: the same requests to both, answers and latencies compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engineworks.errors import RunError
from engineworks.host.lazy import Arrays
from engineworks.measure.accuracy import OutputComparison
from engineworks.measure.interleave import SIDES, Side
from engineworks.serving.client import Client

MOST_TIMED = 16
"""Requests of a group that one timed pass sends."""


class ServedModel:
    """A model on a server. Satisfies `interleave.Loaded`: a run is one pass over a group's requests, one at a time."""

    def __init__(self, client: Client, model: str, groups: Mapping[str, Sequence[Arrays]]) -> None:
        self._client, self._model = client, model
        self._inputs = {name: [client.inputs(feeds) for feeds in group] for name, group in groups.items()}
        client.load(model)

    def time_runs(self, shape: str, runs: int) -> list[float]:
        """Return the milliseconds of each pass; one before them is not timed."""
        return [self._pass(shape) for _ in range(1 + runs)][1:]

    def _pass(self, group: str) -> float:
        start = time.perf_counter()
        for inputs in self._inputs[group]:
            self._client.answer(self._model, inputs)
        return 1000 * (time.perf_counter() - start)

    def close(self) -> None:
        self._client.unload(self._model)


def some_of(requests: Sequence[Arrays]) -> list[Arrays]:
    """Return at most `MOST_TIMED` requests, evenly spread."""
    count = min(MOST_TIMED, len(requests))
    return [requests[index * len(requests) // count] for index in range(count)]


class Beside:
    """Asks both sides the same requests. answered: numbers of the requests that both answered."""

    def __init__(self, clients: Mapping[Side, Client], model: str) -> None:
        self._clients, self._model = clients, model
        self.answered: list[int] = []

    def compare(
        self, requests: Sequence[Arrays], axes: Mapping[str, int | None],
        keep: Callable[[int, Mapping[Side, Arrays]], None] = lambda _number, _answers: None,
    ) -> dict[str, Any]:  # fmt: skip
        """Return the numbers of requests, of those that both refused and of equal answers, the requests that only one
        side answered, and by output the distance of the candidate's answers from the champion's (`OutputAccuracy`).

        axes: the batch axis of each output. keep: gets the answers to a request that both answered.
        """
        outputs: dict[str, OutputComparison] = {}
        equal, refused, torn = 0, 0, list[str]()
        self.answered = []
        for number, feeds in enumerate(requests):
            got, words = self._ask(feeds, SIDES if number % 2 else SIDES[::-1])
            if len(words) == 2:
                refused += 1
            elif words:
                torn.append(f"request {number + 1}: {next(iter(words.values()))}")
            elif why := _unlike(got["champion"], got["candidate"]):
                torn.append(f"request {number + 1}: {why}")
            else:
                self.answered.append(number)
                equal += all(got["candidate"][n].tobytes() == a.tobytes() for n, a in got["champion"].items())
                for name, array in got["champion"].items():
                    outputs.setdefault(name, OutputComparison(axes.get(name))).add(got["candidate"][name], array)
                keep(number, got)
        return {
            "requests": len(requests), "refused": refused, "equal": equal, "torn": len(torn),
            "first_torn": torn[0] if torn else "", "outputs": {n: o.result().to_json() for n, o in outputs.items()},
        }  # fmt: skip

    def _ask(self, feeds: Arrays, order: Sequence[Side]) -> tuple[dict[Side, Arrays], dict[Side, str]]:
        """Return the answers of the sides that gave one, and the words of the others."""
        got, words = dict[Side, Arrays](), dict[Side, str]()
        for side in order:
            try:
                got[side] = self._clients[side].infer(self._model, feeds)
            except RunError as error:
                words[side] = f"the {side} gave no answer: {error.message}"
        return got, words


def _unlike(champion: Arrays, candidate: Arrays) -> str:
    """Say how the answers differ in more than their values, '' where they do not."""
    if champion.keys() != candidate.keys():
        return f"the outputs are {', '.join(sorted(candidate))}, the champion's {', '.join(sorted(champion))}"
    for name, array in champion.items():
        if (other := candidate[name]).shape != array.shape:
            return f"output '{name}' has shape {list(other.shape)}, the champion's {list(array.shape)}"
    return ""
