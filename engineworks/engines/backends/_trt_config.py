"""A target's options, compute capabilities and profiles → the vendor's builder configuration. The vendor accepts wrong
profiles silently or fails without a reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engineworks.engines.backends.base import Option
from engineworks.engines.capabilities import PORTABLE_ONLY
from engineworks.errors import BuildError, TargetError
from engineworks.host.atomic_write import write_atomically
from engineworks.tensors import InputRange, Profile, TensorSpec

NUMBERS: Mapping[str, Option] = {
    "builder_optimization_level": Option(int, "0 to 5: how long to look for faster kernels; 3 unless said otherwise"),
    "max_aux_streams": Option(int, "streams for layers that may run at once"),
    "max_num_tactics": Option(int, "kernels to time for one layer"),
    "avg_timing_iterations": Option(int, "runs that a kernel's time is averaged over"),
}
"""Options that are attributes of the vendor's configuration under the same name."""

CHOICES: Mapping[str, tuple[str, str, Option]] = {
    "tiling_optimization_level": (
        "tiling_optimization_level", "TilingOptimizationLevel",
        Option(str, "how hard to look for tilings", ("none", "fast", "moderate", "full")),
    ),
    "profiling_verbosity": (
        "profiling_verbosity", "ProfilingVerbosity",
        Option(str, "what the engine records about its layers", ("none", "layer_names_only", "detailed")),
    ),
    "hardware_compatibility": (
        "hardware_compatibility_level", "HardwareCompatibilityLevel",
        Option(str, "other GPUs that may run the engine", ("none", "ampere_plus", "same_compute_capability")),
    ),
}  # fmt: skip
"""Options with named values: the configuration's attribute, the vendor's enumeration, the option."""

FLAGS: Mapping[str, Option] = {
    "sparse_weights": Option(bool, "use 2:4 sparsity where the weights have it"),
    "strict_nans": Option(bool, "keep NaN as NaN everywhere"),
    "weight_streaming": Option(bool, "let weights stay in host memory"),
    "version_compatible": Option(bool, "let later versions of the same major run the engine"),
}
"""Options that are builder flags under the same name, all off by default."""

WORKSPACE = Option(int, "most scratch memory that one layer may take, MiB")
TF32 = Option(bool, "compute fp32 products with 10 bits of mantissa; off unless said otherwise")

SHARED: Mapping[str, Option] = {
    "workspace_mib": WORKSPACE,
    "tf32": TF32,
    **NUMBERS,
    **{name: option for name, (_, _, option) in CHOICES.items() if name != "hardware_compatibility"},
    **{name: option for name, option in FLAGS.items() if name != "version_compatible"},
}
"""Options that both TensorRT-RTX and TensorRT have."""

SMOKE: Mapping[str, object] = {"builder_optimization_level": 0}
"""Options of a smoke build: the first kernel that works."""

TENSORRT_ONLY: Mapping[str, Option] = {
    "hardware_compatibility": CHOICES["hardware_compatibility"][2],
    "version_compatible": FLAGS["version_compatible"],
}
"""Options of TensorRT alone: TensorRT-RTX engines are portable between the GPUs that they name."""


def configure(trt: Any, title: str, config: Any, options: Mapping[str, Any]) -> None:
    """Apply options that `check_options` accepted. TF32 is off unless requested, unlike the vendor's default.

    Raises `TargetError` for an option that this version does not have.
    """
    if not options.get("tf32", False):
        config.clear_flag(trt.BuilderFlag.TF32)
    if "workspace_mib" in options:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options["workspace_mib"] << 20)
    for name, value in options.items():
        if name in NUMBERS:
            _set(title, config, name, name, value)
        elif name in CHOICES:
            attribute, enumeration, _ = CHOICES[name]
            choices = getattr(trt, enumeration, None)
            _set(title, config, name, attribute, getattr(choices, value.upper(), None))
        elif name in FLAGS and value:
            _set_flag(trt, title, config, name)


def _set_flag(trt: Any, title: str, config: Any, option: str) -> None:
    flag = getattr(trt.BuilderFlag, option.upper(), None)  # TensorRT 10.0 has no STRICT_NANS
    if flag is None:
        raise TargetError(f"{title} does not have option '{option}'", hint="leave it out")
    config.set_flag(flag)


def _set(title: str, config: Any, option: str, attribute: str, value: Any) -> None:
    if value is None or not hasattr(config, attribute):
        raise TargetError(f"{title} does not have option '{option}', or not this value of it", hint="leave it out")
    setattr(config, attribute, value)


LEAST_WORKSPACE_MIB = 16
"""Minimum workspace. No build of a real model succeeded below it that failed above it."""


def shrink_workspace(trt: Any, config: Any, free_mib: float | None) -> int | None:
    """Limit a second try to a quarter of its workspace, and to half of the GPU's free memory where that is known.

    Returns the new limit in MiB, None if too little remains. The vendor's own limit is all GPU memory, also what other
    processes hold.
    """
    less_mib = int(config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)) // 4 >> 20
    if free_mib is not None:
        less_mib = min(less_mib, int(free_mib / 2))
    if less_mib < LEAST_WORKSPACE_MIB:
        return None
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, less_mib << 20)
    return less_mib


def name_capabilities(trt: Any, title: str, config: Any, capabilities: Sequence[str]) -> None:
    """Name the compute capabilities of a TensorRT-RTX engine. A target of `PORTABLE_ONLY` names none: its engine serves
    8.0 and later. Raises `BuildError`."""
    if tuple(capabilities) in {(c,) for c in PORTABLE_ONLY}:
        return
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        named = getattr(trt.ComputeCapability, "SM" + capability.replace(".", ""), None)
        if named is None or not config.set_compute_capability(named, index):
            raise BuildError(f"{title} does not build for compute capability {capability}")


TIMING_CACHE_FILE = "timing.cache"
"""TensorRT's kernel timings on this GPU, reused by later builds. TensorRT-RTX times no kernels."""


def use_timing_cache(config: Any, folder: Path) -> Any:
    """Start the build with the timings of earlier ones. Returns the cache for `keep_timing_cache`.

    The vendor refuses a cache of another GPU or version (`ignore_mismatch` is false); the build then starts without.
    """
    file = folder / TIMING_CACHE_FILE
    cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
    if not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def keep_timing_cache(cache: Any, folder: Path) -> None:
    """Write the cache atomically; of two concurrent builds, the later one wins."""
    write_atomically(folder / TIMING_CACHE_FILE, bytes(cache.serialize()))


def check_profile(profile: Profile, inputs: Sequence[TensorSpec]) -> None:
    """Check that every input has a valid range: min ≤ opt ≤ max, unchanged fixed lengths, and one length per named
    dimension. Raises `BuildError`."""
    known = {spec.name: spec for spec in inputs}
    if unknown := sorted(profile.inputs.keys() - known.keys()):
        raise BuildError(
            f"profile '{profile.name}': the model has no input '{unknown[0]}'", hint=f"it has {', '.join(known)}"
        )
    dims: dict[str, tuple[int, int, int]] = {}
    for name, spec in known.items():
        if name in profile.inputs:
            _check_range(profile, spec, profile.inputs[name], dims)
        elif spec.dynamic_dims:
            raise BuildError(f"profile '{profile.name}': input '{spec}' is missing, it has dynamic dimensions")


def _check_range(profile: Profile, spec: TensorSpec, given: InputRange, dims: dict[str, tuple[int, int, int]]) -> None:
    where = f"profile '{profile.name}', input '{spec.name}'"
    if not len(given.min) == len(given.opt) == len(given.max) == len(spec.shape):
        raise BuildError(f"{where}: its shapes must have {len(spec.shape)} dimensions, as {spec}")
    for axis, dim in enumerate(spec.shape):
        lengths = (given.min[axis], given.opt[axis], given.max[axis])
        shown = "/".join(map(str, lengths))
        if not 0 <= lengths[0] <= lengths[1] <= lengths[2]:
            raise BuildError(f"{where}, dimension {axis}: min ≤ opt ≤ max does not hold for {shown}")
        if isinstance(dim, int) and lengths != (dim, dim, dim):
            raise BuildError(f"{where}, dimension {axis}: the model fixes it at {dim}, the profile says {shown}")
        if isinstance(dim, str) and dims.setdefault(dim, lengths) != lengths:
            other = "/".join(map(str, dims[dim]))
            raise BuildError(f"{where}, dimension {axis}: '{dim}' is {shown} here and {other} in another input")


def add_profiles(
    builder: Any,
    config: Any,
    network: Any,
    profiles: Sequence[Profile],
    inputs: Sequence[TensorSpec],
    names: Mapping[str, str],
) -> None:
    """Add the profiles to the vendor's configuration; a model with fixed shapes needs none. names: the network's names
    of the inputs, by the model's. Raises `BuildError`."""
    dynamic = [spec for spec in inputs if spec.dynamic_dims]
    for profile in profiles:
        check_profile(profile, inputs)
    if dynamic and not profiles:
        raise BuildError(f"input '{dynamic[0]}' has dynamic dimensions and there is no profile", hint="give `shapes`")
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if tensor.is_shape_tensor:
            raise BuildError(
                f"input '{tensor.name}' holds a shape, not data: a profile would have to range over its values",
                hint="make it a constant of the model",
            )
    for profile in profiles if dynamic else ():
        added = builder.create_optimization_profile()
        for name, given in profile.inputs.items():
            added.set_shape(names.get(name, name), given.min, given.opt, given.max)
        if config.add_optimization_profile(added) < 0:
            raise BuildError(f"profile '{profile.name}' was refused")
