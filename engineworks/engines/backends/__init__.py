"""The table of backends. A new backend is a module and a line here."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from engineworks.engines.backends.base import Backend, Builder, Runner
from engineworks.errors import TargetError, did_you_mean

BACKENDS: Mapping[str, str] = {
    "onnxruntime": "engineworks.engines.backends.onnxruntime",
    "tensorrt_rtx": "engineworks.engines.backends.tensorrt_rtx",
    "tensorrt": "engineworks.engines.backends.tensorrt",
}


def backend(name: str) -> Backend:
    """Return the backend's module; imports no vendor library. Raises `TargetError` for an unknown name."""
    if name not in BACKENDS:
        raise TargetError(f"unknown backend '{name}'", hint=did_you_mean(name, BACKENDS))
    return cast(Backend, importlib.import_module(BACKENDS[name]))


def builder(name: str) -> Builder | None:
    """Return the backend as a builder, None if it only runs engines."""
    module = backend(name)
    return module if isinstance(module, Builder) else None


def runner(name: str) -> Runner | None:
    """Return the backend as a runner, None if it only builds engines."""
    module = backend(name)
    return module if isinstance(module, Runner) else None


def attempts(name: str) -> int:
    """Return how many ways the backend has to build an engine. After a crash, the next one is tried."""
    return int(getattr(backend(name), "ATTEMPTS", 1))


@dataclass(frozen=True)
class BackendFacts:
    """Facts about a backend for `plan`. libraries: distributions whose versions shape its engines; version: version of
    the first, None where it is not installed."""

    name: str
    libraries: tuple[str, ...]
    version: str | None
    needs_gpu_to_build: bool

    def hardware(self) -> Mapping[str, str]:
        """Hardware that its measurements on this host depend on."""
        return backend(self.name).hardware()

    def why_not_run(self, compute_capabilities: Sequence[str]) -> str | None:
        """Return why this host cannot run its engines, None if it can."""
        run = runner(self.name)
        if run is None:
            return f"{backend(self.name).TITLE} engines are built here, but not yet run"
        return run.why_not_run(compute_capabilities)


def backend_facts(name: str) -> BackendFacts:
    """Return facts about the backend without importing its library. Raises `TargetError` for an unknown name."""
    module = backend(name)
    installed = dict(module.versions())
    return BackendFacts(
        name=name,
        libraries=tuple(installed) or module.DISTRIBUTIONS[:1],
        version=next(iter(installed.values()), None),
        needs_gpu_to_build=module.NEEDS_GPU_TO_BUILD,
    )
