"""The interface of a decoder's session: streams, each with its own cache and position.

`step` takes any number of new tokens of any streams: a prompt (prefill), one token each (decode), or both. A stream's
positions only grow, until `reset`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engineworks.errors import RunError
from engineworks.model.decoder.interface import DecoderInterface

Tokens = NDArray[np.int64]
Logits = NDArray[np.float32]


class PromptRunner(Protocol):
    """What is timed of a decoder, an engine or a peer: prompts of all streams at once, all of one length, and steps."""

    @property
    def notes(self) -> Sequence[str]:
        """Remarks on how it runs, one sentence each."""
        ...

    def reset(self, streams: Sequence[int] | None = None) -> None:
        """Empty these streams' caches, or all."""
        ...

    def last_logits(self, tokens: Mapping[int, Tokens]) -> dict[int, Logits]:
        """Append tokens [n] to each named stream. Returns the logits after each stream's last token: f32
        [vocabulary]."""
        ...

    def next_step(self, tokens: Tokens) -> None:
        """Append one token to every stream without reading the logits: what is timed. tokens: [streams]. Waits until it
        is done."""
        ...

    def close(self) -> None: ...


class DecoderSession(PromptRunner, Protocol):
    """Streams of any lengths. Not thread-safe; `close` frees it."""

    @property
    def interface(self) -> DecoderInterface: ...

    @property
    def streams(self) -> int:
        """Number of streams whose caches it holds."""
        ...

    @property
    def lengths(self) -> Sequence[int]:
        """Positions that each stream's cache holds."""
        ...

    def step(self, tokens: Mapping[int, Tokens]) -> dict[int, Logits]:
        """Append tokens [n] to each named stream. Returns logits f32 [n, vocabulary] by stream.

        Raises `RunError` where they do not fit into the cache or the vocabulary; then nothing has changed.
        """
        ...

    def use_graphs(self, wanted: bool) -> bool:
        """Replay a device's graphs from now on, or launch every kernel. False where there are none, as on a CPU."""
        ...


class Streams:
    """The streams of a session of ours, and how many positions the cache of each holds."""

    def __init__(self, interface: DecoderInterface, streams: int) -> None:
        self._interface, self._lengths = interface, [0] * streams

    @property
    def interface(self) -> DecoderInterface:
        return self._interface

    @property
    def streams(self) -> int:
        return len(self._lengths)

    @property
    def lengths(self) -> Sequence[int]:
        return tuple(self._lengths)

    def use_graphs(self, wanted: bool) -> bool:
        del wanted
        return False

    def reset(self, streams: Sequence[int] | None = None) -> None:
        for stream in range(self.streams) if streams is None else streams:
            self._lengths[stream] = 0


def check_tokens(interface: DecoderInterface, lengths: Sequence[int], tokens: Mapping[int, Tokens]) -> None:
    """Raises `RunError` for a stream that does not exist, no tokens, too many, or ids beyond the vocabulary."""
    for stream, new in tokens.items():
        if not 0 <= stream < len(lengths):
            raise RunError(f"there is no stream {stream}: the session has {len(lengths)}")
        if not len(new):
            raise RunError(f"stream {stream} was given no tokens")
        if lengths[stream] + len(new) > interface.context:
            raise RunError(
                f"stream {stream} holds {lengths[stream]} of {interface.context} positions: {len(new)} more do not fit",
                hint="shorten the prompt, or build with a larger model.decoder.context",
            )
        if int(new.min()) < 0 or int(new.max()) >= interface.vocabulary:
            worst = int(new.min()) if int(new.min()) < 0 else int(new.max())
            raise RunError(f"token {worst} is outside of the model's vocabulary of {interface.vocabulary}")


def runs_of(streams: Sequence[int]) -> list[tuple[int, int]]:
    """[0, 1, 3] → [(0, 2), (3, 4)]: neighbouring streams as half-open ranges."""
    ranges: list[tuple[int, int]] = []
    for stream in sorted(streams):
        if ranges and ranges[-1][1] == stream:
            ranges[-1] = (ranges[-1][0], stream + 1)
        else:
            ranges.append((stream, stream + 1))
    return ranges
