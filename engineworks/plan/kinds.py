"""The kinds of steps: one row each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

StepName = Literal[
    "export", "prepare", "fold", "calibrate", "lower", "build", "reference", "lowered_reference", "compare", "measure",
    "compare_champion", "peer", "sensitivity",
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
    "calibrate": StepKind(7, ("onnx", "onnxruntime", "numpy")),
    "lower": StepKind(7, ("onnx", "onnxruntime", "onnx-graphsurgeon", "numpy")),
    "reference": StepKind(5, ("onnxruntime", "numpy")),
    "lowered_reference": StepKind(1, ("onnx", "onnxruntime", "numpy")),
    "build": StepKind(4, (), engine=True),
    "compare": StepKind(4, ("numpy",), engine=True),
    "measure": StepKind(6, ("numpy",), engine=True),
    "compare_champion": StepKind(3, ("numpy",), engine=True),
    "peer": StepKind(1, ("numpy",)),
    "sensitivity": StepKind(3, ("onnx", "onnxruntime", "numpy")),
}
