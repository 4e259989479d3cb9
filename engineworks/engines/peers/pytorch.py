"""PyTorch eager: the recipe's unchanged module in fp32 (TF32 off) and fp16 (`.half()`), on the GPU if there is one.
Hugging Face models keep transformers' default attention, so that the comparison is fair."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engineworks.engines.backends.base import DeviceWatch, MemoryMeter
from engineworks.engines.peers.base import Origin, PeerModel
from engineworks.errors import RunError
from engineworks.host import cpu, cpu_watch, gpu
from engineworks.host.gpu import first_gpu
from engineworks.host.memory import ResidentMemory
from engineworks.host.nvml import GpuWatch
from engineworks.host.packages import installed_versions

if TYPE_CHECKING:
    import torch

    from engineworks.engines.peers._torch_session import TorchDecoder, TorchSession

TITLE = "PyTorch eager"
FROM_SOURCE = True

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "huggingface": ("torch", "transformers"),
    "mlflow_pytorch": ("torch",),
}
"""Packages that a source needs, by its kind; module names equal distribution names."""

NO_HALF = "no GPU, and a processor without fp16 arithmetic: eager would take many times as long as in fp32"
"""A small sentence encoder took 4 to 9 times as long on such a processor."""

_MIB = 1 << 20


def precisions(asked: Sequence[str]) -> tuple[str, ...]:
    del asked
    return ("fp32", "fp16")


def why_not(source: str, precision: str) -> str | None:
    if source not in PACKAGES:
        return f"the recipe's source is {source}: there is no PyTorch module to run"
    missing = [name for name in PACKAGES[source] if importlib.util.find_spec(name) is None]
    if missing:
        extra = "huggingface" if source == "huggingface" else "torch"
        return f"{' and '.join(missing)} cannot be imported here; pip install 'engineworks[{extra}]'"
    if precision == "fp16" and first_gpu() is None and not cpu.computes_half(cpu.read_text("/proc/cpuinfo")):
        return NO_HALF
    return None


def versions() -> Mapping[str, str | None]:
    return {name: version for name, version in installed_versions(("torch", "transformers")).items() if version}


def hardware() -> Mapping[str, str]:
    """Return the hardware, with the processor: eager launches every kernel from there."""
    return {**gpu.describe(), **cpu.describe()}


def open_library() -> None:
    import torch  # noqa: F401


def memory_meter() -> MemoryMeter:
    """Return a meter of the whole GPU's memory, as for engines there, or of this process's."""
    from engineworks.engines.backends._cuda import DeviceMemory

    return DeviceMemory(_memory_mib) if _device() == "cuda" else ResidentMemory()


def device_watch() -> DeviceWatch:
    return GpuWatch() if _device() == "cuda" else cpu_watch.LoadWatch()


def load(model: PeerModel) -> TorchSession:
    """Raises `RunError` for a module that cannot be moved to the device, and the exporters' errors."""
    from engineworks.engines.peers._torch_session import TorchSession

    origin = model.origin
    if origin is None:
        raise RunError(f"{TITLE}: there is no module to run")
    module = _module(origin)
    device = _device()
    _set_up(device)
    half = model.precision == "fp16"
    try:
        module = module.to(device)
        module = module.half() if half else module.float()
    except RuntimeError as error:
        raise RunError(f"PyTorch cannot hold the model on {device}: {str(error).splitlines()[0]}") from None
    return TorchSession(module, origin.interface, device=device, half=half, facts=_facts(module, device))


def load_decoder(model: PeerModel, streams: int) -> TorchDecoder:
    """Load transformers' own model with eager attention and its own cache. Raises as `load`."""
    from engineworks.engines.peers._torch_session import TorchDecoder
    from engineworks.model.decoder import from_huggingface
    from engineworks.model.export.from_huggingface import find_folder

    del streams  # its cache takes any number
    if model.origin is None:
        raise RunError(f"{TITLE}: there is no module to run")
    module = from_huggingface.load_decoder(find_folder(str(model.origin.path), model.origin.folder))
    device = _device()
    _set_up(device)
    return TorchDecoder((module.half() if model.precision == "fp16" else module).to(device), device)


def _module(origin: Origin) -> torch.nn.Module:
    if origin.kind == "huggingface":
        from engineworks.model.export import from_huggingface

        return from_huggingface.load_module(str(origin.path), origin.folder, origin.interface, task=origin.task)[0]
    from engineworks.model.export import from_torch

    if origin.kind == "mlflow_pytorch":
        assert origin.open_logged is not None  # the step passes one in
        return origin.open_logged(origin.path)
    assert origin.factory is not None  # a torch source has one
    return from_torch.load_module(origin.factory, origin.folder.resolve(), origin.interface, origin.files)[0]


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _set_up(device: str) -> None:
    """Turn TF32 off, so that fp32 means the same as in the engines; on a CPU use as many threads as they do."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    if device == "cpu":
        torch.set_num_threads(cpu.usable_cores())


def _facts(module: Any, device: str) -> dict[str, object]:
    import torch

    attention = getattr(getattr(module, "config", None), "_attn_implementation", None)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {
        "device": device, "device_name": name, "threads": torch.get_num_threads(), "tf32": False,
        "cudnn_benchmark": torch.backends.cudnn.benchmark, "attention": attention,
    }  # fmt: skip


def _memory_mib() -> tuple[float, float]:
    """Return free and total memory of the GPU in MiB, by the CUDA call of the engines' meter, PyTorch's copy of it."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return free / _MIB, total / _MIB
