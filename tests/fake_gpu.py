"""A GPU made of host memory, and an engine made of a NumPy function: they satisfy what the runner uses of cuda-python and
of TensorRT, refuse what the real ones refuse, and remember what was done to them."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

Outputs = Mapping[str, np.ndarray[Any, Any]]


class CudaError(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900


class FakeRuntime:
    """`cuda.bindings.runtime` with memory of the host. Work on a stream is done at once, or captured."""

    cudaError_t = CudaError
    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, total: int = 1 << 30, error: CudaError = CudaError.cudaSuccess) -> None:
        self.total, self.error = total, error
        self.blocks: dict[int, Any] = {}
        self.captured: list[Callable[[], None]] | None = None
        self.fails_at_wait = CudaError.cudaSuccess
        self.graph_launches = 0
        self.streams = 0

    @property
    def in_use(self) -> int:
        return sum(len(b) for b in self.blocks.values())

    def cudaGetErrorString(self, error: CudaError) -> tuple[int, bytes]:
        return 0, {
            2: b"out of memory",
            35: b"CUDA driver version is insufficient",
            700: b"an illegal memory access",
        }.get(int(error), error.name.encode())

    def cudaGetLastError(self) -> tuple[int]:
        return (0,)

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return self.error, self.total - self.in_use, self.total

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        if self.in_use + size > self.total:
            return CudaError.cudaErrorMemoryAllocation, 0
        block = (ctypes.c_uint8 * size)()
        self.blocks[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    cudaMallocHost = cudaMalloc

    def cudaFree(self, address: int) -> tuple[int]:
        del self.blocks[address]  # KeyError: freed twice
        return (0,)

    cudaFreeHost = cudaFree

    def cudaMemset(self, address: int, value: int, size: int) -> tuple[int]:
        ctypes.memset(address, value, size)
        return (0,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        ctypes.memmove(to, source, size)
        return (0,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        self.streams += 1
        return 0, self.streams

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any]:
        return (self.fails_at_wait,)

    def cudaStreamQuery(self, stream: int) -> tuple[Any]:
        return (CudaError.cudaSuccess,)

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        self.streams -= 1
        return (0,)

    def cudaEventCreate(self) -> tuple[int, list[float]]:
        return 0, [0.0]

    def cudaEventRecord(self, event: list[float], stream: int) -> tuple[int]:
        event[0] = time.perf_counter()
        return (0,)

    def cudaEventElapsedTime(self, begin: list[float], end: list[float]) -> tuple[int, float]:
        return 0, 1000 * (end[0] - begin[0])

    def cudaEventDestroy(self, event: object) -> tuple[int]:
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:
        self.captured = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, Any]:
        work, self.captured = self.captured, None
        return (0, work) if work else (CudaError.cudaErrorStreamCaptureUnsupported, None)

    def cudaGraphInstantiate(self, work: Any, flags: int) -> tuple[int, Any]:
        return 0, list(work)

    def cudaGraphLaunch(self, work: Any, stream: int) -> tuple[int]:
        self.graph_launches += 1
        for step in work:
            step()
        return (0,)

    def cudaGraphDestroy(self, work: object) -> tuple[int]:
        return (0,)

    cudaGraphExecDestroy = cudaGraphDestroy


class FakeTensor:
    """One input or output of the fake engine. shape has -1 where it is dynamic; profiles: (min, opt, max) of each."""

    def __init__(
        self,
        dtype: str,
        shape: Sequence[int],
        profiles: Sequence[tuple[Sequence[int], Sequence[int], Sequence[int]]] = (),
        *,
        location: str = "DEVICE",
    ) -> None:
        self.dtype, self.shape, self.profiles, self.location = dtype, tuple(shape), profiles, location


DTYPES = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT64": np.int64,
    "INT32": np.int32,
    "BOOL": np.bool_,
    "UINT8": np.uint8,
}


class FakeEngine:
    """compute: inputs by name → outputs by name. shapes: input shapes → output shapes, -1 where they depend on data."""

    device_memory_size_v2 = 1 << 20

    def __init__(
        self,
        inputs: Mapping[str, FakeTensor],
        outputs: Mapping[str, FakeTensor],
        compute: Callable[[Outputs], Outputs],
        shapes: Callable[[Mapping[str, tuple[int, ...]]], Mapping[str, tuple[int, ...]]],
        runtime: FakeRuntime,
    ) -> None:
        self.inputs, self.outputs, self.compute, self.shapes, self.cuda = inputs, outputs, compute, shapes, runtime
        self.all = {**inputs, **outputs}
        self.contexts: list[FakeContext] = []
        self.capturable = True
        self.strategies: list[object] = []
        self.kernels: list[object] = []
        self.fails = False
        self.refuses_context: Callable[[], bool] = lambda: False

    num_io_tensors = property(lambda self: len(self.all))

    @property
    def num_optimization_profiles(self) -> int:
        return len(next(iter(self.inputs.values())).profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self.all)[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.all[name].shape

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.all[name].dtype)

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name in self.inputs else "out"

    def get_tensor_location(self, name: str) -> str:
        return self.all[name].location

    def get_tensor_profile_shape(self, name: str, index: int) -> Any:
        return self.inputs[name].profiles[index]

    def create_runtime_config(self) -> Any:
        return FakeConfig()

    def create_execution_context(self, config: Any = None) -> FakeContext | None:
        if self.fails or self.refuses_context():
            return None
        self.strategies.append(getattr(config, "cuda_graph_strategy", None))
        self.kernels.append(getattr(config, "dynamic_shapes_kernel_specialization_strategy", None))
        self.contexts.append(FakeContext(self))
        return self.contexts[-1]


class FakeCache:
    """A runtime cache whose contents are the number of contexts it served."""

    def __init__(self) -> None:
        self.contents = b""

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(b"cache"):
            return False
        self.contents = blob
        return True

    def serialize(self) -> bytes:
        return self.contents or b"cache of this GPU"


class FakeConfig:
    def __init__(self) -> None:
        self.dynamic_shapes_kernel_specialization_strategy: object = None
        self.cuda_graph_strategy: object = None
        self.cache: FakeCache | None = None

    def create_runtime_cache(self) -> FakeCache:
        return FakeCache()

    def set_runtime_cache(self, cache: FakeCache) -> bool:
        self.cache = cache
        return True


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.profile, self.switches, self.runs = 0, 0, 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.allocators: dict[str, Any] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile, self.shapes = index, {}
        self.switches += 1
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.inputs[name].profiles[self.profile]
        fits = all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))
        if fits:
            self.shapes[name] = shape
        return fits

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address != 0

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.inputs if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name] if name in self.shapes else self.engine.shapes(self.shapes)[name]

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        self.allocators[name] = allocator
        return True

    def execute_async_v3(self, stream: int) -> bool:
        captured = self.engine.cuda.captured
        if captured is not None:
            if not self.engine.capturable:
                return True  # nothing is captured, and the end of the capture says so
            captured.append(self._compute)
            return True
        return self._compute()

    def _compute(self) -> bool:
        self.runs += 1
        inputs = {
            name: _array(self.addresses[name], self.shapes.get(name, t.shape), t)
            for name, t in self.engine.inputs.items()
        }
        for name, value in self.engine.compute({n: a.copy() for n, a in inputs.items()}).items():
            tensor = self.engine.outputs[name]
            address = self.addresses.get(name, 0)
            if name in self.allocators:
                address = self.allocators[name].reallocate_output_async(name, 0, value.nbytes, 256, 1)
                if not address:
                    return False
                self.allocators[name].notify_shape(name, value.shape)
            _array(address, value.shape, tensor)[...] = value
        return True


def _array(address: int, shape: tuple[int, ...], tensor: FakeTensor) -> Any:
    dtype = np.dtype(DTYPES[tensor.dtype])
    size = math.prod(shape) * dtype.itemsize
    raw = (ctypes.c_uint8 * max(size, 1)).from_address(address)
    return np.frombuffer(raw, np.uint8)[:size].view(dtype).reshape(shape)


class FakeVendor:
    """The names of TensorRT that loading and running use."""

    __name__ = "fake_tensorrt"
    __version__ = "1.6.1.120"
    TensorIOMode = SimpleNamespace(INPUT="in")
    TensorLocation = SimpleNamespace(HOST="HOST", DEVICE="DEVICE")
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph", DISABLED="disabled")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(LAZY="lazy", EAGER="eager", NONE="none")

    class IOutputAllocator:
        def __init__(self) -> None:
            pass

    class ILogger:
        def __init__(self) -> None:
            pass

    class IErrorRecorder:
        def __init__(self) -> None:
            pass

    class Logger:
        ERROR = 1

        def __init__(self, severity: int) -> None:
            pass

    class EngineValidity(IntEnum):
        VALID = 0
        INVALID = 2

    class EngineInvalidityDiagnostics(IntEnum):
        VERSION_MISMATCH = 1
        UNSUPPORTED_CC = 2

    def __init__(self, engine: FakeEngine | None, *, says: str = "", validity: int = 0, diagnostics: int = 0) -> None:
        self._engine, self._says, self._found = engine, says, (validity, diagnostics)

    def Runtime(self, logger: Any) -> Any:
        def deserialize(data: Any) -> FakeEngine | None:
            if self._says:
                runtime.error_recorder.report_error(1, self._says)
            return self._engine

        runtime = SimpleNamespace(deserialize_cuda_engine=deserialize, get_engine_validity=lambda data: self._found)
        return runtime
