"""A decoder whose cache grows by concatenation, on ONNX Runtime's CPU provider.

Such a graph has one length for all rows. Streams of the same length run together; streams of other lengths run by
themselves, so that every one gets what it would get alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engineworks.engines.decoder.base import Logits, Streams, Tokens, check_tokens
from engineworks.errors import RunError
from engineworks.model.decoder.interface import DecoderInterface
from engineworks.model.ort import ort_errors, plain

Caches = dict[str, NDArray[Any]]


class OrtGrowingDecoder(Streams):
    """Satisfies `base.DecoderSession`. session: an `InferenceSession`."""

    def __init__(self, session: Any, interface: DecoderInterface, streams: int) -> None:
        super().__init__(interface, streams)
        self._session = session
        types = {i.name: i.type for i in session.get_inputs()}
        self._ids_type = np.int32 if types[interface.ids] == "tensor(int32)" else np.int64
        self._dtypes = {
            c.input: np.float16 if types[c.input] == "tensor(float16)" else np.float32 for c in interface.caches
        }
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
        if self._session is None:
            raise RunError("this session was closed; load the engine again")
        face = self._interface
        feeds: dict[str, Any] = {face.ids: ids.astype(self._ids_type), **self._past(streams, past)}
        if face.mask:
            feeds[face.mask] = np.ones((len(streams), face.mask_length(past, ids.shape[1])), np.int64)
        if face.position_ids:
            feeds[face.position_ids] = np.broadcast_to(past + np.arange(ids.shape[1]), ids.shape).astype(np.int64)
        names = [face.logits, *(c.output for c in face.caches)]
        try:
            logits, *made = self._session.run(names, feeds)
        except ort_errors() as error:
            raise RunError(f"ONNX Runtime failed at {list(ids.shape)} tokens: {plain(error)}") from None
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
