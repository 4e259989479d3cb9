"""One execution context with the stream and the memory that one run at a time needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from engineworks.engines.backends._cuda import DeviceBuffer, DeviceMemoryError, Graph, PinnedBuffer, Stream
from engineworks.engines.backends._feeds import shapes_of
from engineworks.engines.backends._trt_dialect import Dialect
from engineworks.engines.backends._trt_log import RunErrors
from engineworks.engines.backends._trt_tensors import EngineTensor, choose_profile
from engineworks.errors import RunError
from engineworks.host.lazy import Array, Arrays
from engineworks.tensors import Profile


class Lane:
    """Runs on one context; its buffers grow to the largest shape. Raises `RunError` with the vendor's reason."""

    def __init__(
        self,
        trt: Any,
        dialect: Dialect,
        tensors: Sequence[EngineTensor],
        profiles: Sequence[Profile],
        errors: RunErrors,
        *,
        graphs: bool,
    ) -> None:
        self._trt, self._dialect, self._errors, self._graphs = trt, dialect, errors, graphs
        self._inputs = [t for t in tensors if t.is_input]
        self._outputs = [t for t in tensors if not t.is_input]
        self._profiles, self._profile = profiles, 0
        self.notes: list[str] = []
        self.graphed, self._tried = False, not graphs or dialect.captures
        self._graph: tuple[object, Graph] | None = None
        self._allocators: dict[str, Any] = {}
        self._given: dict[str, Array] = {}
        self._results: dict[str, Array] = {}
        self._placed: dict[str, tuple[int, ...]] | None = None
        self._label = ""
        self.context = self._new_context(trial=not self._tried)
        self.stream = Stream()
        self._device = {t.name: DeviceBuffer() for t in tensors}
        self._pinned = {t.name: PinnedBuffer() for t in tensors}

    def place(self, arrays: Arrays) -> None:
        """Set the shapes of a run, allocate memory, and copy the inputs to page-locked memory.

        arrays: one checked array per input, with the engine's dtype. Equal shapes in a row are set once: a request of
        one sample would wait longer for that than for the GPU.
        """
        shapes = {name: array.shape for name, array in arrays.items()}
        if shapes != self._placed:
            self._place(arrays)
            repeatable = not self._allocators and not any(tensor.on_host for tensor in self._inputs)
            self._placed = shapes if repeatable else None
            return
        for name, memory in self._given.items():
            memory[...] = arrays[name]

    def _place(self, arrays: Arrays) -> None:
        self._placed, self._label = None, shapes_of(arrays)
        self._results.clear()
        self._switch_profile(choose_profile(self._profiles, arrays, self._profile))
        for tensor in self._inputs:
            array = arrays[tensor.name]
            self._given[tensor.name] = self._pinned[tensor.name].view(array.shape, array.dtype)
            self._given[tensor.name][...] = array
            self._check(self.context.set_input_shape(tensor.name, tuple(array.shape)), "took no shape")
            self._bind(tensor, array.nbytes)
        missing = self.context.infer_shapes()
        if missing:
            raise self.failure(f"wants to know more of {', '.join(missing)}")
        for tensor in self._outputs:
            self._place_output(tensor)
        self._prepare_graph(arrays)

    def copy_in(self) -> None:
        """Enqueue the inputs' copies to the GPU."""
        for tensor in self._inputs:
            if not tensor.on_host:
                name = tensor.name
                self.stream.copy_in(self._device[name].address, self._pinned[name].address, self._given[name].nbytes)

    def run(self, arrays: Arrays) -> None:
        """Do one run with its copies, and wait for it. arrays: as in `place`."""
        self.place(arrays)
        self.copy_in()
        self.launch()
        self.copy_out()
        self.wait()

    def launch(self) -> None:
        """Enqueue one run."""
        if self._graph is not None:
            self._graph[1].launch(self.stream)
        else:
            self._execute()

    def copy_out(self) -> None:
        """Enqueue the outputs' copies to page-locked memory. Data-dependent sizes are known by then."""
        for tensor in self._outputs:
            if not tensor.on_host:
                size = self._result(tensor).nbytes
                self.stream.copy_out(self._pinned[tensor.name].address, self._address(tensor), size)

    def wait(self) -> None:
        """Wait for the run. Raises `RunError` where it failed."""
        try:
            self.stream.wait()
        except RunError as error:
            raise RunError(f"the engine failed at {self._label}: {error.message}", hint=error.hint) from None

    def plain_run(self) -> None:
        """Do one run without a CUDA graph of ours, and wait for it."""
        self._execute()
        self.wait()

    def timed_run(self, *, copies: bool) -> Callable[[], tuple[float, float]]:
        """Return a function that does one run and returns its ms by the host's clock and by the GPU's.

        The GPU's time includes everything between the two events, so nothing is looked up or checked there: one more
        Python call makes a short run measurably longer.
        """
        clock, launch, stream = time.perf_counter_ns, self._launcher(), self.stream
        begin, end = stream.marks()

        def bare() -> tuple[float, float]:
            begin()
            start = clock()
            good = launch()
            end()
            stream.wait()
            stop = clock()
            self._check(good, "failed")
            return (stop - start) / 1e6, stream.elapsed_ms()

        def with_copies() -> tuple[float, float]:
            begin()
            start = clock()
            self.copy_in()
            good = launch()
            self.copy_out()
            end()
            self.wait()
            stop = clock()
            self._check(good, "failed")
            return (stop - start) / 1e6, stream.elapsed_ms()

        return with_copies if copies else bare

    def _launcher(self) -> Callable[[], object]:
        """Return one call that enqueues one run; its result is false on failure."""
        if self._graph is not None:
            return self._graph[1].launcher(self.stream)
        return partial(self.context.execute_async_v3, self.stream.handle)

    def fetch(self) -> dict[str, Array]:
        """Return copies of the last run's outputs, with the engine's shapes and dtypes; int4 is a row of packed bytes
        (uint8)."""
        return {tensor.name: self._result(tensor).copy() for tensor in self._outputs}

    def _result(self, tensor: EngineTensor) -> Array:
        """Return the page-locked memory of an output of the last run, in the array's shape and dtype."""
        known = self._results.get(tensor.name)
        if known is None:
            allocator = self._allocators.get(tensor.name)
            shape = allocator.shape if allocator is not None else tuple(self.context.get_tensor_shape(tensor.name))
            known = self._pinned[tensor.name].view(tensor.array_shape(shape), tensor.dtype)
            if allocator is None:
                self._results[tensor.name] = known
        return known

    def close(self) -> None:
        self._drop_graph()
        self.context = None
        for buffer in (*self._device.values(), *self._pinned.values(), *(a.buffer for a in self._allocators.values())):
            buffer.free()
        self.stream.close()

    def failure(self, what: str) -> RunError:
        """Return an error with the reason from the vendor's log."""
        reason = self._errors.reason()
        where = f" at {self._label}" if self._label else ""
        if self._errors.out_of_memory():
            return DeviceMemoryError(f"the GPU is out of memory{where}: {reason}", hint="use a smaller shape")
        return RunError(f"the engine {what}{where}: {reason}", log=self._errors.text())

    def _check(self, good: object, what: str) -> None:
        if not good:
            raise self.failure(what)

    def _switch_profile(self, index: int) -> None:
        if index != self._profile:
            self._check(self.context.set_optimization_profile_async(index, self.stream.handle), "changed no profile")
            self.stream.wait()
            self._profile = index

    def _bind(self, tensor: EngineTensor, size: int) -> None:
        place = self._pinned[tensor.name] if tensor.on_host else self._device[tensor.name]
        self._check(self.context.set_tensor_address(tensor.name, place.ensure(size)), "took no address")

    def _place_output(self, tensor: EngineTensor) -> None:
        """Allocate an output. Where its shape depends on the data, the engine calls the allocator once it knows the
        shape."""
        shape = tuple(self.context.get_tensor_shape(tensor.name))
        if min(shape, default=0) >= 0:
            self._bind(tensor, tensor.size(shape))
        elif tensor.name not in self._allocators:
            self._allocators[tensor.name] = _new_allocator(self._trt)
            self._check(
                self.context.set_output_allocator(tensor.name, self._allocators[tensor.name]), "took no allocator"
            )

    def _address(self, tensor: EngineTensor) -> int:
        allocator = self._allocators.get(tensor.name)
        buffer: DeviceBuffer = allocator.buffer if allocator is not None else self._device[tensor.name]
        return buffer.address

    def _execute(self) -> None:
        if not self.context.execute_async_v3(self.stream.handle):
            for allocator in self._allocators.values():
                if allocator.error is not None:
                    raise allocator.error
            raise self.failure("failed")

    def _new_context(self, *, graphs: bool = False, trial: bool = False) -> Any:
        context = self._dialect.context(graphs=graphs, trial=trial)
        if context is None:
            raise self.failure("made no execution context")
        return context

    def _prepare_graph(self, arrays: Arrays) -> None:
        """Let CUDA graphs replay this shape's run, if requested and possible; note once where it is not.

        A trial capture tests whether it is possible. TensorRT-RTX also replays engines whose shapes depend on the data,
        and then gives wrong outputs (seen with 1.6.1: a Range grown by its input kept the old length's grid).
        """
        if self._graphs and self._dialect.captures:
            self._try_graph()
        elif not self._tried:
            self._try_graph()
            self._drop_graph()
            self._tried = True
            self._replace_context(graphs=self.graphed)
            self._place(arrays)

    def _try_graph(self) -> None:
        why = "the shape of an output depends on the data" if self._allocators else self._capture()
        self.graphed = why is None
        if why is not None:
            note = f"no CUDA graph at {self._label}: {why}; runs without"
            if note not in self.notes:
                self.notes.append(note)

    def _replace_context(self, *, graphs: bool) -> None:
        for allocator in self._allocators.values():
            allocator.buffer.free()
        self._allocators.clear()
        self.context = None  # frees its memory first
        self.context, self._profile = self._new_context(graphs=graphs), 0

    def _capture(self) -> str | None:
        """Return why the run cannot be captured, None if it can. A run before it triggers the vendor's setup per
        shape."""
        shapes = {name: array.shape for name, array in self._given.items()}
        state = (shapes, self._profile, tuple(b.generation for b in self._device.values()))
        if self._graph is not None and self._graph[0] == state:
            return None
        self._drop_graph()
        self.copy_in()
        self._execute()
        self.wait()
        try:
            self._graph = (state, self.stream.capture(self._execute))
        except RunError as error:
            return error.message
        return None

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph[1].close()
            self._graph = None


def _new_allocator(trt: Any) -> Any:
    """Return an output allocator whose buffer grows, and which remembers the shape of the last run."""

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.buffer, self.shape = DeviceBuffer(), ()
            self.error: RunError | None = None

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            del tensor_name, memory, alignment  # cudaMalloc aligns to 256 bytes
            try:
                return self.buffer.ensure(size)
            except RunError as error:  # an exception cannot pass through the engine; it is raised after the run
                self.error = error
                return 0

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            del stream  # growing frees the smaller buffer, which waits for the GPU
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            del tensor_name
            self.shape = tuple(shape)

    return Allocator()
