"""Served answers compared with what the engine gave in this host's own session."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from engineworks.engines.backends.base import Session
from engineworks.errors import RunError
from engineworks.host.lazy import Array, Arrays
from engineworks.serving.client import Client, Protocol
from engineworks.tensors import TensorSpec


@dataclass(frozen=True)
class Question:
    """One request, and the engine's own outputs for it."""

    feeds: Arrays
    outputs: Arrays


@dataclass
class Answers:
    """The results of requests. equal: answers whose every bit is the engine's. worst: by output, the largest relative
    error of a row (`row_error`). errors: of requests without an answer, the first few."""

    requests: int
    equal: int
    worst: dict[str, float]
    errors: list[str]

    def to_json(self) -> dict[str, Any]:
        """As `measure.serving_report.AnswersReport`."""
        worst = {name: error if np.isfinite(error) else None for name, error in self.worst.items()}
        return {"requests": self.requests, "equal": self.equal, "worst": worst, "errors": self.errors}


MOST_ERRORS = 5


def questions(session: Session, feeds: Iterator[Arrays] | Sequence[Arrays]) -> list[Question]:
    """Run the session once for each of the feeds, in the dtypes of its inputs."""
    dtypes = {spec.name: spec.dtype for spec in session.inputs}
    asked = [{name: np.ascontiguousarray(a.astype(dtypes[name])) for name, a in feed.items()} for feed in feeds]
    return [Question(feed, {n: a.copy() for n, a in session.run(feed).items()}) for feed in asked]


def ask(
    client: Client, model: str, asked: Sequence[Question], *, keep: Callable[[int, Arrays], None] | None = None
) -> Answers:
    """Ask one question after the other. keep: gets each question's number and its answer."""
    answers = Answers(0, 0, {}, [])
    for index, question in enumerate(asked):
        answers.requests += 1
        try:
            got = client.infer(model, question.feeds)
        except RunError as error:
            answers.errors = [*answers.errors, error.message][:MOST_ERRORS]
            continue
        _compare(answers, got, question.outputs)
        if keep is not None:
            keep(index, got)
    return answers


def ask_at_once(address: str, protocol: Protocol, model: str, asked: Sequence[Question], clients: int) -> Answers:
    """Let several clients ask all questions at the same time, each in another order."""

    def work(number: int) -> Answers:
        turned = [*asked[number * len(asked) // clients :], *asked[: number * len(asked) // clients]]
        with Client(address, protocol) as client:
            return ask(client, model, turned)

    with ThreadPoolExecutor(clients) as pool:
        return joined(list(pool.map(work, range(clients))))


def joined(parts: Sequence[Answers]) -> Answers:
    """Return the answers of all parts as one."""
    worst: dict[str, float] = {}
    for part in parts:
        worst |= {name: max(error, worst.get(name, 0.0)) for name, error in part.worst.items()}
    errors = [error for part in parts for error in part.errors][:MOST_ERRORS]
    return Answers(sum(p.requests for p in parts), sum(p.equal for p in parts), worst, errors)


def spread(session: Session, asked: Sequence[Question]) -> float:
    """Return how much the engine's own rows differ between a batch and a run of one row: what batching may change.

    The largest relative error of a row, over the outputs. Only for models whose batch is axis 0 of every input.
    """
    largest = 0.0
    for question in asked[:4]:
        for row in range(min(4, *(len(a) for a in question.feeds.values()))):
            alone = session.run({name: a[row : row + 1] for name, a in question.feeds.items()})
            for name, array in alone.items():
                if question.outputs[name].shape[1:] == array.shape[1:]:
                    largest = max(largest, row_error(array, question.outputs[name][row : row + 1]))
    return largest


def refusals(
    client: Client, model: str, question: Question, specs: Sequence[TensorSpec], most: int
) -> list[dict[str, Any]]:
    """Send requests that the server must refuse, and after each a good one, which must be answered.

    most: the largest batch, 0 where the server does no batching. Returns what was wrong, whether it was refused, the
    server's words, and whether the next answer was right.
    """
    results = []
    for what, feeds in _wrong(question.feeds, specs, most).items():
        try:
            client.infer(model, feeds)
            refused, message = False, ""
        except RunError as error:
            refused, message = True, error.message
        after = ask(client, model, [question])
        right = not after.errors and max(after.worst.values(), default=0.0) < 0.01
        results.append({"what": what, "refused": refused, "words": message, "right_after": right})
    return results


def _wrong(feeds: Arrays, specs: Sequence[TensorSpec], most: int) -> dict[str, Arrays]:
    name = next(iter(feeds))
    first = feeds[name]
    other = np.int32 if first.dtype.kind == "f" else np.float32
    cases: dict[str, Arrays] = {
        "dtype": {**feeds, name: first.astype(other)},
        "rank": {**feeds, name: first[..., np.newaxis]},
        "missing input": {n: a for n, a in feeds.items() if n != name} or {"no such input": first},
        "unknown input": {**feeds, "no_such_input": first},
    }
    fixed = next(
        (i for spec in specs if spec.name == name for i, d in enumerate(spec.shape) if isinstance(d, int) and i), None
    )
    if fixed is not None:
        cases["length"] = {**feeds, name: np.concatenate([first, first], axis=fixed)}
    if most:
        rows = most + 1
        cases["batch"] = {n: np.repeat(a[:1], rows, axis=0) for n, a in feeds.items()}
    return cases


def row_error(got: Array, wanted: Array) -> float:
    """Return the relative error |got - wanted| / |wanted| (Euclidean) of the worst row; infinite where shapes, dtypes
    or NaNs differ. Outputs without rows count as one."""
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return float("inf")
    rows = len(got) if got.ndim else 1
    if got.size == 0:
        return 0.0
    g, w = (np.asarray(a, np.float64).reshape(rows, -1) for a in (got, wanted))
    if not np.array_equal(np.isfinite(g), np.isfinite(w)):
        return float("inf")
    g, w = np.nan_to_num(g, posinf=0, neginf=0), np.nan_to_num(w, posinf=0, neginf=0)
    scale = np.linalg.norm(w, axis=1)
    difference = np.linalg.norm(g - w, axis=1)
    return float(np.max(np.where(difference > 0, difference / np.where(scale > 0, scale, 1.0), 0.0)))


def _compare(answers: Answers, got: Arrays, wanted: Arrays) -> None:
    same = got.keys() == wanted.keys()
    for name, expected in wanted.items():
        error = row_error(got[name], expected) if name in got else float("inf")
        answers.worst[name] = max(error, answers.worst.get(name, 0.0))
        same = same and name in got and got[name].tobytes() == expected.tobytes()
    answers.equal += same
