"""CUDA memory, copies, streams, events and graphs for engine runners. Only this module uses NVIDIA's cuda-python.

`cuda.bindings` exposes the runtime interface (CUDA Runtime API reference, 13): every function returns its error code
first. Handles are integers here, as TensorRT expects. All calls use the first visible GPU and come from one thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, partial
from typing import Any, ClassVar

import numpy as np

from engineworks.errors import RunError
from engineworks.host.lazy import Array

MIB = 1 << 20


class DeviceMemoryError(RunError):
    """The GPU does not have the requested memory."""


@cache
def runtime() -> Any:
    """Return the module `cuda.bindings.runtime`. Raises `RunError` where it is not installed."""
    try:
        from cuda.bindings import runtime as module
    except ImportError as error:
        raise RunError(f"cuda-python cannot be imported: {error}", hint="pip install 'engineworks[rtx]'") from None
    return module


def call(function: str, *arguments: Any) -> Any:
    """Call a CUDA runtime function and return its results without the error code. Raises `RunError` with the error's
    name."""
    error, *results = getattr(runtime(), function)(*arguments)
    if int(error):
        raise _failure(function, error, arguments)
    return results[0] if len(results) == 1 else results


def _failure(function: str, error: Any, arguments: tuple[Any, ...]) -> RunError:
    module = runtime()
    text = module.cudaGetErrorString(error)[1]
    message = text.decode() if isinstance(text, bytes) else str(text)
    if error == module.cudaError_t.cudaErrorMemoryAllocation:
        wanted = f" for {arguments[0] / MIB:.0f} MiB" if arguments and isinstance(arguments[0], int) else ""
        free = module.cudaMemGetInfo()
        left = f" ({free[1] / MIB:.0f} of {free[2] / MIB:.0f} MiB are free)" if not int(free[0]) else ""
        return DeviceMemoryError(f"the GPU is out of memory{wanted}{left}", hint="use a smaller shape, or free the GPU")
    hints = {
        "cudaErrorInsufficientDriver": "update the NVIDIA driver, or install the cuda-bindings of its CUDA version",
        "cudaErrorNoDevice": "is CUDA_VISIBLE_DEVICES empty?",
        "cudaErrorIllegalAddress": "the process that ran the engine cannot go on; see its log",
    }
    return RunError(f"CUDA: {message} ({function})", hint=hints.get(getattr(error, "name", ""), ""))


def memory_mib() -> tuple[float, float]:
    """Return free and total GPU memory in MiB. The first call of a process creates its CUDA context."""
    free, total = call("cudaMemGetInfo")
    return free / MIB, total / MIB


class _Buffer:
    """Memory that grows to the largest requested size. `generation` changes with its address."""

    ALLOCATE: ClassVar[str]
    FREE: ClassVar[str]

    def __init__(self) -> None:
        self.address, self.capacity, self.generation = 0, 0, 0

    def ensure(self, size: int) -> int:
        """Return the address of at least `size` bytes (1 for an empty tensor: TensorRT takes no null pointer).

        Raises `DeviceMemoryError`; the buffer is then empty.
        """
        size = max(size, 1)
        if size > self.capacity:
            self.free()
            self.address, self.capacity = int(call(self.ALLOCATE, size)), size
            self.generation += 1
        return self.address

    def free(self) -> None:
        if self.address:
            call(self.FREE, self.address)
            self.address, self.capacity = 0, 0


class DeviceBuffer(_Buffer):
    """GPU memory."""

    ALLOCATE, FREE = "cudaMalloc", "cudaFree"


class PinnedBuffer(_Buffer):
    """Page-locked host memory: the GPU copies to and from it without the CPU."""

    ALLOCATE, FREE = "cudaMallocHost", "cudaFreeHost"

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return the buffer as an array of this shape and dtype; valid until the buffer grows or is freed."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        raw = (ctypes.c_uint8 * max(size, 1)).from_address(self.ensure(size))
        view: Array = np.ctypeslib.as_array(raw)[:size].view(dtype).reshape(shape)
        return view


class Stream:
    """A stream with the two events that time its runs."""

    def __init__(self) -> None:
        self.handle = int(call("cudaStreamCreateWithFlags", runtime().cudaStreamNonBlocking))
        self._begin, self._end = call("cudaEventCreate"), call("cudaEventCreate")

    def copy_in(self, device: int, host: int, size: int) -> None:
        call("cudaMemcpyAsync", device, host, size, runtime().cudaMemcpyKind.cudaMemcpyHostToDevice, self.handle)

    def copy_out(self, host: int, device: int, size: int) -> None:
        call("cudaMemcpyAsync", host, device, size, runtime().cudaMemcpyKind.cudaMemcpyDeviceToHost, self.handle)

    def wait(self) -> None:
        """Wait for all work on the stream. Raises `RunError` where some of it failed."""
        call("cudaStreamSynchronize", self.handle)

    def marks(self) -> tuple[Callable[[], object], Callable[[], object]]:
        """Return functions that mark the start and end of a run. They check nothing: `elapsed_ms` fails if one
        failed."""
        record = runtime().cudaEventRecord
        return partial(record, self._begin, self.handle), partial(record, self._end, self.handle)

    def elapsed_ms(self) -> float:
        """Return ms between both marks by the GPU's clock (resolution about 0.5 µs); both must have completed."""
        return float(call("cudaEventElapsedTime", self._begin, self._end))

    def done(self) -> bool:
        """Whether all work on the stream has completed."""
        module = runtime()
        (error,) = module.cudaStreamQuery(self.handle)
        if error == module.cudaError_t.cudaErrorNotReady:
            return False
        if int(error):
            raise _failure("cudaStreamQuery", error, ())
        return True

    def capture(self, launch: Callable[[], None]) -> Graph:
        """Capture the work that `launch` puts on this stream as a graph. Raises `RunError` where capture fails; the
        stream stays usable."""
        module = runtime()
        call("cudaStreamBeginCapture", self.handle, module.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            launch()
        finally:
            error, captured = module.cudaStreamEndCapture(self.handle)
        if int(error):
            module.cudaGetLastError()  # otherwise the next call would report it again
            raise _failure("cudaStreamEndCapture", error, ())
        return Graph(captured)

    def close(self) -> None:
        for event in (self._begin, self._end):
            call("cudaEventDestroy", event)
        call("cudaStreamDestroy", self.handle)


class Graph:
    """Captured launches that can be replayed."""

    def __init__(self, captured: Any) -> None:
        self._executable = call("cudaGraphInstantiate", captured, 0)
        call("cudaGraphDestroy", captured)

    def launch(self, stream: Stream) -> None:
        call("cudaGraphLaunch", self._executable, stream.handle)

    def launcher(self, stream: Stream) -> Callable[[], object]:
        """Return `launch` as a bare call whose result is false on failure."""
        launch, executable, handle = runtime().cudaGraphLaunch, self._executable, stream.handle
        return lambda: not int(launch(executable, handle)[0])

    def close(self) -> None:
        call("cudaGraphExecDestroy", self._executable)


class DeviceMemory:
    """Satisfies `base.MemoryMeter` with the memory in use on the whole GPU. CUDA records no peak, and engines allocate
    everything at the first run of a shape. read: as `memory_mib`."""

    def __init__(self, read: Callable[[], tuple[float, float]] = memory_mib) -> None:
        self._read = read
        read()  # creates the context, so that no engine's figure includes it

    def reset(self) -> None:
        """Do nothing: CUDA records no peak."""

    def peak_mib(self) -> float:
        free, total = self._read()
        return total - free

    def total_mib(self) -> float:
        return self._read()[1]
