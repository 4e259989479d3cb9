"""Whether this host can run a target's engines, and whether an engine fits it. Reads only the driver's tool and package
metadata; loads neither CUDA nor a vendor library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from engineworks.engines.backends.plan_header import HEADER_BYTES, read_plan_header
from engineworks.engines.capabilities import why_not_target
from engineworks.errors import RunError
from engineworks.host.gpu import Gpu, first_gpu
from engineworks.host.packages import installed_version

if TYPE_CHECKING:
    from engineworks.engines.backends._trt import Vendor

DRIVERS: Mapping[int, int] = {13: 580, 12: 525}
"""CUDA major version → oldest Linux driver branch that runs its programs. Source: CUDA Compatibility, 'Minor Version
Compatibility', table 1 (docs.nvidia.com/deploy/cuda-compatibility)."""

BINDINGS = "cuda-bindings"
"""The distribution of NVIDIA's cuda-python, which provides device memory, streams and events."""


def why_not_run_here(vendor: Vendor, compute_capabilities: Sequence[str]) -> str | None:
    """Return why the first visible GPU cannot run engines of such a target, None if it can.

    A target needs a GPU whose compute capability it names. A portable engine may load on others, but its measurements
    would then be attributed to the wrong GPU.
    """
    installed = next(iter(vendor.versions().values()), None)
    if installed is None:
        return f"{vendor.title} is not installed; pip install {vendor.distributions[0]}"
    gpu = first_gpu()
    if gpu is None:
        wanted = _either(compute_capabilities)
        return f"no NVIDIA GPU here; the target's engines run on compute capability {wanted}"
    return (
        _why_not_driver(vendor, gpu)
        or _why_not_served(gpu, compute_capabilities)
        or why_not_target(vendor.name, installed, (gpu.compute_capability,))  # a portable target has more GPUs
        or _why_not_bindings(gpu)
    )


def why_not_fit(vendor: Vendor, start: bytes, built_with: Mapping[str, str], gpu: Gpu) -> str | None:
    """Return why this engine does not fit the installed version and the GPU, None if it fits.

    start: the engine's first bytes, at least `HEADER_BYTES`; TensorRT-RTX's hold its version and compute capabilities.
    built_with: versions in the engine's sidecar, for TensorRT, whose plans hold none; may be empty. Engines of both
    vendors fit only their own release (TensorRT-RTX: Engine Compatibility). The caller must know of TensorRT's version
    compatible engines, which are the exception.
    """
    installed = next(iter(vendor.versions().values()), None)
    if not vendor.rtx:
        version = next((v for name, v in built_with.items() if name in vendor.distributions), None)
        return _why_not_same(vendor, version, installed)
    try:
        header = read_plan_header(start[:HEADER_BYTES])
    except RunError as error:
        return error.message
    served = gpu.compute_capability in header.compute_capabilities
    if not served and not (header.later and _numbers(gpu.compute_capability) >= (8, 0)):
        return (
            f"this engine is for compute capability {_either(header.compute_capabilities)}, the {gpu.name} here has "
            f"{gpu.compute_capability}: build it for a target of this GPU"
        )
    return _why_not_same(vendor, header.version, installed)


def _why_not_same(vendor: Vendor, built: str | None, installed: str | None) -> str | None:
    if built is None or installed is None or _numbers(built) == _numbers(installed):
        return None
    return f"this engine was built by {vendor.title} {built}, here is {installed}: build it again with this version"


def _why_not_driver(vendor: Vendor, gpu: Gpu) -> str | None:
    needs = cuda_major(vendor)
    if needs is None or _driver_runs(gpu, needs):
        return None
    return _too_old(f"{vendor.title} here", needs, gpu)


def _why_not_served(gpu: Gpu, compute_capabilities: Sequence[str]) -> str | None:
    if gpu.compute_capability in compute_capabilities:
        return None
    return (
        f"the {gpu.name} here has compute capability {gpu.compute_capability}; the target's engines run on "
        f"{_either(compute_capabilities)}"
    )


def _why_not_bindings(gpu: Gpu) -> str | None:
    installed = installed_version(BINDINGS)
    if installed is None:
        majors = [major for major in DRIVERS if _driver_runs(gpu, major)]
        fitting = f"'{BINDINGS}=={max(majors)}.*'" if majors else BINDINGS
        return f"NVIDIA's cuda-python is not installed, by which engines are run; pip install {fitting}"
    needs = _numbers(installed)[0]
    if needs not in DRIVERS or _driver_runs(gpu, needs):
        return None
    return _too_old(f"{BINDINGS} {installed}", needs, gpu)


def _too_old(what: str, needs: int, gpu: Gpu) -> str:
    driver = f"the driver {gpu.driver} is too old for it: install driver {DRIVERS[needs]} or newer"
    return f"{what} needs CUDA {needs}, and {driver}"


def cuda_major(vendor: Vendor) -> int | None:
    """Return the CUDA major version that the installed vendor library was built for, from its distribution's name; None
    for a custom build."""
    base = vendor.distributions[0]
    for major in DRIVERS:
        if any(installed_version(f"{base}-cu{major}{part}") for part in ("-libs", "")):
            return major
    return None


def _driver_runs(gpu: Gpu, cuda: int) -> bool:
    """Compare with the CUDA version that the driver reports, else with the driver's own version."""
    reported = _numbers(gpu.cuda)
    if reported:
        return reported[0] >= cuda
    driver = _numbers(gpu.driver)
    return not driver or driver[0] >= DRIVERS[cuda]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _either(names: Sequence[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else (names[0] if names else "none")
