"""ONNX Runtime's CUDA execution provider on the ONNX file. In fp32, TF32 is off, as in Engineworks' engines.

Where a CUDA library is missing, ONNX Runtime falls back to the CPU without an error; this peer refuses that. It counts
and notes nodes that ONNX Runtime places on the CPU by design.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from engineworks.engines.backends._feeds import checked_feeds
from engineworks.engines.backends._ort_session import OrtSession
from engineworks.engines.backends.base import MemoryMeter, RunTimes
from engineworks.engines.peers.base import PeerModel, PeerSession, time_each
from engineworks.errors import RunError
from engineworks.host import cpu, gpu
from engineworks.host.gpu import first_gpu
from engineworks.host.lazy import Arrays
from engineworks.host.nvml import GpuWatch
from engineworks.host.packages import installed_versions
from engineworks.model.ort import exact_options, ort_errors, plain

TITLE = "ONNX Runtime, CUDA"
FROM_SOURCE = False
PROVIDER = "CUDAExecutionProvider"

PROVIDER_OPTIONS: Mapping[str, str] = {"device_id": "0", "use_tf32": "0"}

DISTRIBUTIONS = (
    "onnxruntime-gpu", "nvidia-cublas", "nvidia-cublas-cu12", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13",
)  # fmt: skip

MISSING_LIBRARY = re.compile(r"(?P<library>lib[\w+.-]+\.so[\w.]*): cannot open shared object file")
"""glibc's message for a missing shared library (dlerror)."""

FAILURE_LINE = re.compile(r"\[E:onnxruntime:[^\]]*\]\s*(?P<text>.*)|.*(?P<cuda>CUDA (?:failure|error) .*)")
"""A line of ONNX Runtime's log at severity error."""

SHOWN_NODES = 3


def precisions(asked: Sequence[str]) -> tuple[str, ...]:
    del asked
    return ("fp32", "fp16")


def why_not(source: str, precision: str) -> str | None:
    del source, precision  # every source is exported to ONNX, which is then lowered
    if first_gpu() is None:
        return "no NVIDIA GPU is visible here"
    if installed_versions(("onnxruntime-gpu",))["onnxruntime-gpu"] is None:
        return "ONNX Runtime for CUDA is not installed; pip install onnxruntime-gpu in place of onnxruntime"
    return None


def versions() -> Mapping[str, str | None]:
    installed = installed_versions(DISTRIBUTIONS)
    return {name: version for name, version in installed.items() if version or name == DISTRIBUTIONS[0]}


def hardware() -> Mapping[str, str]:
    """Return GPU, driver and processor: the processor launches every kernel."""
    return {**gpu.describe(), **cpu.describe()}


def open_library() -> None:
    """Import ONNX Runtime and load the CUDA libraries of Python packages (since ONNX Runtime 1.21)."""
    import onnxruntime as ort

    ort.preload_dlls()


device_watch = GpuWatch


def memory_meter() -> MemoryMeter:
    """Return the meter of GPU engines: neither's figure includes the CUDA context."""
    from engineworks.engines.backends._cuda import DeviceMemory

    return DeviceMemory()


def load(model: PeerModel) -> OrtCudaSession:
    """Raises `RunError` with the reason where ONNX Runtime would continue without the GPU."""
    import onnxruntime as ort

    if PROVIDER not in ort.get_available_providers():
        raise RunError(
            f"this ONNX Runtime {ort.__version__} has no {PROVIDER}",
            hint="pip install onnxruntime-gpu in place of onnxruntime: both in one place hide each other",
        )
    options = exact_options(integer_kernels=True)
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    providers = [(PROVIDER, dict(PROVIDER_OPTIONS)), "CPUExecutionProvider"]
    with kept_stderr() as log:
        try:
            session = ort.InferenceSession(str(model.onnx), options, providers=providers, enable_fallback=0)
        except ort_errors() as error:
            raise RunError(f"{TITLE} cannot load the model: {plain(error)}", log=log()) from None
        captured = log()
    if PROVIDER not in session.get_providers():
        raise _fallen_back(captured)
    placed = _placement(session)
    return OrtCudaSession(session, notes=_notes(placed), facts=_facts(session, placed))


def _fallen_back(captured: str) -> RunError:
    missing = MISSING_LIBRARY.search(captured)
    if missing:
        return RunError(
            f"ONNX Runtime cannot use the GPU: {missing['library']} is not found",
            hint="install the CUDA and cuDNN packages of its version, or add their folder to LD_LIBRARY_PATH",
            log=captured,
        )
    failure = FAILURE_LINE.search(captured)
    why = " ".join((failure["text"] or failure["cuda"]).split())[:300] if failure else "it does not say why"
    return RunError(f"ONNX Runtime would run on the CPU, not on the GPU: {why}", log=captured)


def _placement(session: Any) -> dict[str, list[str]]:
    """Return nodes by execution provider, each as 'Op (name)'."""
    placed: dict[str, list[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        placed.setdefault(part.ep_name, []).extend(f"{n.op_type} ({n.name})" for n in part.get_nodes())
    if not placed.get(PROVIDER):
        raise RunError("ONNX Runtime would run every node of this model on the CPU", log=str(Counter(placed)))
    return placed


def _notes(placed: Mapping[str, list[str]]) -> tuple[str, ...]:
    not_on_gpu = [node for provider, nodes in placed.items() if provider != PROVIDER for node in nodes]
    if not not_on_gpu:
        return ()
    total = sum(map(len, placed.values()))
    more = f" and {len(not_on_gpu) - SHOWN_NODES} more" if len(not_on_gpu) > SHOWN_NODES else ""
    return (f"{len(not_on_gpu)} of {total} nodes run on the CPU: {', '.join(not_on_gpu[:SHOWN_NODES])}{more}",)


def _facts(session: Any, placed: Mapping[str, list[str]]) -> dict[str, object]:
    counts = {provider: len(nodes) for provider, nodes in placed.items()}
    provider_options = session.get_provider_options().get(PROVIDER, {})
    shown = {
        name: provider_options[name]
        for name in ("use_tf32", "cudnn_conv_algo_search", "device_id")
        if name in provider_options
    }
    return {"device": "cuda", "tf32": False, "provider_options": shown, "nodes": counts}


STDERR = 2


@contextmanager
def kept_stderr() -> Iterator[Callable[[], str]]:
    """Redirect descriptor 2 to a file within the block; the value reads the file so far. Afterwards the content goes to
    the original descriptor. This also captures lines of other threads."""
    sys.stderr.flush()
    before = os.dup(STDERR)
    with tempfile.TemporaryFile() as file:

        def read() -> str:
            return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode("utf-8", "replace")

        os.dup2(file.fileno(), STDERR)
        try:
            yield read
        finally:
            sys.stderr.flush()
            os.dup2(before, STDERR)
            os.close(before)
            text = read()
            if text:
                os.write(STDERR, text.encode("utf-8", "replace"))


DEVICE, DEVICE_ID = "cuda", 0


class OrtCudaSession(PeerSession, OrtSession):
    """Satisfies `backends.base.Session`. Not thread-safe."""

    def time_runs(self, feeds: Arrays, runs: int, *, copies: bool = False) -> RunTimes:
        """Time `runs` runs in ms. Without copies, one untimed run allocates the outputs on the device. There are no
        device times, because ONNX Runtime has no events."""
        session, arrays = self._open(), checked_feeds(self.inputs, feeds)

        def timed() -> RunTimes:
            if copies:
                return RunTimes(time_each(lambda: session.run(self._names, arrays), runs))
            binding = self._bind(arrays)

            def once() -> None:
                session.run_with_iobinding(binding)
                binding.synchronize_outputs()

            return RunTimes(time_each(once, runs))

        return self._try(arrays, timed)

    def _bind(self, arrays: Arrays) -> Any:
        """Copy inputs to the device once; bind outputs to memory that one run allocated there."""
        import onnxruntime as ort

        session = self._open()
        binding = session.io_binding()
        for name, array in arrays.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, DEVICE, DEVICE_ID))
        for name in self._names:
            binding.bind_output(name, DEVICE, DEVICE_ID)
        session.run_with_iobinding(binding)
        self._bind_outputs(binding)
        return binding
