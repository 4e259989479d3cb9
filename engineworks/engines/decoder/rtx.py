"""A decoder on TensorRT-RTX: several engines of fixed shapes that share one cache in GPU memory.

Each part is the same decoder at one batch and one number of tokens. All of them read and write the same cache in place:
input and output of a cache tensor are bound to one address. A part runs as one CUDA graph where it can be captured.

A prompt is cut into the parts' lengths; the last piece is padded where the cache has room for it. What padding writes
lies behind the stream's end: no query reads it before a later token overwrites it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engineworks.engines.backends._cuda import DeviceBuffer, Graph, PinnedBuffer, Stream, call, memory_mib
from engineworks.engines.decoder.base import Logits, Tokens, check_tokens
from engineworks.errors import RunError
from engineworks.model.decoder.interface import DecoderInterface


@dataclass(frozen=True)
class Part:
    """One engine file. batch: sequences; tokens: of each."""

    file: str
    batch: int
    tokens: int


def pieces(count: int, length: int, context: int, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Cut `count` new tokens of a stream that holds `length` into (size of the part, tokens of it that are real).

    sizes: tokens that parts take, 1 among them. The fewest runs first; a piece is padded only where the cache has room
    for the padding too.
    """
    cut: list[tuple[int, int]] = []
    while count:
        fitting = [size for size in sorted(sizes) if length + size <= context]
        size = next((size for size in fitting if size >= count), fitting[-1])
        if size > count and size > 4 * count:  # padding that costs more than single steps
            size = max(s for s in fitting if s <= count)
        real = min(size, count)
        cut.append((size, real))
        count, length = count - real, length + real
    return cut


class RtxDecoder:
    """Satisfies `base.DecoderSession`. folder: holds the parts' files. vendor: the module tensorrt_rtx."""

    def __init__(
        self, vendor: Any, folder: Path, parts: Sequence[Part], interface: DecoderInterface, streams: int, *,
        graphs: bool = True,
    ) -> None:  # fmt: skip
        memory_mib()  # creates the CUDA context: a missing GPU fails here
        self._interface, self._graphs = interface, graphs
        self._lengths, self._notes = [0] * streams, list[str]()
        self._stream = Stream()
        item = 2 if interface.caches[0].dtype == "float16" else 4
        self._caches = {c.input: DeviceBuffer() for c in interface.caches}
        self._row_bytes = {
            c.input: int(np.prod(c.concrete(1, interface.context), dtype=np.int64)) * item for c in interface.caches
        }
        for name, buffer in self._caches.items():
            call("cudaMemset", buffer.ensure(self._row_bytes[name] * streams), 0, self._row_bytes[name] * streams)
        self._logger = vendor.Logger(vendor.Logger.ERROR)
        self._runtime = vendor.Runtime(self._logger)
        used = [p for p in parts if p.batch == 1 or (p.batch == streams and p.tokens == 1)]
        self._engines = {(p.batch, p.tokens): _Engine(vendor, self._runtime, folder / p.file, p) for p in used}
        self._bound: dict[tuple[int, int, int], _Bound] = {}

    @property
    def interface(self) -> DecoderInterface:
        return self._interface

    @property
    def streams(self) -> int:
        return len(self._lengths)

    @property
    def lengths(self) -> Sequence[int]:
        return tuple(self._lengths)

    @property
    def notes(self) -> Sequence[str]:
        return tuple(dict.fromkeys(self._notes))

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(sorted(tokens for batch, tokens in self._engines if batch == 1))

    def step(self, tokens: Mapping[int, Tokens]) -> dict[int, Logits]:
        check_tokens(self._interface, self._lengths, tokens)
        if len(tokens) > 1 and all(len(new) == 1 for new in tokens.values()) and (self.streams, 1) in self._engines:
            return self._together(tokens)
        return {stream: self._alone(stream, new) for stream, new in tokens.items()}

    def last_logits(self, tokens: Mapping[int, Tokens]) -> dict[int, Logits]:
        if len(tokens) > 1 and all(len(new) == 1 for new in tokens.values()):
            return {stream: logits[0] for stream, logits in self.step(tokens).items()}
        check_tokens(self._interface, self._lengths, tokens)
        return {stream: self._alone(stream, new, last=True)[-1] for stream, new in tokens.items()}

    def next_step(self, tokens: Tokens) -> None:
        check_tokens(self._interface, self._lengths, {s: tokens[s : s + 1] for s in range(self.streams)})
        if (self.streams, 1) not in self._engines:
            self.step({s: tokens[s : s + 1] for s in range(self.streams)})
            return
        bound = self._bind(self.streams, 1, 0)
        bound.ids[:, 0], bound.at[:] = tokens, self._lengths
        bound.run(logits=False)
        self._lengths = [length + 1 for length in self._lengths]

    def reset(self, streams: Sequence[int] | None = None) -> None:
        for stream in range(self.streams) if streams is None else streams:
            self._lengths[stream] = 0

    def close(self) -> None:
        for bound in self._bound.values():
            bound.free()
        for buffer in self._caches.values():
            buffer.free()
        self._bound, self._engines, self._caches = {}, {}, {}
        self._runtime = None

    def _together(self, tokens: Mapping[int, Tokens]) -> dict[int, Logits]:
        """One token each, all streams in one run. An idle stream writes at its next position, which nothing reads
        before it is overwritten; a full one at its last, which nothing reads again."""
        bound = self._bind(self.streams, 1, 0)
        last = self._interface.context - 1
        full = [s for s in range(self.streams) if self._lengths[s] > last and s not in tokens]
        if full:  # its last position is still its own
            return {stream: self._alone(stream, new) for stream, new in tokens.items()}
        for stream in range(self.streams):
            bound.ids[stream, 0] = tokens[stream][0] if stream in tokens else 0
            bound.at[stream] = self._lengths[stream]
        logits = bound.run()
        for stream in tokens:
            self._lengths[stream] += 1
        return {stream: logits[stream].copy() for stream in tokens}

    def _alone(self, stream: int, new: Tokens, *, last: bool = False) -> Logits:
        """Return logits [len(new), vocabulary]; last: those of the last token alone, [1, vocabulary]."""
        found, begin = [], 0
        for size, real in pieces(len(new), self._lengths[stream], self._interface.context, self._sizes):
            bound = self._bind(1, size, stream)
            bound.ids[:] = 0
            bound.ids[0, :real] = new[begin : begin + real]
            bound.at[0] = self._lengths[stream]
            self._lengths[stream] += real
            begin += real
            if not last or begin == len(new):
                found.append(bound.run(slice(real - 1 if last else 0, real))[0].copy())
            else:
                bound.run(logits=False)
        return np.concatenate(found)

    def _bind(self, batch: int, tokens: int, first: int) -> _Bound:
        key = (batch, tokens, first)
        if key not in self._bound:
            addresses = {name: b.address + first * self._row_bytes[name] for name, b in self._caches.items()}
            engine, note = self._engines[batch, tokens], self._notes.append
            self._bound[key] = _Bound(engine, self._interface, addresses, self._stream, self._graphs, note)
        return self._bound[key]


class _Engine:
    def __init__(self, vendor: Any, runtime: Any, file: Path, part: Part) -> None:
        self.part, self.vendor = part, vendor
        self.engine = runtime.deserialize_cuda_engine(file.read_bytes())
        if self.engine is None:
            raise RunError(f"{file}: TensorRT-RTX cannot load this engine")

    def dtype(self, name: str) -> type[Any]:
        return np.float16 if self.engine.get_tensor_dtype(name) == self.vendor.DataType.HALF else np.float32


class _Bound:
    """An engine's execution context with its buffers: its own tokens, positions and logits, and a place in the cache.

    ids: int64 [batch, tokens], at: int64 [batch]: written before `run`, in page-locked memory.
    """

    def __init__(
        self, engine: _Engine, face: DecoderInterface, caches: Mapping[str, int], stream: Stream, graphs: bool,
        note: Callable[[str], None],
    ) -> None:  # fmt: skip
        part, self._stream = engine.part, stream
        self._context = engine.engine.create_execution_context()
        if self._context is None:
            raise RunError(f"TensorRT-RTX made no execution context for {part.batch} × {part.tokens} tokens")
        self._pinned, self._device = [PinnedBuffer() for _ in range(3)], [DeviceBuffer() for _ in range(3)]
        shapes: list[tuple[str, tuple[int, ...], Any]] = [
            (face.ids, (part.batch, part.tokens), np.int64), (face.positions, (part.batch,), np.int64),
            (face.logits, (part.batch, part.tokens, face.vocabulary), engine.dtype(face.logits)),
        ]  # fmt: skip
        views: list[NDArray[Any]] = []
        for (name, shape, dtype), pinned, device in zip(shapes, self._pinned, self._device, strict=True):
            view = pinned.view(shape, np.dtype(dtype))
            self._place(name, device.ensure(view.nbytes))
            views.append(view)
        self.ids, self.at, self._logits = views
        for cache in face.caches:
            self._place(cache.input, caches[cache.input])
            self._place(cache.output, caches[cache.input])
        self._graph: Graph | None = None
        self._graphs, self._note, self._ran = graphs, note, False

    def _place(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise RunError(f"TensorRT-RTX took no address for tensor '{name}'")

    def _capture(self) -> None:
        """Capture the second run: the first one allocates and chooses kernels, which no capture may."""
        self._graphs = False
        try:
            self._graph = self._stream.capture(self._launch)
        except RunError as error:
            self._note(f"no CUDA graph: {error.message}; runs without")

    def _launch(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise RunError("TensorRT-RTX failed to run a step")

    def run(self, tokens: slice = slice(None), *, logits: bool = True) -> NDArray[np.float32]:
        """Run once, waiting until it is done. Returns logits f32 [batch, tokens, vocabulary]; nothing without `logits`.

        tokens: those whose logits are copied from the GPU; of a batch all.
        """
        for pinned, device, view in zip(self._pinned[:2], self._device[:2], (self.ids, self.at), strict=True):
            self._stream.copy_in(device.address, pinned.address, view.nbytes)
        if self._graphs and self._ran:
            self._capture()
        self._graph.launch(self._stream) if self._graph else self._launch()
        self._ran = True
        wanted = self._logits[:, tokens]
        if logits:
            offset = (tokens.start or 0) * self._logits[0, 0].nbytes
            self._stream.copy_out(self._pinned[2].address + offset, self._device[2].address + offset, wanted.nbytes)
        self._stream.wait()
        return wanted.astype(np.float32, copy=False) if logits else np.empty(0, np.float32)

    def free(self) -> None:
        if self._graph:
            self._graph.close()
        self._context = None
        for pinned, device in zip(self._pinned, self._device, strict=True):
            pinned.free()
            device.free()
