"""CUDA as an engine's runner needs it: memory, copies, streams, events, graphs. The only user of NVIDIA's cuda-python.

The runtime interface of `cuda.bindings` is used (CUDA Runtime API reference, 13): every function returns its error code
first. Handles are integers here, as TensorRT wants them. All calls are for the first visible GPU and come from one
thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engineworks.errors import RunError

MIB = 1 << 20


class DeviceMemoryError(RunError):
    """The GPU has no room for what was asked."""


@cache
def runtime() -> Any:
    """The module `cuda.bindings.runtime`. Raises `RunError` where it is not installed."""
    try:
        from cuda.bindings import runtime as module
    except ImportError as error:
        raise RunError(f"cuda-python cannot be imported: {error}", hint="pip install 'engineworks[rtx]'") from None
    return module


def call(function: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime; its results without the error code. Raises `RunError` that names it."""
    error, *results = getattr(runtime(), function)(*arguments)
    if int(error):
        raise _failure(function, error, arguments)
    return results[0] if len(results) == 1 else results


def _failure(function: str, error: Any, arguments: tuple[Any, ...]) -> RunError:
    module = runtime()
    text = module.cudaGetErrorString(error)[1]
    said = text.decode() if isinstance(text, bytes) else str(text)
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
    return RunError(f"CUDA: {said} ({function})", hint=hints.get(getattr(error, "name", ""), ""))


def memory_mib() -> tuple[float, float]:
    """Free and total memory of the GPU, MiB. The first call of a process creates its CUDA context."""
    free, total = call("cudaMemGetInfo")
    return free / MIB, total / MIB


class DeviceBuffer:
    """Memory on the GPU that grows to the largest size asked for. `generation` changes with its address."""

    def __init__(self) -> None:
        self.address, self.capacity, self.generation = 0, 0, 0

    def ensure(self, size: int) -> int:
        """The address of at least `size` bytes (one, for an empty tensor: TensorRT takes no null pointer).

        Raises `DeviceMemoryError`; then the buffer is empty.
        """
        size = max(size, 1)
        if size > self.capacity:
            self.free()
            self.address, self.capacity = int(call("cudaMalloc", size)), size
            self.generation += 1
        return self.address

    def free(self) -> None:
        if self.address:
            call("cudaFree", self.address)
            self.address, self.capacity = 0, 0


class PinnedBuffer:
    """Page-locked host memory, which the GPU copies from and to without the processor."""

    def __init__(self) -> None:
        self.address, self.capacity = 0, 0

    def ensure(self, size: int) -> int:
        """The address of at least `size` bytes. Raises `DeviceMemoryError`."""
        size = max(size, 1)
        if size > self.capacity:
            self.free()
            self.address, self.capacity = int(call("cudaMallocHost", size)), size
        return self.address

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[np.generic]:
        """The buffer as an array; valid until it grows or is freed."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        raw = (ctypes.c_uint8 * max(size, 1)).from_address(self.ensure(size))
        view: NDArray[np.generic] = np.ctypeslib.as_array(raw)[:size].view(dtype).reshape(shape)
        return view

    def free(self) -> None:
        if self.address:
            call("cudaFreeHost", self.address)
            self.address, self.capacity = 0, 0


class Stream:
    """A stream with the two events that its runs are timed by."""

    def __init__(self) -> None:
        self.handle = int(call("cudaStreamCreateWithFlags", runtime().cudaStreamNonBlocking))
        self._begin, self._end = call("cudaEventCreate"), call("cudaEventCreate")

    def copy_in(self, device: int, host: int, size: int) -> None:
        call("cudaMemcpyAsync", device, host, size, runtime().cudaMemcpyKind.cudaMemcpyHostToDevice, self.handle)

    def copy_out(self, host: int, device: int, size: int) -> None:
        call("cudaMemcpyAsync", host, device, size, runtime().cudaMemcpyKind.cudaMemcpyDeviceToHost, self.handle)

    def wait(self) -> None:
        """Until all that was put on the stream is done. Raises `RunError` for what failed there."""
        call("cudaStreamSynchronize", self.handle)

    def marks(self) -> tuple[Callable[[], object], Callable[[], object]]:
        """Functions that mark begin and end of a run, without a check: `elapsed_ms` fails if one of them did."""
        record = runtime().cudaEventRecord
        return partial(record, self._begin, self.handle), partial(record, self._end, self.handle)

    def elapsed_ms(self) -> float:
        """Milliseconds between both marks by the GPU's clock (resolution about 0.5 µs); both must be done."""
        return float(call("cudaEventElapsedTime", self._begin, self._end))

    def done(self) -> bool:
        """Whether all that was put on the stream is done."""
        module = runtime()
        (error,) = module.cudaStreamQuery(self.handle)
        if error == module.cudaError_t.cudaErrorNotReady:
            return False
        if int(error):
            raise _failure("cudaStreamQuery", error, ())
        return True

    def capture(self, launch: Callable[[], None]) -> Graph:
        """What `launch` puts on this stream, as a graph. Raises `RunError` where it cannot be captured; the stream is
        usable again then."""
        module = runtime()
        call("cudaStreamBeginCapture", self.handle, module.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            launch()
        finally:
            error, captured = module.cudaStreamEndCapture(self.handle)
        if int(error):
            module.cudaGetLastError()  # else the next call would report it again
            raise _failure("cudaStreamEndCapture", error, ())
        return Graph(captured)

    def close(self) -> None:
        for event in (self._begin, self._end):
            call("cudaEventDestroy", event)
        call("cudaStreamDestroy", self.handle)


class Graph:
    """Captured launches, ready to be replayed."""

    def __init__(self, captured: Any) -> None:
        self._executable = call("cudaGraphInstantiate", captured, 0)
        call("cudaGraphDestroy", captured)

    def launch(self, stream: Stream) -> None:
        call("cudaGraphLaunch", self._executable, stream.handle)

    def launcher(self, stream: Stream) -> Callable[[], object]:
        """`launch` as a bare call whose result is false if it failed."""
        launch, executable, handle = runtime().cudaGraphLaunch, self._executable, stream.handle
        return lambda: not int(launch(executable, handle)[0])

    def close(self) -> None:
        call("cudaGraphExecDestroy", self._executable)


class DeviceMemory:
    """Satisfies `base.MemoryMeter`: what is in use on the whole GPU. CUDA keeps no peak of it, and engines take all
    they need when a shape is first run."""

    def __init__(self) -> None:
        memory_mib()  # creates the context, so that its size is no engine's

    def reset(self) -> None:
        """Nothing: see above."""

    def peak_mib(self) -> float:
        free, total = memory_mib()
        return total - free

    def total_mib(self) -> float:
        return memory_mib()[1]
