"""What a backend is: a module that satisfies `Builder`, `Runner` or both.

A backend that only runs has no `build`; one that only builds has no `load`. Vendor libraries are imported inside
functions, so that the table in `backends/__init__.py` can be read where none of them is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from engineworks.errors import TargetError
from engineworks.suggest import did_you_mean
from engineworks.tensors import Profile, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]

ENGINE_FILE = "engine"
"""Name of the engine file in its artifact folder; weights that live outside of it stand beside it."""


@dataclass(frozen=True)
class BuildRequest:
    """One engine to build.

    model: the lowered ONNX file (its external data beside it). out: folder to write the engine into, empty.
    compute_capabilities: such as ("8.6",) or several for a portable engine; empty for a target without a GPU.
    options: the target's own options, e.g. {"workspace_mib": 4096, "builder_optimization_level": 3}.
    computes: the plain precisions that `precision` stands for where that is the name of a mixture, or int8 with fp16
    around it: ("int8", "fp16").
    """

    model: Path
    out: Path
    precision: str
    profiles: tuple[Profile, ...]
    compute_capabilities: tuple[str, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    computes: tuple[str, ...] = ()

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
        return "" if not isinstance(value, int) or value >= 0 else f"is {value}: it can not be negative"


_KINDS: Mapping[type, str] = {int: "a whole number", bool: "true or false", str: "a word"}


def check_options(title: str, given: Mapping[str, object], known: Mapping[str, Option]) -> None:
    """Raises `TargetError` for an option that the backend does not have, or a value that it can not take."""
    for name, value in given.items():
        if name not in known:
            raise TargetError(f"unknown option '{name}' of {title}", hint=did_you_mean(name, known))
        if complaint := known[name].complaint(value):
            raise TargetError(f"option '{name}' of {title} {complaint}", hint=known[name].help)


class Session(Protocol):
    """A loaded engine, ready to run. Not thread-safe; `close` frees it."""

    @property
    def inputs(self) -> Sequence[TensorSpec]: ...

    @property
    def outputs(self) -> Sequence[TensorSpec]: ...

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """All outputs by name. Raises `RunError` with one clear message."""
        ...

    def time_runs(self, feeds: Arrays, runs: int) -> list[float]:
        """Milliseconds of each of `runs` runs on the same feeds, timed as closely to the device as the backend can."""
        ...

    def close(self) -> None: ...


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

    def load(self, engine: Path, options: Mapping[str, object]) -> Session:
        """Load the engine's own bytes (already verified by digest). Raises `RunError`."""
        ...


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

    IMPORTS: tuple[str, ...]
    """Modules that a build will import: a child that is started early may import them before its first job."""

    def versions(self) -> Mapping[str, str]:
        """Installed versions of the libraries that shape its engines, read from package metadata (nothing imported)."""
        ...

    def hardware(self) -> Mapping[str, str]:
        """What its measurements depend on here: processor or GPU name, driver, CUDA; part of a measurement's key."""
        ...
