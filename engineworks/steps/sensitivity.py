"""Folded ONNX + ranges + evaluation data → the cost of quantizing each group of nodes, and which to exclude."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from engineworks.errors import LoweringError
from engineworks.measure.accuracy_report import Accuracy
from engineworks.measure.check import Check
from engineworks.measure.gates.gates import evaluate_gates
from engineworks.measure.sensitivity_report import Effort, ModelCost, SensitivityReport
from engineworks.model.lower.double import double_to_float
from engineworks.model.lower.quantize import name_nodes, raise_opset_for
from engineworks.model.onnx_files import MODEL_FILE, load_model
from engineworks.recipe.recipe import Limits
from engineworks.recipe.samples import SampleFile, samples_from_json
from engineworks.steps.calibrate import read_ranges
from engineworks.steps.job import StepJob
from engineworks.steps.partial_quantization.groups import Group, group_nodes, keep_patterns, single_nodes
from engineworks.steps.partial_quantization.ranking import Trial, make_trial, rank, shortest_list, to_split, worst_noise
from engineworks.steps.partial_quantization.trials import Trials


def run(job: StepJob) -> None:
    start = time.perf_counter()
    globs, fp32 = job.params["quantized"], job.params.get("fp32", ())
    samples = samples_from_json(job.paths("evaluation"), {**job.params["samples"], "labels": job.params["labels"]})
    single, _ = double_to_float(name_nodes(load_model(job.inputs["fold"] / MODEL_FILE)))
    model = name_nodes(raise_opset_for(single, globs))
    with TemporaryDirectory(dir=job.out) as scratch:
        trials = Trials(model, read_ranges(job), samples, job, globs=globs, fp32=fp32, scratch=Path(scratch))
        job.write(_measure(job, trials, samples, start))


def _measure(job: StepJob, trials: Trials, data: SampleFile, start: float) -> SensitivityReport:
    """Rank the groups and the nodes of the worst ones, and find the list of what to exclude. start: of the step."""
    samples = data.count
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
    everything, result = search.cost([]), None if kept is None else search.cost(kept)
    tried, seconds = len(groups) + len(nodes), time.perf_counter() - start
    return SensitivityReport(
        precision=job.params["precision"],
        total=data.total,
        samples=samples,
        candidates=len(trials.candidates),
        groups=tuple(t.part for t in groups),
        parts=tuple(t.part for t in parts),
        everything=everything,
        limits=job.params["limits"] is not None,
        keep=None if kept is None else tuple(keep_patterns(kept, trials.candidates)),
        kept_nodes=tuple(name for group in kept or () for name in group.nodes),
        result=result,
        checks=() if kept is None else tuple(c.to_json() for c in search.checks(kept)),
        cost=Effort(trials.pass_seconds, tried, search.evaluations, seconds),
    )


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

    def cost(self, kept: Sequence[Group]) -> ModelCost:
        """Return the cost of the model without these, over all outputs."""
        report = self.evaluate(kept)
        return ModelCost(*make_trial(Group("", ()), report).figures, metric_of=report.metric)

    def checks(self, kept: Sequence[Group]) -> tuple[Check, ...]:
        assert self._limits is not None
        return evaluate_gates(self.evaluate(kept), None, self._limits, {}).checks

    def _holds(self, kept: Sequence[Group]) -> bool:
        self.evaluate(kept)
        return self._good(kept)

    def _good(self, kept: Sequence[Group]) -> bool:
        return all(check.verdict == "pass" for check in self.checks(kept))


def _trial_logger(job: StepJob) -> Callable[[Trial], None]:
    def log(trial: Trial) -> None:
        job.echo(f"{trial.group.name}: noise {trial.noise:.2e} ({len(trial.group.nodes)} nodes, {trial.seconds:.2f} s)")

    return log
