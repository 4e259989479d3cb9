"""A decoder on TensorRT-RTX or TensorRT: several engines of fixed shapes that share one cache in GPU memory.

All parts read and write the same cache in place: input and output of a cache tensor are bound to one address. A part
runs as one CUDA graph where it can be captured.

A prompt is cut into the parts' lengths; the last piece is padded where the cache has room for it. What padding writes
lies behind the stream's end: no query reads it before a later token overwrites it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engineworks.engines.backends._cuda import (
    DeviceBuffer,
    DeviceMemoryError,
    Graph,
    PinnedBuffer,
    Stream,
    call,
    memory_mib,
)
from engineworks.engines.backends._trt_dialect import Dialect, dialect_of
from engineworks.engines.backends._trt_load import opened
from engineworks.engines.backends._trt_log import RunErrors
from engineworks.engines.backends._trt_tensors import dtype_name
from engineworks.engines.backends._trt_tf32 import follow_switch, keep_switch
from engineworks.engines.backends.base import PLAIN, Serving
from engineworks.engines.decoder.base import Logits, Streams, Tokens, check_tokens
from engineworks.engines.decoder.parts import Part, pieces, windows
from engineworks.errors import RunError
from engineworks.model.decoder.interface import DecoderInterface

if TYPE_CHECKING:
    from engineworks.engines.backends._trt import Vendor

MIB = 2**20


class TrtDecoder(Streams):
    """Satisfies `base.DecoderSession`. folder: holds the parts' files. cache: a folder for kernels that are compiled
    for this GPU. Raises `RunError`, `DeviceMemoryError` where engines and caches do not fit into the GPU's memory."""

    def __init__(
        self, vendor: Vendor, folder: Path, parts: Sequence[Part], interface: DecoderInterface, streams: int, *,
        serving: Serving = PLAIN, cache: Path | None = None,
    ) -> None:  # fmt: skip
        trt = vendor.load()
        used = [p for p in parts if p.batch <= streams]
        _check_memory(folder, used, interface, streams)
        super().__init__(interface, streams)
        self._graphs = True
        self._notes, self._stream, self._errors = list[str](), Stream(), RunErrors(trt)
        self._caches = {c.input: DeviceBuffer() for c in interface.caches}
        self._row_bytes = _row_bytes(interface)
        for name, buffer in self._caches.items():
            call("cudaMemset", buffer.ensure(self._row_bytes[name] * streams), 0, self._row_bytes[name] * streams)
        self._engines: dict[tuple[int, int], _Engine] = {}
        self._bound: dict[tuple[int, int, int], _Bound] = {}
        # A session that is dropped, as MLflow drops its models, frees its memory too: CUDA's has no other owner.
        self._free = weakref.finalize(self, _free, self._bound, self._engines, self._caches, self._stream)
        self._free.atexit = False  # CUDA may be gone by then, and the process takes all with it
        with ExitStack() as files:
            for part in used:
                loaded = files.enter_context(opened(vendor, trt, folder / part.file, self._errors))
                own_cache = cache / part.file if cache else None
                dialect = dialect_of(trt, loaded[1], serving, own_cache, rtx=vendor.rtx)
                self._engines[part.batch, part.tokens] = _Engine(part, loaded, dialect, interface, self._errors)
                self._bind(part.batch, part.tokens, 0)

    @property
    def notes(self) -> Sequence[str]:
        return tuple(dict.fromkeys([*self._notes, *(n for e in self._engines.values() for n in e.dialect.notes())]))

    def step(self, tokens: Mapping[int, Tokens]) -> dict[int, Logits]:
        return self._step(tokens, last=False)

    def last_logits(self, tokens: Mapping[int, Tokens]) -> dict[int, Logits]:
        return {stream: logits[-1] for stream, logits in self._step(tokens, last=True).items()}

    def next_step(self, tokens: Tokens) -> None:
        given = {stream: tokens[stream : stream + 1] for stream in range(self.streams)}
        check_tokens(self._interface, self._lengths, given)
        self._together(given, logits=False)

    def use_graphs(self, wanted: bool) -> bool:
        self._graphs = wanted
        return True

    def close(self) -> None:
        self._free()

    def _step(self, tokens: Mapping[int, Tokens], *, last: bool) -> dict[int, Logits]:
        check_tokens(self._interface, self._lengths, tokens)
        if not self._engines:
            raise RunError("this session was closed; load the engine again")
        self._errors.clear()
        singles = {stream: new for stream, new in tokens.items() if len(new) == 1}
        found = {stream: self._alone(stream, new, last) for stream, new in tokens.items() if stream not in singles}
        return found | (self._together(singles) if singles else {})

    def _together(self, tokens: Mapping[int, Tokens], *, logits: bool = True) -> dict[int, Logits]:
        """One token each. An idle stream that runs along writes at its next position, which nothing reads before it is
        overwritten."""
        full = [s for s, length in enumerate(self._lengths) if length == self._interface.context]
        batches = [batch for batch, count in self._engines if count == 1]
        found: dict[int, Logits] = {}
        for first, batch in windows(tokens, self.streams, batches, full):
            bound, rows = self._bind(batch, 1, first), range(first, first + batch)
            bound.engine.ids[:, 0] = [tokens[s][0] if s in tokens else 0 for s in rows]
            bound.engine.at[:] = self._lengths[first : first + batch]
            made = bound.run(graphs=self._graphs, logits=logits)
            found |= {s: made[s - first].copy() for s in rows if s in tokens and logits}
        for stream in tokens:
            self._lengths[stream] += 1
        return found

    def _alone(self, stream: int, new: Tokens, last: bool) -> Logits:
        """Return logits [len(new), vocabulary]; last: those of the last token alone, [1, vocabulary]."""
        found, begin = [], 0
        sizes = [count for batch, count in self._engines if batch == 1]
        for size, real in pieces(len(new), self._lengths[stream], self._interface.context, sizes):
            bound = self._bind(1, size, stream)
            bound.engine.ids[:] = 0
            bound.engine.ids[0, :real] = new[begin : begin + real]
            bound.engine.at[0] = self._lengths[stream]
            self._lengths[stream] += real
            begin += real
            wanted = not last or begin == len(new)
            made = bound.run(slice(real - 1 if last else 0, real), graphs=self._graphs, logits=wanted)
            if wanted:
                found.append(made[0].copy())
        return np.concatenate(found)

    def _bind(self, batch: int, tokens: int, first: int) -> _Bound:
        key = (batch, tokens, first)
        if key not in self._bound:
            addresses = {name: b.address + first * self._row_bytes[name] for name, b in self._caches.items()}
            engine, note = self._engines[batch, tokens], self._notes.append
            self._bound[key] = _Bound(engine, self._interface, addresses, self._stream, note)
        return self._bound[key]


def _free(
    bound: dict[tuple[int, int, int], _Bound], engines: dict[tuple[int, int], _Engine], caches: dict[str, DeviceBuffer],
    stream: Stream,
) -> None:  # fmt: skip
    frees = [*(b.free for b in bound.values()), *(e.free for e in engines.values()), *(c.free for c in caches.values())]
    for free in (*frees, stream.close):
        free()
    for kept in (bound, engines, caches):
        kept.clear()


def _row_bytes(interface: DecoderInterface) -> dict[str, int]:
    """Return the bytes of one stream's cache, by tensor."""
    return {
        c.input: int(np.prod(c.concrete(1, interface.context), dtype=np.int64)) * (2 if c.dtype == "float16" else 4)
        for c in interface.caches
    }


def _check_memory(folder: Path, parts: Sequence[Part], interface: DecoderInterface, streams: int) -> None:
    """Raises `DeviceMemoryError` before anything is loaded, where the engines and the caches cannot fit."""
    free, total = memory_mib()  # creates the CUDA context: a missing GPU fails here
    engines = sum((folder / p.file).stat().st_size for p in parts) / MIB
    each = sum(_row_bytes(interface).values()) / MIB
    if engines + each * streams <= free:
        return
    fit = max(0, int((free - engines) / each))
    raise DeviceMemoryError(
        f"{streams} streams do not fit the GPU: engines of {engines:.0f} MiB and {each:.1f} MiB of cache for each "
        f"stream, {free:.0f} of {total:.0f} MiB are free",
        hint=f"at most {fit} streams, or a shorter context" if fit else "free the GPU, or take a smaller precision",
    )


class _Engine:
    """A part, deserialized, with the memory that its contexts share: they run one after the other.

    ids: int64 [batch, tokens], at: int64 [batch]: written before a run, in page-locked memory. logits: [batch, tokens,
    vocabulary] in the engine's type.
    """

    def __init__(
        self, part: Part, loaded: tuple[Any, Any], dialect: Dialect, face: DecoderInterface, errors: RunErrors
    ) -> None:
        self.part, self.dialect, self._loaded, self._errors = part, dialect, loaded, errors
        shapes = {face.ids: (part.batch, part.tokens), face.positions: (part.batch,)}
        shapes[face.logits] = (part.batch, part.tokens, face.vocabulary)
        self.pinned, self.device = {n: PinnedBuffer() for n in shapes}, {n: DeviceBuffer() for n in shapes}
        views = [
            self.pinned[name].view(shape, np.dtype(dtype_name(loaded[1].get_tensor_dtype(name).name)))
            for name, shape in shapes.items()
        ]
        for name, view in zip(shapes, views, strict=True):
            self.device[name].ensure(view.nbytes)
        self.ids: NDArray[Any] = views[0]
        self.at: NDArray[Any] = views[1]
        self.logits: NDArray[Any] = views[2]

    def context(self) -> Any:
        """Return a new execution context. Raises `RunError`."""
        made = self.dialect.context(graphs=False, trial=False)
        if made is None and follow_switch(self._errors.text()):
            made = self.dialect.context(graphs=False, trial=False)
        if made is None:
            what = f"{self.part.batch} × {self.part.tokens} tokens"
            raise RunError(f"no execution context for {what}: {self._errors.reason()}", log=self._errors.text())
        if not self.dialect.captures:  # TensorRT-RTX's
            keep_switch()
        return made

    def failed(self) -> RunError:
        return RunError(f"a step failed on the GPU: {self._errors.reason()}", log=self._errors.text())

    def free(self) -> None:
        self.dialect.save()
        for name in self.device:
            self.device[name].free()
            self.pinned[name].free()


class _Bound:
    """An engine's execution context at one place in the cache. caches: address by tensor."""

    def __init__(
        self, engine: _Engine, face: DecoderInterface, caches: Mapping[str, int], stream: Stream,
        note: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.engine, self._face, self._stream, self._note = engine, face, stream, note
        self._context = engine.context()
        for name, buffer in engine.device.items():
            self._place(name, buffer.address)
        for cache in face.caches:
            self._place(cache.input, caches[cache.input])
            self._place(cache.output, caches[cache.input])
        self._graph: Graph | None = None
        self._ran, self._cannot = False, False

    def _place(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise RunError(f"the engine took no address for its tensor '{name}'")

    def _capture(self) -> Graph | None:
        try:
            return self._stream.capture(self._launch)
        except RunError as error:
            self._cannot = True
            self._note(f"no CUDA graph: {error.message}; runs without")
            return None

    def _launch(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise self.engine.failed()

    def run(self, tokens: slice = slice(None), *, graphs: bool, logits: bool) -> NDArray[np.float32]:
        """Run once, waiting until it is done. Returns logits f32 [batch, tokens, vocabulary]; nothing without `logits`.

        tokens: those whose logits are copied from the GPU; of a batch all. graphs: replay a CUDA graph, captured at the
        second run: the first one allocates and chooses kernels, which no capture may.
        """
        engine, face = self.engine, self._face
        for name, view in ((face.ids, engine.ids), (face.positions, engine.at)):
            self._stream.copy_in(engine.device[name].address, engine.pinned[name].address, view.nbytes)
        if graphs and self._ran and self._graph is None and not self._cannot:
            self._graph = self._capture()
        self._graph.launch(self._stream) if self._graph and graphs else self._launch()
        self._ran = True
        wanted = engine.logits[:, tokens]
        if logits:
            offset = (tokens.start or 0) * engine.logits[0, 0].nbytes
            to, source = engine.pinned[face.logits].address, engine.device[face.logits].address
            self._stream.copy_out(to + offset, source + offset, wanted.nbytes)
        self._stream.wait()
        return wanted.astype(np.float32, copy=False) if logits else np.empty(0, np.float32)

    def free(self) -> None:
        if self._graph:
            self._graph.close()
        self._context = None
