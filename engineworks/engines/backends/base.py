"""What a backend is: a module that satisfies `Builder`, `Runner` or both.

A backend that only runs has no `build`; one that only builds has no `load`. Vendor libraries are imported inside
functions, so that the table in `engines/backends/__init__.py` can be read where none of them is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from engineworks.errors import TargetError
from engineworks.suggest import did_you_mean
from engineworks.tensors import Profile, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]

ENGINE_FILE = "engine"
"""Name of the engine file in its artifact folder; external weights lie next to it."""


@dataclass(frozen=True)
class BuildRequest:
    """One engine to build.

    model: the lowered ONNX file (its external data next to it). out: folder to write the engine into, empty.
    compute_capabilities: such as ("8.6",) or several for a portable engine; empty for a target without a GPU.
    options: the target's own options, e.g. {"workspace_mib": 4096, "builder_optimization_level": 3}. cache: a folder of
    this device, driver and version, where the builder keeps what makes the next build faster.
    computes: the plain precisions that `precision` stands for where that is the name of a mixture, or int8 with fp16
    around it: ("int8", "fp16"). crashes: how earlier attempts at this engine ended, a sentence each.
    """

    model: Path
    out: Path
    precision: str
    profiles: tuple[Profile, ...]
    compute_capabilities: tuple[str, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    cache: Path | None = None
    computes: tuple[str, ...] = ()
    crashes: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """`computes`, or the precision itself where nothing is said."""
        return self.computes or (self.precision,)


@dataclass(frozen=True)
class BuildReport:
    """What the builder says of the engine it wrote: tensors, seconds, versions of the libraries that shaped it."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    seconds: float
    versions: Mapping[str, str]
    details: Mapping[str, object] = field(default_factory=dict)


LARGEST_OPTION = 2**31 - 1
"""Largest number that an option may have: as MiB it still fits into 64 bits as bytes."""


@dataclass(frozen=True)
class Option:
    """One option of a backend's targets: the type of its value, what it does, and its allowed words if it is one."""

    type: type
    help: str
    words: tuple[str, ...] = ()

    def complaint(self, value: object) -> str:
        """What is wrong with the value, or ''. True and False are no numbers."""
        if self.words:
            return "" if value in self.words else f"is {value!r}: one of {', '.join(self.words)}"
        if (self.type is not bool and isinstance(value, bool)) or not isinstance(value, self.type):
            return f"is {value!r}: {_KINDS[self.type]} is asked for"
        if not isinstance(value, int) or 0 <= value <= LARGEST_OPTION:
            return ""
        return f"is {value}: it cannot be negative" if value < 0 else f"is too large: at most {LARGEST_OPTION}"


_KINDS: Mapping[type, str] = {int: "a whole number", bool: "true or false", str: "a word"}


def check_options(title: str, given: Mapping[str, object], known: Mapping[str, Option]) -> None:
    """Raises `TargetError` for an option that the backend does not have, or a value that it cannot take."""
    for name, value in given.items():
        if name not in known:
            raise TargetError(f"unknown option '{name}' of {title}", hint=did_you_mean(name, known))
        if complaint := known[name].complaint(value):
            raise TargetError(f"option '{name}' of {title} {complaint}", hint=known[name].help)


@dataclass(frozen=True)
class Serving:
    """How an engine is run, for all of its runs. cuda_graphs: replay the launches of a shape as one graph. kernels:
    TensorRT-RTX's kernels for a shape: "lazy" (general ones first, specialized ones swapped in later), "eager"
    (specialized before the first run) or "none" (general ones only). A backend without such a thing says so in the
    session's `notes`."""

    cuda_graphs: bool = False
    kernels: Literal["lazy", "eager", "none"] = "lazy"

    def to_json(self) -> dict[str, object]:
        return {"cuda_graphs": self.cuda_graphs, "kernels": self.kernels}


@dataclass(frozen=True)
class RunTimes:
    """Milliseconds of each run, in order. host: from the call until the outputs are ready, by the host's clock.
    device: the same runs by the device's own clock (CUDA events); empty on a CPU. on_host: the engine runs where its
    inputs and outputs lie (a CPU), so that there is nothing to copy."""

    host_ms: tuple[float, ...]
    device_ms: tuple[float, ...] = ()
    on_host: bool = False


class Session(Protocol):
    """A loaded engine, ready to run. Not thread-safe; `close` frees it."""

    @property
    def inputs(self) -> Sequence[TensorSpec]: ...

    @property
    def outputs(self) -> Sequence[TensorSpec]: ...

    @property
    def notes(self) -> Sequence[str]:
        """What to know of how it runs, one sentence each: a CUDA graph that could not be captured, say."""
        ...

    @property
    def facts(self) -> Mapping[str, object]:
        """How it was loaded and runs, as JSON: kernels, whether CUDA graphs were replayed, the runtime cache's use."""
        ...

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """All outputs by name. Raises `RunError` with one clear message."""
        ...

    def time_runs(self, feeds: Arrays, runs: int, *, copies: bool = False) -> RunTimes:
        """Time `runs` runs on the same feeds, one after the other, each awaited. copies: with the inputs' way to the
        device and the outputs' way back; otherwise both lie where the engine wants them. Called for windows of some
        50 ms: one run more to set things up, not timed, is the most that a call may cost. Raises `RunError`."""
        ...

    def throughput(self, feeds: Arrays, streams: int, seconds: float) -> float:
        """Runs per second of `streams` runs in flight at once, for about so long. Raises `RunError`, also where the
        backend has no streams."""
        ...

    def close(self) -> None: ...


class MemoryMeter(Protocol):
    """Memory in use where a backend's engines run; what an engine takes is the difference that it makes."""

    def reset(self) -> None:
        """Let the peak begin at the present value."""
        ...

    def peak_mib(self) -> float:
        """Most that was in use since `reset`, MiB; on a device that keeps no peak: what is in use now."""
        ...

    def total_mib(self) -> float:
        """All memory of the device, MiB, used or not; on a CPU what this process may use."""
        ...


class DeviceWatch(Protocol):
    """The state of the device that engines run on: clocks, temperature, what slows it, who else uses it."""

    def sample(self) -> Mapping[str, object]:
        """One reading, as JSON; empty where nothing can be read."""
        ...

    def complaints(self, readings: Sequence[Mapping[str, object]]) -> Sequence[str]:
        """Why figures taken between these readings are not to be trusted, one sentence each."""
        ...


@runtime_checkable
class Builder(Protocol):
    """ONNX, profiles and target → an engine on disk. Called in a child process."""

    def why_not_build(self, compute_capabilities: Sequence[str]) -> str | None:
        """None if this host can build for such a target, otherwise the reason, as a sentence."""
        ...

    def build(self, request: BuildRequest, log: Callable[[str], None]) -> BuildReport:
        """Write the engine under `request.out`. Raises `BuildError`; every line of the builder goes to `log`."""
        ...


@runtime_checkable
class Runner(Protocol):
    """An engine on disk → a session."""

    def why_not_run(self, compute_capabilities: Sequence[str]) -> str | None:
        """None if this host can run engines of such a target, otherwise the reason, as a sentence."""
        ...

    def load(
        self,
        engine: Path,
        options: Mapping[str, object],
        *,
        serving: Serving = Serving(),
        cache: Path | None = None,
        known: Sequence[TensorSpec] = (),
    ) -> Session:
        """Load the engine's own bytes (already verified by digest). cache: a folder of this engine on this device,
        where the backend keeps what makes the next load faster. known: the tensors as the builder knew them, with the
        names of their dimensions, for engines that do not keep those. Raises `RunError`."""
        ...

    def memory_meter(self) -> MemoryMeter:
        """Raises `RunError` where the device does not answer."""
        ...

    def device_watch(self) -> DeviceWatch: ...


@dataclass(frozen=True)
class BuildMemory:
    """Resident memory that a build is expected to need: `base_mib`, and `factor` MiB for each MiB of the lowered model
    with its weights."""

    base_mib: float
    factor: float

    def mib(self, model_mib: float) -> float:
        return self.base_mib + self.factor * model_mib


@dataclass(frozen=True)
class TritonBackend:
    """How Triton serves a backend's engines.

    name: Triton's own backend, "python" for engines that it loads through this package. file: the engine's name in a
    package, with {target}. options: a target's option → the parameter of Triton's backend. own_profiles: Triton itself
    chooses the optimization profile and captures CUDA graphs.
    """

    name: str
    file: str = "{target}.plan"
    options: Mapping[str, str] = field(default_factory=dict)
    own_profiles: bool = False


@dataclass(frozen=True)
class Traits:
    """What other rooms must know of a backend; `plan` reads it, so a backend module imports no vendor library for it.

    build_memory: what a build needs. triton: how a package serves its engines. on_gpu: whether they run on a GPU.
    unquantized: precision of the nodes around quantized ones where the recipe sets none. smoke_options: options of a
    target that shorten a smoke build. own_process: engines run in other child processes than those that build.
    ort_integer_kernels: int8 is computed by ONNX Runtime's integer kernels. relative_times: the time of each precision
    over fp32's, for backends whose speed does not follow a GPU's peak rates.
    """

    build_memory: BuildMemory
    triton: TritonBackend
    on_gpu: bool = True
    unquantized: Literal["fp32", "fp16", "bf16"] = "fp16"
    smoke_options: Mapping[str, object] = field(default_factory=dict)
    own_process: bool = False
    ort_integer_kernels: bool = False
    relative_times: Mapping[str, float] = field(default_factory=dict)


class Backend(Protocol):
    """What every backend module has, builder or runner."""

    TITLE: str
    """Its name in messages, such as "TensorRT-RTX"."""

    DISTRIBUTIONS: tuple[str, ...]
    """Distributions that may provide its library; the first that is installed counts."""

    NEEDS_GPU_TO_BUILD: bool
    """Whether an engine depends on the GPU that it was built on."""

    OPTIONS: Mapping[str, Option]
    """What a target of this backend may say under `options`."""

    TRAITS: Traits
    """What other rooms must know of it."""

    IMPORTS: tuple[str, ...]
    """Modules that a build will import: a child that is started early may import them before its first job."""

    def versions(self) -> Mapping[str, str]:
        """Installed versions of the libraries that shape its engines, read from package metadata (nothing imported)."""
        ...

    def hardware(self) -> Mapping[str, str]:
        """What its measurements depend on here: processor or GPU name, driver, CUDA; part of a measurement's key."""
        ...
