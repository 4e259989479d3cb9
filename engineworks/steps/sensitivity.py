"""Folded ONNX + ranges + evaluation data → the cost of quantizing each group of nodes, and which to exclude."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from engineworks.errors import LoweringError
from engineworks.measure.accuracy_report import Accuracy
from engineworks.measure.gates.gates import Check, evaluate_gates
from engineworks.model.lower.double import double_to_float
from engineworks.model.lower.quantize import name_nodes, raise_opset_for
from engineworks.model.onnx_files import MODEL_FILE, load_model
from engineworks.plan.kinds import SENSITIVITY_FILE
from engineworks.recipe.recipe import Limits
from engineworks.recipe.samples import samples_from_json
from engineworks.steps.calibrate import read_ranges
from engineworks.steps.partial_quantization.groups import Group, group_nodes, keep_patterns, single_nodes
from engineworks.steps.partial_quantization.ranking import (
    Trial,
    make_trial,
    rank,
    shortest_list,
    to_split,
    worst_noise,
)
from engineworks.steps.partial_quantization.trials import Trials
from engineworks.steps.step_job import StepJob


def run(job: StepJob) -> None:
    start = time.perf_counter()
    globs, fp32 = job.params["quantized"], job.params.get("fp32", ())
    samples = samples_from_json(job.paths("evaluation"), {**job.params["samples"], "labels": job.params["labels"]})
    single, _ = double_to_float(name_nodes(load_model(job.inputs["fold"] / MODEL_FILE)))
    model = name_nodes(raise_opset_for(single, globs))
    with TemporaryDirectory(dir=job.out) as scratch:
        trials = Trials(model, read_ranges(job), samples, job, globs=globs, fp32=fp32, scratch=Path(scratch))
        report = _measure(job, trials, samples.count)
    report["cost"]["seconds"] = time.perf_counter() - start
    job.write_json(SENSITIVITY_FILE, {"precision": job.params["precision"], "total": samples.total, **report})


def _measure(job: StepJob, trials: Trials, samples: int) -> dict[str, Any]:
    """Return the groups, the nodes of the worst ones, and the list of what to exclude."""
    if not trials.candidates:
        raise LoweringError(
            f"{job.id}: no node can compute in {job.params['precision']}", hint="there is nothing to leave out"
        )
    groups = rank(trials.each_alone(group_nodes(trials.candidates), _trial_logger(job)), samples)
    split = to_split(groups)
    nodes = rank(trials.each_alone(single_nodes(t.group for t in split), _trial_logger(job)), samples)
    parts = rank([*nodes, *(t for t in groups if t not in split)], samples)
    search = _Search(trials, job)
    kept = search.shortest([t.group for t in parts])
    return {
        "samples": samples,
        "candidates": len(trials.candidates),
        "groups": [t.to_json() for t in groups],
        "parts": [t.to_json() for t in parts],
        "everything": _summary(search.evaluate([])),
        "limits": job.params["limits"] is not None,
        "keep": None if kept is None else list(keep_patterns(kept, trials.candidates)),
        "kept_nodes": [] if kept is None else [name for group in kept for name in group.nodes],
        "result": None if kept is None else _summary(search.evaluate(kept)),
        "checks": [] if kept is None else [c.to_json() for c in search.checks(kept)],
        "cost": {
            "pass_seconds": trials.pass_seconds, "tried": len(groups) + len(nodes), "evaluations": search.evaluations,
        },
    }  # fmt: skip


class _Search:
    """Evaluates lists of excluded nodes, each once."""

    def __init__(self, trials: Trials, job: StepJob) -> None:
        self._trials, self._job = trials, job
        limits = job.params["limits"]
        self._limits = None if limits is None else Limits.model_validate(limits)
        self._reports: dict[frozenset[str], Accuracy] = {}

    @property
    def evaluations(self) -> int:
        return len(self._reports)

    def shortest(self, ranked: Sequence[Group]) -> list[Group] | None:
        """Return what must be excluded to meet the recipe's limits; None if nothing helps, or there are no limits."""
        return None if self._limits is None else shortest_list(ranked, self._holds)

    def evaluate(self, kept: Sequence[Group]) -> Accuracy:
        key = frozenset(name for group in kept for name in group.nodes)
        if key not in self._reports:
            self._reports[key] = self._trials.without(kept)
            held = "" if self._limits is None else f", limits {'hold' if self._good(kept) else 'do not hold'}"
            self._job.echo(f"without {len(key)} nodes: noise {worst_noise(self._reports[key]):.2e}{held}")
        return self._reports[key]

    def checks(self, kept: Sequence[Group]) -> tuple[Check, ...]:
        assert self._limits is not None
        return evaluate_gates(self.evaluate(kept), None, self._limits, {}).checks

    def _holds(self, kept: Sequence[Group]) -> bool:
        self.evaluate(kept)
        return self._good(kept)

    def _good(self, kept: Sequence[Group]) -> bool:
        return all(check.verdict == "pass" for check in self.checks(kept))


def _summary(report: Accuracy) -> Mapping[str, Any]:
    """Summarize the metrics of one model over all outputs."""
    shown = make_trial(Group("", ()), report).to_json()
    return {key: shown[key] for key in ("noise", "sqnr_db", "cosine", "metric", "loss")} | {
        "metric_of": report.metric and report.metric.to_json()
    }


def _trial_logger(job: StepJob) -> Callable[[Trial], None]:
    def log(trial: Trial) -> None:
        job.echo(f"{trial.group.name}: noise {trial.noise:.2e} ({len(trial.group.nodes)} nodes, {trial.seconds:.2f} s)")

    return log
