"""The kinds of steps: one row each, with every fact that other modules need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from engineworks.engines.sidecar import Sidecar
from engineworks.errors import (
    BuildError,
    CalibrationError,
    ExportError,
    FoldError,
    LoweringError,
    PreparationError,
    RunError,
    StepError,
)
from engineworks.measure.accuracy_report import Accuracy
from engineworks.measure.champion_report import ChampionComparison
from engineworks.measure.latency_report import Latency, PeerLatency
from engineworks.measure.layers import Layers
from engineworks.measure.sensitivity_report import SensitivityReport
from engineworks.measure.serving_report import ServingReport
from engineworks.model.calibrate.report import CalibrationReport
from engineworks.model.fold.report import FoldReport
from engineworks.model.lower.report import Lowering
from engineworks.typed_json import Report

StepName = Literal[
    "export", "prepare", "fold", "calibrate", "reference", "lower", "lowered_reference", "build", "compare", "measure",
    "compare_champion", "serve", "peer", "sensitivity",
]  # fmt: skip

SHADOW_FILE = "shadow.json"
TOGETHER_FILE = "together.json"


@dataclass(frozen=True)
class StepKind:
    """One kind of step.

    version: raise it when the step gives another result for the same inputs. libraries: distributions whose versions
    shape the result (a backend adds its own). error: the error class of a crash. reads: kinds of steps whose results it
    may read. column: its place in the report's graph, from the left, after all that it reads.

    owner: what has one such step. A recipe's steps need no GPU: the CPU pool runs them once for all engines. A
    command's step is in no build. report: the JSON file that a build reads from the result, '' for none. typed,
    optional: its reports, and those that it may write, which are read back before they are published. files: the name
    of the step's input files in reports, '' where another kind names the same files.

    alone: it needs the whole machine. fresh: it runs in a new process, because its measurements include its libraries'
    own memory. optimizer: whose optimizations a retry after a crash reduces, '' for none. attempts: how often a
    crashing step without an optimizer may run. The second `lowered_reference` runs no model and makes fp32 the
    reference.
    """

    version: int
    libraries: tuple[str, ...]
    error: type[StepError]
    reads: tuple[StepName, ...]
    column: int
    owner: Literal["recipe", "engine", "peer", "command"] = "recipe"
    report: str = ""
    typed: tuple[type[Report], ...] = ()
    optional: tuple[type[Report], ...] = ()
    files: str = ""
    alone: bool = False
    fresh: bool = False
    optimizer: Literal["", "onnxruntime", "target"] = ""
    attempts: int = 1


STEP_KINDS: Mapping[StepName, StepKind] = {
    "export": StepKind(1, ("onnx",), ExportError, (), 0, files="model"),
    "prepare": StepKind(2, (), PreparationError, (), 0),
    "fold": StepKind(
        6, ("onnx", "onnxruntime", "polygraphy", "onnx-graphsurgeon", "numpy"), FoldError, ("export", "prepare"), 1,
        report=FoldReport.FILE, typed=(FoldReport,),
    ),
    "calibrate": StepKind(
        10, ("onnx", "onnxruntime", "numpy"), CalibrationError, ("fold", "prepare"), 2,
        files="calibration data", optimizer="onnxruntime", typed=(CalibrationReport,),
    ),
    "reference": StepKind(
        6, ("onnxruntime", "numpy"), RunError, ("fold", "prepare"), 3, files="evaluation data", optimizer="onnxruntime"
    ),
    "lower": StepKind(
        10, ("onnx", "onnxruntime", "onnx-graphsurgeon", "numpy"), LoweringError, ("fold", "calibrate", "prepare"), 3,
        report=Lowering.FILE, typed=(Lowering,), optimizer="onnxruntime",
    ),
    "lowered_reference": StepKind(
        5, ("onnx", "onnxruntime", "numpy"), RunError, ("lower", "reference", "prepare"), 4, attempts=2
    ),
    "build": StepKind(6, (), BuildError, ("lower",), 5, owner="engine", report=Sidecar.FILE, typed=(Sidecar,),
        optimizer="target",
),
    "compare": StepKind(
        9, ("numpy",), RunError, ("build", "reference", "lowered_reference", "prepare"), 6, owner="engine",
        report=Accuracy.FILE, typed=(Accuracy,),
    ),
    "measure": StepKind(
        8, ("numpy",), RunError, ("build", "lower", "prepare"), 7, owner="engine", report=Latency.FILE,
        typed=(Latency,), optional=(Layers,), alone=True, fresh=True,
    ),
    "compare_champion": StepKind(
        3, ("numpy",), RunError, ("build", "prepare"), 8, owner="engine", report=ChampionComparison.FILE,
        typed=(ChampionComparison,), alone=True
    ),
    "serve": StepKind(
        6, ("numpy", "tritonclient", "mlcommons-loadgen"), RunError, ("build", "compare", "reference", "prepare"), 9,
        owner="engine", report=ServingReport.FILE, typed=(ServingReport,), alone=True, fresh=True,
    ),
    "peer": StepKind(
        2, ("numpy",), RunError, ("reference", "fold", "lower", "prepare"), 6, owner="peer",
        report=PeerLatency.FILE, typed=(PeerLatency,), alone=True, fresh=True,
    ),
    "sensitivity": StepKind(
        3, ("onnx", "onnxruntime", "numpy"), RunError, ("fold", "calibrate", "prepare"), 3, owner="command",
        report=SensitivityReport.FILE, typed=(SensitivityReport,), optimizer="onnxruntime",
    ),
}  # fmt: skip
"""Ordered so that each kind follows the kinds it reads."""
