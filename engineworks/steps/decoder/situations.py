"""Runs a decoder's session through every situation that a served stream meets, and compares its logits with those it
gives alone. `measure.decoder.situations` says what holds and how far logits may differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from engineworks.engines.decoder.base import DecoderSession, Logits, Tokens
from engineworks.errors import RunError
from engineworks.measure.decoder.report import Exact, Refusal, Situation
from engineworks.measure.decoder.situations import worst_of, worst_position

STEPS = 6
"""Tokens that each stream appends after its prompt."""

JOIN, LEAVE = 2, 4
"""Tokens of stream 0 after which others join, and one of them leaves."""


class Situations:
    """session: of at least as many streams as texts. texts: each longer than STEPS."""

    def __init__(self, session: DecoderSession, texts: Sequence[Tokens], long: Tokens) -> None:
        self._session, self._long = session, long
        self._texts = [text[: session.interface.context - 1] for text in texts]
        self._prompts = [max(1, len(text) - STEPS) for text in self._texts]
        self._plain = [self._alone(0, text, prompt) for text, prompt in zip(self._texts, self._prompts, strict=True)]

    def run(self) -> dict[str, Situation]:
        """Return the worst difference of each situation, with its stream and position."""
        every: Mapping[str, Callable[[], Situation]] = {
            "at_once": self._at_once, "beside": self._alongside, "places": self._places, "joining": self._joining,
            "lengths": self._lengths, "reused": self._reused, "again": self._again, "leak": self._leak,
            "neighbour": self._neighbour,
        }  # fmt: skip
        graph = {"graph": self._graph()} if self._session.use_graphs(True) else {}
        return {name: situation() for name, situation in every.items()} | graph

    def end(self, count: int) -> tuple[dict[str, Situation], Logits]:
        """Fill the context at once, and again with the last `count` tokens one by one; try one token more.

        Returns the situations `end` and `beyond`, and the last `count` logits of the first way.
        """
        steps = min(count, len(self._long) - 1)
        self._session.reset()
        full = self._session.step({0: self._long})[0][-count:].copy()  # the rest may take half as much as the weights
        beyond = self._beyond()
        self._session.reset()
        self._session.last_logits({0: self._long[:-steps]})
        ones = [self._session.step({0: token})[0] for token in np.split(self._long[-steps:], steps)]
        found = self._worst([(0, np.concatenate(ones), full[-steps:])], first=len(self._long) - steps)
        return {"end": found, "beyond": beyond}, full

    def _alone(self, stream: int, text: Tokens, prompt: int) -> Logits:
        """Return logits [len(text), vocabulary]: the prompt at once, then token by token."""
        self._session.reset()
        return self._stepwise(stream, text, prompt)

    def _stepwise(self, stream: int, text: Tokens, prompt: int) -> Logits:
        parts = [self._session.step({stream: text[:prompt]})[stream]]
        parts += [self._session.step({stream: text[i : i + 1]})[stream] for i in range(prompt, len(text))]
        return np.concatenate(parts)

    def _at_once(self) -> Situation:
        found = []
        for index, text in enumerate(self._texts):
            self._session.reset()
            found.append((index, self._session.step({0: text})[0], self._plain[index]))
        return self._worst(found)

    def _alongside(self) -> Situation:
        return self._worst(self._together({i: i for i in range(len(self._texts))}))

    def _places(self) -> Situation:
        last = self._session.streams - 1
        return self._worst(self._together({i: last - i for i in range(len(self._texts))}))

    def _lengths(self) -> Situation:
        """Prompts of different lengths in one call, then all step by step until each has ended."""
        prompts = {i: max(1, prompt - 2 * i) for i, prompt in enumerate(self._prompts)}
        return self._worst(self._together({i: i for i in range(len(self._texts))}, prompts))

    def _together(
        self, places: Mapping[int, int], prompts: Mapping[int, int] | None = None
    ) -> list[tuple[int, Logits, Logits]]:
        """Run all texts together, each in its place; one that has ended stays while the others go on."""
        given = prompts or dict(enumerate(self._prompts))
        self._session.reset()
        made = self._session.step({places[i]: self._texts[i][: given[i]] for i in places})
        parts = {i: [made[places[i]]] for i in places}
        at = dict(given)
        while left := [i for i in places if at[i] < len(self._texts[i])]:
            made = self._session.step({places[i]: self._texts[i][at[i] : at[i] + 1] for i in left})
            for i in left:
                parts[i].append(made[places[i]])
                at[i] += 1
        return [(i, np.concatenate(parts[i]), self._plain[i]) for i in places]

    def _joining(self) -> Situation:
        """Stream 0 runs; others join at its third token, one leaves two tokens later, and text 0 takes its place."""
        self._session.reset()
        runs = {0: (0, [self._session.step({0: self._texts[0][: self._prompts[0]]})[0]])}
        ended: list[tuple[int, list[Logits]]] = []
        for turn in range(len(self._texts[0]) - self._prompts[0]):
            if turn == JOIN:
                runs |= {i: self._begin(i, i) for i in range(1, len(self._texts))}
            if turn == LEAVE and 1 in runs:
                ended.append(runs[1])
                self._session.reset([1])
                runs[1] = self._begin(1, 0)
            at = {stream: sum(map(len, parts)) for stream, (_, parts) in runs.items()}
            going = {s: self._texts[i][at[s] : at[s] + 1] for s, (i, _) in runs.items() if at[s] < len(self._texts[i])}
            for stream, logits in self._session.step(going).items():
                runs[stream][1].append(logits)
        found = [(i, np.concatenate(parts)) for i, parts in (*runs.values(), *ended)]
        return self._worst([(i, got, self._plain[i][: len(got)]) for i, got in found])

    def _begin(self, stream: int, text: int) -> tuple[int, list[Logits]]:
        return text, [self._session.step({stream: self._texts[text][: self._prompts[text]]})[stream]]

    def _reused(self) -> Situation:
        """The buffers hold a longer text; then another text runs in them."""
        found = []
        for index, text in enumerate(self._texts):
            self._session.reset()
            self._session.step({0: self._long[: 2 * len(text)]})
            self._session.reset([0])
            found.append((index, self._stepwise(0, text, self._prompts[index]), self._plain[index]))
        return self._worst(found)

    def _leak(self) -> Exact:
        """The same text after other contents of the same buffers: the same kernels and shapes, so the same bits."""
        count = min(len(self._long), len(self._texts[0]) + STEPS)
        held = (self._long[:count], self._long[::-1][:count], self._long[:count])
        return _equal([self._after(before) for before in held])

    def _after(self, before: Tokens) -> Logits:
        self._session.reset()
        self._session.step({0: before})
        return self._alone(0, self._texts[0], self._prompts[0])

    def _neighbour(self) -> Exact:
        """The same text beside other tokens of the same number, in the same places."""
        text, prompt = self._texts[0], self._prompts[0]
        other = np.resize(self._long, len(text))
        return _equal([self._beside(text, prompt, beside) for beside in (other, other[::-1], other)])

    def _beside(self, text: Tokens, prompt: int, other: Tokens) -> Logits:
        self._session.reset()
        parts = [self._session.step({0: text[:prompt], 1: other[:prompt]})[0]]
        for at in range(prompt, len(text)):
            parts.append(self._session.step({0: text[at : at + 1], 1: other[at : at + 1]})[0])
        return np.concatenate(parts)

    def _again(self) -> Situation:
        return self._worst([(0, self._alone(0, self._texts[0], self._prompts[0]), self._plain[0])])

    def _graph(self) -> Situation:
        """Without a device's graphs, for comparison: the plain answer was replayed from its second run on."""
        self._session.use_graphs(False)
        without = self._alone(0, self._texts[0], self._prompts[0])
        self._session.use_graphs(True)
        return self._worst([(0, without, self._plain[0])])

    def _beyond(self) -> Refusal:
        try:
            self._session.step({0: self._long[:1]})
        except RunError:
            return Refusal(True)
        return Refusal(False)

    def _worst(self, found: Sequence[tuple[int, Logits, Logits]], first: int = 0) -> Situation:
        """found: text, its logits here, and those that it should have."""
        return worst_of([worst_position(got, plain, i, first) for i, got, plain in found])


def _equal(runs: Sequence[Logits]) -> Exact:
    """runs: one, one in another surrounding, and the first again: a device may change its kernels meanwhile."""
    first, other, same = runs
    return Exact(np.array_equal(first, other) if np.array_equal(first, same) else None)
