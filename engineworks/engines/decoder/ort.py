"""Decoders on ONNX Runtime's CPU provider: with a cache of fixed capacity, whose inputs and outputs are bound to the
same memory, so that no step copies it, and with one that grows by concatenation.

A graph of the latter has one length for all rows. Streams of the same length run together; streams of other lengths run
by themselves, so that every one gets what it would get alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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


class _OrtStreams(Streams):
    """session: an `InferenceSession`."""

    def __init__(self, session: Any, interface: DecoderInterface, streams: int) -> None:
        super().__init__(interface, streams)
        self._session = session
        types = {i.name: i.type for i in (*session.get_inputs(), *session.get_outputs())}
        self._ids_type = np.int32 if types[interface.ids] == "tensor(int32)" else np.int64
        self._dtypes = {name: np.float16 if kind == "tensor(float16)" else np.float32 for name, kind in types.items()}

    def _open(self) -> Any:
        if self._session is None:
            raise RunError("this session was closed; load the engine again")
        return self._session


@contextmanager
def _errors_at(shape: tuple[int, ...]) -> Iterator[None]:
    """Raise ONNX Runtime's errors as `RunError`. shape: of the tokens."""
    try:
        yield
    except ort_errors() as error:
        raise RunError(f"ONNX Runtime failed at {list(shape)} tokens: {plain(error)}") from None


@dataclass(frozen=True)
class _Bound:
    """A run of streams [low, high) with so many tokens each: bound once, its buffers are written before every run."""

    binding: Any
    ids: NDArray[np.int64]
    at: NDArray[np.int64]
    logits: NDArray[Any]


class OrtInPlaceDecoder(_OrtStreams):
    """Satisfies `base.DecoderSession`."""

    def __init__(self, session: Any, interface: DecoderInterface, streams: int) -> None:
        super().__init__(session, interface, streams)
        self._caches = {
            c.input: np.zeros(c.concrete(streams, interface.context), self._dtypes[c.input]) for c in interface.caches
        }
        self._logits_type = self._dtypes[interface.logits]
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
        face, binding, batch = self._interface, self._open().io_binding(), high - low
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
        with _errors_at(bound.ids.shape):
            self._session.run_with_iobinding(bound.binding)


def _bind_output(binding: Any, name: str, array: NDArray[Any]) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


Caches = dict[str, NDArray[Any]]


class OrtGrowingDecoder(_OrtStreams):
    """Satisfies `base.DecoderSession`."""

    def __init__(self, session: Any, interface: DecoderInterface, streams: int) -> None:
        super().__init__(session, interface, streams)
        self._groups: dict[tuple[int, ...], Caches] = {}

    notes = ("its cache grows by concatenation: streams of different lengths run one after the other",)

    def step(self, tokens: Mapping[int, Tokens]) -> dict[int, Logits]:
        check_tokens(self._interface, self._lengths, tokens)
        together: dict[tuple[int, int], list[int]] = defaultdict(list)
        for stream in sorted(tokens):
            together[self._lengths[stream], len(tokens[stream])].append(stream)
        found: dict[int, Logits] = {}
        for (past, count), streams in together.items():
            logits = self._run(tuple(streams), np.stack([tokens[s] for s in streams]), past)
            for row, stream in enumerate(streams):
                found[stream] = logits[row].astype(np.float32)
                self._lengths[stream] += count
        return found

    def last_logits(self, tokens: Mapping[int, Tokens]) -> dict[int, Logits]:
        return {stream: logits[-1] for stream, logits in self.step(tokens).items()}

    def next_step(self, tokens: Tokens) -> None:
        self.step({stream: tokens[stream : stream + 1] for stream in range(self.streams)})

    def close(self) -> None:
        self._session, self._groups = None, {}

    def _run(self, streams: tuple[int, ...], ids: NDArray[np.int64], past: int) -> NDArray[Any]:
        session, face = self._open(), self._interface
        feeds: dict[str, Any] = {face.ids: ids.astype(self._ids_type), **self._past(streams, past)}
        if face.mask:
            feeds[face.mask] = np.ones((len(streams), face.mask_length(past, ids.shape[1])), np.int64)
        if face.position_ids:
            feeds[face.position_ids] = np.broadcast_to(past + np.arange(ids.shape[1]), ids.shape).astype(np.int64)
        names = [face.logits, *(c.output for c in face.caches)]
        with _errors_at(ids.shape):
            logits, *made = session.run(names, feeds)
        self._groups[streams] = {c.input: value for c, value in zip(face.caches, made, strict=True)}
        return logits  # type: ignore[no-any-return]

    def _past(self, streams: tuple[int, ...], past: int) -> Caches:
        """Return the caches of these streams as one batch, and take them out of the groups that they were in."""
        if not past:
            self._leave(streams)
            shapes = {c.input: c.concrete(len(streams), 0) for c in self._interface.caches}
            return {name: np.zeros(shape, self._dtypes[name]) for name, shape in shapes.items()}
        if streams in self._groups:
            return self._groups.pop(streams)
        parts = [self._alone(stream) for stream in streams]
        self._leave(streams)
        axes = {c.input: c.batch for c in self._interface.caches}
        return {name: np.concatenate([part[name] for part in parts], axis) for name, axis in axes.items()}

    def _alone(self, stream: int) -> Caches:
        group = next(g for g in self._groups if stream in g)
        row = group.index(stream)
        axes = {c.input: c.batch for c in self._interface.caches}
        return {name: np.take(self._groups[group][name], [row], axis) for name, axis in axes.items()}

    def _leave(self, streams: Sequence[int]) -> None:
        """Split the groups that hold one of these streams; the others of a group stay, each by itself."""
        for group in [g for g in self._groups if set(g) & set(streams)]:
            left = {s: self._alone(s) for s in group if s not in streams and self._lengths[s]}
            del self._groups[group]
            self._groups |= {(s,): caches for s, caches in left.items()}
