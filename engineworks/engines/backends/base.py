"""The interface of backends: a module that satisfies `Builder`, `Runner` or both.

A backend that only runs has no `build`; one that only builds has no `load`. Functions import vendor libraries, so the
table in `engines/backends/__init__.py` works without any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from engineworks.errors import TargetError, did_you_mean
from engineworks.host.lazy import Array, Arrays
from engineworks.tensors import Profile, TensorSpec
from engineworks.typed_json import Record

if TYPE_CHECKING:
    from engineworks.engines.decoder.base import DecoderSession
    from engineworks.engines.decoder.parts import Part
    from engineworks.model.decoder.interface import DecoderInterface


ENGINE_FILE = "engine"
"""Name of the engine file in its artifact folder; external weights are next to it."""


@dataclass(frozen=True)
class BuildRequest:
    """One engine to build.

    model: the lowered ONNX file (external data next to it). out: an empty folder for the engine.
    compute_capabilities: such as ("8.6",) or several for a portable engine; empty for a target without a GPU.
    options: the target's own options, e.g. {"workspace_mib": 4096, "builder_optimization_level": 3}.
    cache: a folder for this device, driver and version, with data that makes the next build faster.
    computes: the plain precisions behind a mixed precision, or int8 with fp16 for unquantized nodes: ("int8", "fp16").
    crashes: how earlier attempts at this engine ended, one sentence each.
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
        """Return `computes`, or the precision itself where it is empty."""
        return self.computes or (self.precision,)


@dataclass(frozen=True)
class BuildReport:
    """The builder's facts about its engine: tensors, seconds, versions of the libraries that shaped it."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    seconds: float
    versions: Mapping[str, str]
    details: Mapping[str, object] = field(default_factory=dict)


LARGEST_OPTION = 2**31 - 1
"""Maximum of a numeric option: as MiB, its bytes still fit into 64 bits."""


@dataclass(frozen=True)
class Option:
    """One option of a backend's targets: the type of its value, its effect, and its allowed values if it has a list."""

    type: type
    help: str
    choices: tuple[str, ...] = ()

    def complaint(self, value: object) -> str:
        """Return what is wrong with the value, or ''. True and False are not numbers."""
        if self.choices:
            return "" if value in self.choices else f"is {value!r}: one of {', '.join(self.choices)}"
        if (self.type is not bool and isinstance(value, bool)) or not isinstance(value, self.type):
            return f"is {value!r}: {_KINDS[self.type]} is asked for"
        if not isinstance(value, int) or 0 <= value <= LARGEST_OPTION:
            return ""
        return f"is {value}: it cannot be negative" if value < 0 else f"is too large: at most {LARGEST_OPTION}"


_KINDS: Mapping[type, str] = {int: "a whole number", bool: "true or false", str: "a word"}


def check_options(title: str, given: Mapping[str, object], known: Mapping[str, Option]) -> None:
    """Raises `TargetError` for an unknown option or an invalid value."""
    for name, value in given.items():
        if name not in known:
            raise TargetError(f"unknown option '{name}' of {title}", hint=did_you_mean(name, known))
        if complaint := known[name].complaint(value):
            raise TargetError(f"option '{name}' of {title} {complaint}", hint=known[name].help)


@dataclass(frozen=True)
class Serving(Record):
    """How all runs of an engine are done. cuda_graphs: replay the launches of a shape as one graph.
    kernels: TensorRT-RTX's kernels for a shape: "lazy" (general ones first, specialized ones swapped in later), "eager"
    (specialized before the first run) or "none" (general ones only). Backends without these features say so in the
    session's `notes`."""

    cuda_graphs: bool = False
    kernels: Literal["lazy", "eager", "none"] = "lazy"


PLAIN = Serving()
"""How an engine is run where nothing is asked for."""


@dataclass(frozen=True)
class RunTimes:
    """Time of each run in ms, in order. host: from the call until the outputs are ready, by the host's clock.
    device: the same runs by the device's clock (CUDA events); empty on a CPU. on_host: inputs and outputs are in the
    memory that the engine uses (a CPU), so nothing is copied."""

    host_ms: tuple[float, ...]
    device_ms: tuple[float, ...] = ()
    on_host: bool = False


@dataclass(frozen=True)
class TimedLayer:
    """One layer as the runtime sees it. ms: mean of a run. inputs, outputs: tensors, where they are known. names: of
    ONNX nodes, where the runtime names them. kernel: '' where it is unknown."""

    name: str
    kind: str
    ms: float
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    kernel: str = ""


class LayerTimer(Protocol):
    """A backend's function `layer_times`, if it can time them: by a profile, a profiler, or the GPU's own trace."""

    def __call__(
        self, engine: Path, options: Mapping[str, object], feeds: Arrays, runs: int, known: Sequence[Any],
        cache: Path | None = None,
    ) -> tuple[str, list[TimedLayer]]:  # fmt: skip
        """Return what timed the layers, and each layer. cache: of kernels that were compiled for this device. Raises
        `RunError` where nothing can."""
        ...


class Session(Protocol):
    """A loaded engine. Not thread-safe; `close` frees it."""

    @property
    def inputs(self) -> Sequence[TensorSpec]: ...

    @property
    def outputs(self) -> Sequence[TensorSpec]: ...

    @property
    def notes(self) -> Sequence[str]:
        """Remarks on how it runs, one sentence each, such as a CUDA graph that could not be captured."""
        ...

    @property
    def facts(self) -> Mapping[str, object]:
        """How it was loaded and runs, as JSON: kernels, CUDA graph replay, use of the runtime cache."""
        ...

    def run(self, feeds: Arrays) -> dict[str, Array]:
        """Run once. feeds: one array per input with its name, dtype and a shape that fits `inputs`. Returns all outputs
        by name, with the dtypes and shapes of `outputs`. Raises `RunError`."""
        ...

    def time_runs(self, feeds: Arrays, runs: int, *, copies: bool = False) -> RunTimes:
        """Time `runs` runs on the same feeds, one after the other, each awaited. Returns ms.

        copies: include the inputs' copies to the device and the outputs' copies back; otherwise both stay on the
        device. Callers time windows of about 50 ms: setup may cost at most one untimed run. Raises `RunError`.
        """
        ...

    def throughput(self, feeds: Arrays, streams: int, seconds: float) -> float:
        """Return runs per second with `streams` runs in flight, over about `seconds`. Raises `RunError`, also where the
        backend has no streams."""
        ...

    def close(self) -> None: ...


class MemoryMeter(Protocol):
    """Memory in use where a backend's engines run; an engine's memory is a difference of two readings."""

    def reset(self) -> None:
        """Restart the peak at the present value."""
        ...

    def peak_mib(self) -> float:
        """Return the peak since `reset` in MiB; the present use on a device without a peak."""
        ...

    def total_mib(self) -> float:
        """Return all memory of the device in MiB; on a CPU, the memory that this process may use."""
        ...


class DeviceWatch(Protocol):
    """The state of the device that engines run on: clocks, temperature, throttling, other users."""

    def sample(self) -> Mapping[str, object]:
        """Return one reading as JSON; empty where nothing can be read."""
        ...

    def complaints(self, readings: Sequence[Mapping[str, object]]) -> Sequence[str]:
        """Return why measurements between these readings are unreliable, one sentence each."""
        ...


@runtime_checkable
class Builder(Protocol):
    """ONNX, profiles and target → an engine on disk. Runs in a child process."""

    def why_not_build(self, compute_capabilities: Sequence[str]) -> str | None:
        """Return why this host cannot build for such a target, None if it can."""
        ...

    def build(self, request: BuildRequest, log: Callable[[str], None]) -> BuildReport:
        """Write the engine under `request.out`. Every line of the builder goes to `log`. Raises `BuildError`."""
        ...


@runtime_checkable
class Runner(Protocol):
    """An engine on disk → a session."""

    def why_not_run(self, compute_capabilities: Sequence[str]) -> str | None:
        """Return why this host cannot run engines of such a target, None if it can."""
        ...

    def load(
        self,
        engine: Path,
        options: Mapping[str, object],
        *,
        serving: Serving = PLAIN,
        cache: Path | None = None,
        known: Sequence[TensorSpec] = (),
    ) -> Session:
        """Load the engine's bytes (digest already verified). Raises `RunError`.

        cache: a folder for this engine on this device, with data that makes the next load faster. known: the builder's
        tensors with their dimension names, for engines that do not keep those.
        """
        ...

    def memory_meter(self) -> MemoryMeter:
        """Raises `RunError` where the device does not answer."""
        ...

    def device_watch(self) -> DeviceWatch: ...


@runtime_checkable
class PartsRunner(Protocol):
    """A backend that runs decoders whose artifacts hold an engine for each batch and number of tokens."""

    def open_parts(
        self,
        folder: Path,
        parts: Sequence[Part],
        interface: DecoderInterface,
        streams: int,
        *,
        serving: Serving = PLAIN,
        cache: Path | None = None,
    ) -> DecoderSession:
        """Load the parts' files (digests already verified) for so many streams. Raises `RunError`."""
        ...


@dataclass(frozen=True)
class BuildMemory:
    """Expected resident memory of a build: `base_mib`, and `factor` MiB for each MiB of the lowered model with
    weights."""

    base_mib: float
    factor: float

    def mib(self, model_mib: float) -> float:
        return self.base_mib + self.factor * model_mib


@dataclass(frozen=True)
class TritonBackend:
    """How Triton serves a backend's engines.

    name: Triton's backend, "python" for engines that only this package's code can run. requires: distributions that a
    Python model with such an engine needs. file: the engine's name in a package, with {target}. options: a target's
    option → the parameter of Triton's backend. own_profiles: Triton chooses the optimization profile and captures CUDA
    graphs.
    """

    name: str
    requires: tuple[str, ...]
    file: str = "{target}.plan"
    options: Mapping[str, str] = field(default_factory=dict)
    own_profiles: bool = False


@dataclass(frozen=True)
class Traits:
    """A backend's properties for the rest of the package. `plan` reads them, so a backend module imports no vendor
    library for them.

    build_memory: of a build. triton: how a package serves its engines. on_gpu: whether they run on a GPU.
    unquantized: precision of unquantized nodes in quantized models where the recipe sets none. smoke_options: options
    of a target that shorten a smoke build. quiet_options: options of a load beside other steps; they change no value.
    own_process: builds and runs use different child processes.
    ort_integer_kernels: ONNX Runtime's integer kernels compute int8. contrib_operators: a decoder's
    graph may hold ONNX Runtime's own operators. relative_times: time of each precision relative to
    fp32, for backends whose speed does not follow a GPU's peak rates.
    """

    build_memory: BuildMemory
    triton: TritonBackend
    on_gpu: bool = True
    unquantized: Literal["fp32", "fp16", "bf16"] = "fp16"
    smoke_options: Mapping[str, object] = field(default_factory=dict)
    quiet_options: Mapping[str, object] = field(default_factory=dict)
    own_process: bool = False
    ort_integer_kernels: bool = False
    contrib_operators: bool = False
    relative_times: Mapping[str, float] = field(default_factory=dict)


class Backend(Protocol):
    """The interface of every backend module, builder or runner."""

    TITLE: str
    """Its name in messages, such as "TensorRT-RTX"."""

    DISTRIBUTIONS: tuple[str, ...]
    """Distributions that may provide its library; the first installed one counts."""

    NEEDS_GPU_TO_BUILD: bool
    """Whether an engine depends on the GPU that built it."""

    OPTIONS: Mapping[str, Option]
    """Options that a target of this backend may set."""

    TRAITS: Traits
    """Its properties for the rest of the package."""

    IMPORTS: tuple[str, ...]
    """Modules that a build imports: a prestarted child may import them before its first job."""

    def versions(self) -> Mapping[str, str]:
        """Return installed versions of the libraries that shape its engines, from package metadata (no imports)."""
        ...

    def hardware(self) -> Mapping[str, str]:
        """Return what its measurements depend on here: processor or GPU, driver, CUDA. Part of a measurement's cache
        key."""
        ...
