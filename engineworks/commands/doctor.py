"""What is installed, what this host can build, run and measure, and which versions conflict. Imports nothing heavy."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engineworks.engines.backends import backend_facts, builder
from engineworks.host.gpu import Gpu, first_gpu
from engineworks.host.packages import installed_version
from engineworks.recipe.load import load_targets
from engineworks.recipe.targets import NamedTarget
from engineworks.report.terminal import echo, print_table
from engineworks.settings import Settings

LIBRARIES = {
    "onnx": "models",
    "onnxruntime": "reference, and the cpu target",
    "polygraphy": "constant folding",
    "onnx-graphsurgeon": "graph surgery",
    "tensorrt-rtx": "RTX engines, ahead of time (pip install 'engineworks[rtx]')",
    "tensorrt": "TensorRT engines on a host with a GPU",
    "cuda-bindings": "running engines on a GPU",
    "nvidia-ml-py": "clocks and temperature of a GPU while it is measured",
    "onnxruntime-gpu": "ONNX Runtime on a GPU, to compare with",
    "torch": "models from PyTorch factories (pip install 'engineworks[torch]')",
    "transformers": "models from Hugging Face folders (pip install 'engineworks[huggingface]')",
    "nvidia-modelopt": "AutoCast, where the light fp16 converter fails (pip install 'engineworks[autocast]')",
    "prefect": "flows",
    "mlflow": "records",
}

TOO_NEW = {
    "onnx": ((1, 24), "was not tried", "onnx<1.24"),
    "onnxruntime": ((1, 32), "was not tried", "onnxruntime<1.32"),
    "prefect": ((3, 10), "was not tried", "prefect<3.10"),
    "mlflow": ((3, 18), "was not tried", "mlflow<3.18"),
}
"""Distributions whose newer versions break or are untested: first such version, reason, what to install."""

PYTHONS = ("3.11", "3.12", "3.13")
"""The Python versions that the tests cover: those of pyproject's classifiers."""


@dataclass(frozen=True)
class TargetHere:
    """build, run, measure: None if this host can, else the reason why not."""

    name: str
    build: str | None
    run: str | None
    measure: str | None


@dataclass(frozen=True)
class Findings:
    """libraries: version by name, None if it is not installed. gpu: the first visible one. gpu_says: which targets it
    serves, or how to add such a target; '' without a GPU."""

    libraries: Mapping[str, str | None]
    targets: tuple[TargetHere, ...]
    conflicts: tuple[str, ...]
    gpu: Gpu | None = None
    gpu_says: str = ""
    python: str = platform.python_version()

    @property
    def python_says(self) -> str:
        """The running and the supported Python versions, in one line; a warning if the running one is unsupported."""
        versions = ", ".join(PYTHONS)
        if ".".join(self.python.split(".")[:2]) in PYTHONS:
            return f"Python {self.python}; supported: {versions}"
        return f"warning: Python {self.python} is not supported, tests were run on {versions} only: use one of these"

    def to_json(self) -> dict[str, Any]:
        return {
            "gpu": {**self.gpu.to_json(), "memory_mib": self.gpu.memory_mib} if self.gpu else None,
            "gpu_says": self.gpu_says,
            "python": {"version": self.python, "supported": list(PYTHONS)},
            "libraries": dict(self.libraries),
            "targets": [vars(t) for t in self.targets],
            "conflicts": list(self.conflicts),
        }


def examine(settings: Settings, recipes: Path) -> Findings:
    """`recipes`: the folder whose `_targets.yaml` counts. Raises `RecipeError` if that file is wrong."""
    libraries = {name: installed_version(name) for name in LIBRARIES}
    named = [NamedTarget(n, t) for n, t in load_targets(recipes).items()]
    gpu = first_gpu()
    return Findings(
        libraries,
        tuple(_target_here(target) for target in named),
        tuple(_conflicts(settings)),
        gpu,
        _gpu_says(gpu, named) if gpu else "",
    )


def _target_here(target: NamedTarget) -> TargetHere:
    name, capabilities = target.target.backend, target.target.compute_capability
    build = builder(name)
    why_not_build = build.why_not_build(capabilities) if build else "its backend only runs engines"
    why_not_run = backend_facts(name).why_not_run(capabilities)
    return TargetHere(target.name, why_not_build, why_not_run, why_not_run or _why_not_measure(target))


def _why_not_measure(target: NamedTarget) -> str | None:
    """Return why measurements here cannot be trusted, though engines run here."""
    if not target.target.compute_capability or installed_version("nvidia-ml-py"):
        return None
    return "the GPU's clocks and other processes cannot be watched; pip install nvidia-ml-py"


def _gpu_says(gpu: Gpu, targets: Sequence[NamedTarget]) -> str:
    """Describe the targets of the GPU. It is no implicit target: engine ids must mean the same everywhere."""
    serves = [t.name for t in targets if gpu.compute_capability in t.target.compute_capability]
    if serves:
        return f"it is the GPU of {', '.join(serves)}: build with --only '*/*/{serves[0]}'"
    if not gpu.compute_capability:
        return f"its driver {gpu.driver} is too old to say its compute capability"
    return (
        f"no target names its compute capability; add one to _targets.yaml: "
        f"{{backend: tensorrt_rtx, compute_capability: [{gpu.compute_capability}]}}"
    )


def _conflicts(settings: Settings) -> Iterator[str]:
    if installed_version("onnxruntime") and installed_version("onnxruntime-gpu"):
        yield "onnxruntime and onnxruntime-gpu overwrite each other's files: uninstall both, then install one"
    for name, (bad, why, instead) in TOO_NEW.items():
        version = installed_version(name)
        if version and _numbers(version) >= bad:
            yield f"{name} {version} {why}: pip install '{instead}'"
    place = settings.artifacts
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        yield f"{settings.artifacts} cannot be written: set ENGINEWORKS_ARTIFACTS to a folder that can"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def print_findings(findings: Findings) -> None:
    libraries = ((name, version or "not installed", LIBRARIES[name]) for name, version in findings.libraries.items())
    print_table(("library", "version", "for"), libraries)
    targets = ((target.name, target.build or "yes", _run_and_measure(target)) for target in findings.targets)
    print_table(("target", "build here", "run and measure here"), targets)
    echo(findings.python_says)
    echo(_gpu_line(findings))
    for conflict in findings.conflicts:
        echo(f"conflict: {conflict}")
    if not findings.conflicts:
        echo("no conflicts")


def _run_and_measure(target: TargetHere) -> str:
    if target.run is not None:
        return target.run
    return "yes" if target.measure is None else f"yes, but {target.measure}"


def _gpu_line(findings: Findings) -> str:
    gpu = findings.gpu
    if gpu is None:
        return "GPU: none found (nvidia-smi is not there, or shows none)"
    facts = [gpu.name, f"compute capability {gpu.compute_capability or 'unknown'}", f"driver {gpu.driver}"]
    facts += [f"CUDA {gpu.cuda}"] if gpu.cuda else []
    facts += [f"{gpu.memory_mib} MiB"] if gpu.memory_mib is not None else []
    return f"GPU: {', '.join(facts)}; {findings.gpu_says}"
