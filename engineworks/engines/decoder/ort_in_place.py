"""A decoder with a cache of fixed capacity on ONNX Runtime's CPU provider: inputs and outputs of the cache are bound to
the same memory, so that no step copies it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engineworks.engines.decoder.base import Logits, Streams, Tokens, check_tokens, runs_of
from engineworks.errors import RunError
from engineworks.model.decoder.interface import DecoderInterface
from engineworks.model.ort import ort_errors, plain

MOST_LOGITS_BYTES = 64 << 20
"""Memory for logits of a prompt, of which only the last are asked for. A graph gives all: 8 streams of 512 tokens of a
vocabulary of 49,152 are 768 MiB. Longer prompts run in pieces."""


@dataclass(frozen=True)
class _Bound:
    """A run of streams [low, high) with so many tokens each: bound once, its buffers are written before every run."""

    binding: Any
    ids: NDArray[np.int64]
    at: NDArray[np.int64]
    logits: NDArray[Any]


class OrtInPlaceDecoder(Streams):
    """Satisfies `base.DecoderSession`. session: an `InferenceSession`."""

    def __init__(self, session: Any, interface: DecoderInterface, streams: int) -> None:
        super().__init__(interface, streams)
        self._session = session
        types = {i.name: i.type for i in session.get_inputs()}
        self._ids_type = np.int32 if types[interface.ids] == "tensor(int32)" else np.int64
        self._caches = {
            c.input: np.zeros(c.concrete(streams, interface.context), _dtype(types[c.input])) for c in interface.caches
        }
        logits = next(o for o in session.get_outputs() if o.name == interface.logits)
        self._logits_type = _dtype(logits.type)
        self._bound: dict[tuple[int, int], _Bound] = {}

    notes = ()

    def step(self, tokens: Mapping[int, Tokens]) -> dict[int, Logits]:
        return self._step(tokens, last=False)

    def last_logits(self, tokens: Mapping[int, Tokens]) -> dict[int, Logits]:
        check_tokens(self._interface, self._lengths, tokens)
        most = max(1, MOST_LOGITS_BYTES // (np.dtype(self._logits_type).itemsize * self._interface.vocabulary))
        if len(tokens) * max(map(len, tokens.values())) <= most:
            pieces = [dict(tokens)]
        else:
            pieces = [{s: new[i : i + most]} for s, new in tokens.items() for i in range(0, len(new), most)]
        found = dict[int, Logits]()
        for piece in pieces:
            found |= {stream: logits[0] for stream, logits in self._step(piece, last=True).items()}
        return found

    def _step(self, tokens: Mapping[int, Tokens], *, last: bool) -> dict[int, Logits]:
        check_tokens(self._interface, self._lengths, tokens)
        found: dict[int, Logits] = {}
        for low, high in self._ranges(tokens):
            longest = max(len(tokens[s]) for s in range(low, high) if s in tokens)
            bound = self._bind(low, high, longest)
            bound.ids[:] = 0
            for stream in range(low, high):
                new = tokens.get(stream, ())
                bound.ids[stream - low, : len(new)] = new
                bound.at[stream - low] = min(self._lengths[stream], self._interface.context - longest)
            self._run(bound)
            for stream in range(low, high):
                if stream in tokens:
                    count = len(tokens[stream])
                    first = count - 1 if last else 0
                    made = bound.logits[stream - low, first:count]  # the next step overwrites a single token's buffer
                    found[stream] = made.astype(np.float32, copy=last or longest == 1)
                    self._lengths[stream] += count
        return found

    def _ranges(self, tokens: Mapping[int, Tokens]) -> list[tuple[int, int]]:
        """Return the streams that run together: neighbours, and for single tokens also idle streams between them. An
        idle stream writes at its next position, which nothing reads before it is overwritten."""
        if all(len(new) == 1 for new in tokens.values()):
            low, high = min(tokens), max(tokens) + 1
            full = [s for s in range(low, high) if self._lengths[s] == self._interface.context]
            return [(low, high)] if not full else runs_of(list(tokens))
        ranges = []
        for low, high in runs_of(list(tokens)):
            longest = max(len(tokens[s]) for s in range(low, high))
            fits = all(self._lengths[s] + longest <= self._interface.context for s in range(low, high))
            fits &= not self._interface.lone_appends or not any(self._lengths[low:high])
            ranges += [(low, high)] if fits else [(s, s + 1) for s in range(low, high)]
        return ranges

    def next_step(self, tokens: Tokens) -> None:
        check_tokens(self._interface, self._lengths, {s: tokens[s : s + 1] for s in range(self.streams)})
        bound = self._bind(0, self.streams, 1)
        bound.ids[:, 0] = tokens
        bound.at[:] = self._lengths
        self._run(bound)
        self._lengths = [length + 1 for length in self._lengths]

    def close(self) -> None:
        self._session, self._bound, self._caches = None, {}, {}

    def _bind(self, low: int, high: int, count: int) -> _Bound:
        key = (low, high)
        known = self._bound.get(key) if count == 1 else None
        if known is not None:
            return known
        if self._session is None:
            raise RunError("this session was closed; load the engine again")
        face, binding, batch = self._interface, self._session.io_binding(), high - low
        ids, at = np.zeros((batch, count), self._ids_type), np.zeros(batch, np.int64)
        logits = np.empty((batch, count, face.vocabulary), self._logits_type)
        bound = _Bound(binding, ids, at, logits)
        given = {face.ids: ids, face.positions: at}
        for cache in face.caches:
            given[cache.input] = self._caches[cache.input][low:high]
            _bind_output(binding, cache.output, given[cache.input])
        for name, array in given.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        _bind_output(binding, face.logits, logits)
        if count == 1:
            self._bound[key] = bound
        return bound

    def _run(self, bound: _Bound) -> None:
        try:
            self._session.run_with_iobinding(bound.binding)
        except ort_errors() as error:
            raise RunError(f"ONNX Runtime failed at {list(bound.ids.shape)} tokens: {plain(error)}") from None


def _bind_output(binding: Any, name: str, array: NDArray[Any]) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _dtype(ort_type: str) -> type[np.generic]:
    return np.float16 if ort_type == "tensor(float16)" else np.float32
