"""The steps of a build: one literal table, and one module per step with a `run(job)` that fills `job.out`.

A step reads its parameters and inputs from the job, writes files into `job.out`, and returns nothing: what it found
out stands in the files. Its key is made in `plan`, its place in the store in `execute`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engineworks.datasets.preparation import find_made

LOG_FILE = "log.txt"
"""What a step printed, in its own artifact."""

StepName = Literal[
    "export", "prepare", "fold", "calibrate", "lower", "build", "reference", "lowered_reference", "compare", "measure",
    "duel", "peer", "sensitivity",
]  # fmt: skip


@dataclass(frozen=True)
class StepKind:
    """version: raise it whenever the step would give another result for the same inputs. libraries: distributions
    whose versions shape the result (a backend adds its own). engine: whether there is one per engine."""

    version: int
    libraries: tuple[str, ...]
    engine: bool = False


STEP_KINDS: Mapping[StepName, StepKind] = {
    "export": StepKind(1, ("onnx",)),
    "prepare": StepKind(1, ()),
    "fold": StepKind(4, ("onnx", "onnxruntime", "polygraphy", "onnx-graphsurgeon", "numpy")),
    "calibrate": StepKind(6, ("onnx", "onnxruntime", "numpy")),
    "lower": StepKind(7, ("onnx", "onnxruntime", "onnx-graphsurgeon", "numpy")),
    "reference": StepKind(4, ("onnxruntime", "numpy")),
    "lowered_reference": StepKind(1, ("onnx", "onnxruntime", "numpy")),
    "build": StepKind(4, (), engine=True),
    "compare": StepKind(4, ("numpy",), engine=True),
    "measure": StepKind(6, ("numpy",), engine=True),
    "duel": StepKind(3, ("numpy",), engine=True),
    "peer": StepKind(1, ("numpy",)),
    "sensitivity": StepKind(3, ("onnx", "onnxruntime", "numpy")),
}


@dataclass(frozen=True)
class StepJob:
    """What a step's `run` gets.

    params: the slice of the plan that it reads (part of its key). inputs: folders of earlier steps' artifacts by role.
    aside: what can not shape the result, absolute paths above all. out: an empty folder to fill. say: one line for
    the step's log. crashes: how earlier attempts at this step ended, one sentence each.
    """

    id: str
    params: Mapping[str, Any]
    inputs: Mapping[str, Path]
    aside: Mapping[str, Any]
    out: Path
    say: Callable[[str], None]
    crashes: tuple[str, ...] = ()

    def path(self, name: str) -> Path:
        """An absolute path from `aside`, or of the samples that a `prepare` step made for this role."""
        return find_made(self.inputs[name]) if name in self.inputs else Path(self.aside[name])

    def paths(self, name: str) -> tuple[Path, ...]:
        """As `path`, of samples, which may lie in several files."""
        several = () if name in self.inputs else self.aside[name]
        return tuple(map(Path, several)) if several and isinstance(several, list | tuple) else (self.path(name),)

    def write_json(self, name: str, value: object) -> None:
        """Write a result beside the others. NaN is not JSON: a figure that is none is null."""
        (self.out / name).write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
