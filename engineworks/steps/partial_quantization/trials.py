"""Models with some quantized nodes, compared with fp32 on the evaluation samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from engineworks.errors import RunError
from engineworks.host.lazy import onnx
from engineworks.measure.accuracy import OutputComparison
from engineworks.measure.accuracy_report import Accuracy
from engineworks.model.calibrate.ranges import Ranges
from engineworks.model.lower.quantizable import QUANTIZABLE, Activation, NodePlan, plan_quantization
from engineworks.model.lower.quantize import quantize
from engineworks.model.onnx_files import graph_outputs
from engineworks.recipe.batch import output_axes
from engineworks.recipe.recipe import CALIBRATED
from engineworks.recipe.samples import SampleFile
from engineworks.steps.partial_quantization.groups import Group, exact_pattern, keep_patterns
from engineworks.steps.partial_quantization.prefix import Prefix
from engineworks.steps.partial_quantization.ranking import Trial, make_trial
from engineworks.steps.partial_quantization.sessions import CutSession, Tensors
from engineworks.steps.step_job import StepJob
from engineworks.steps.task_metric import TaskComparison


class Trials:
    """Quantizes parts of `model` (fp32, every node named, weights in memory) and reports how far its outputs move.

    globs, fp32: as of `quantize`. job: has what the task metric reads. scratch: an empty folder. The samples, fp32's
    outputs for them, and the tensors of one cut are held in memory.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        ranges: Ranges,
        samples: SampleFile,
        job: StepJob,
        *,
        globs: Mapping[str, Sequence[str]],
        fp32: Sequence[str] = (),
        scratch: Path,
    ) -> None:
        self._model, self._ranges, self._globs, self._fp32 = model, ranges, globs, fp32
        self._samples, self._job, self._scratch = samples, job, scratch
        planned = plan_quantization(model, globs, (), QUANTIZABLE, fp32).nodes
        self._plans = {model.graph.node[at].name: plan for at, plan in planned.items()}
        self._at = {model.graph.node[at].name: at for at in planned}
        self._batches: list[Tensors] = list(samples.batches(job.params["batches"]))
        self._axes = output_axes(samples.specs, graph_outputs(model))
        self._reference, self.pass_seconds = self._run_reference()

    @property
    def candidates(self) -> tuple[str, ...]:
        """Nodes whose activations would be quantized, in the order of the graph: those that `keep` can exclude."""
        return tuple(name for name, plan in self._plans.items() if plan.format.name in CALIBRATED)

    def each_alone(self, groups: Sequence[Group], on_trial: Callable[[Trial], None]) -> list[Trial]:
        """Make one trial per group, in the order of the graph: the rest stays fp32. Raises `RunError`."""
        prefix = Prefix(self._model, self._batches, self._scratch)
        trials = []
        for group in sorted(groups, key=self._first):
            start = time.perf_counter()
            prefix.move_to(self._first(group))
            report = self._alone(group, prefix)
            trials.append(make_trial(group, report, time.perf_counter() - start))
            on_trial(trials[-1])
        return trials

    def without(self, kept: Sequence[Group]) -> Accuracy:
        """Report on the recipe's model without the nodes of the groups. Raises `RunError`, and `LoweringError` if
        nothing is left to quantize."""
        keep = keep_patterns(kept, self.candidates)
        lowered = quantize(self._model, self._ranges, globs=self._globs, keep=keep, fp32=self._fp32).model
        return self._compare(lowered, self._batches)

    def _first(self, group: Group) -> int:
        return min(self._at[name] for name in group.nodes)

    def _alone(self, group: Group, prefix: Prefix) -> Accuracy:
        rest, batches = prefix.rest(), prefix.batches
        by_format: dict[str, list[str]] = {}
        for name in group.nodes:
            by_format.setdefault(self._plans[name].format.name, []).append(exact_pattern(name))
        if not self._same_operands(rest, by_format, group):
            rest, batches = self._model, self._batches
        return self._compare(quantize(rest, self._ranges, globs=by_format).model, batches)

    def _same_operands(self, rest: onnx.ModelProto, globs: Mapping[str, Sequence[str]], group: Group) -> bool:
        """Return whether the nodes' operands are the same in the cut model. A weight that passes through a node before
        the cut would count as an activation."""
        if rest is self._model:
            return True
        planned = plan_quantization(rest, globs, (), QUANTIZABLE).nodes
        operands = {rest.graph.node[at].name: _operands(plan) for at, plan in planned.items()}
        return operands == {name: _operands(self._plans[name]) for name in group.nodes}

    def _compare(self, model: onnx.ModelProto, batches: Sequence[Tensors]) -> Accuracy:
        """Report as the step `compare` does. Outputs that the (cut) model does not make are those of fp32."""
        integer_kernels = bool(self._job.params["integer_kernels"])
        session = CutSession(model, self._scratch, integer_kernels=integer_kernels)
        comparisons = {name: OutputComparison(axis) for name, axis in self._axes.items()}
        task = TaskComparison(self._job, self._samples, self._axes)
        for feeds, tensors, wanted in zip(self._batches, batches, self._reference, strict=True):
            got = wanted | session.run(tensors)
            for name, comparison in comparisons.items():
                _add(comparison, name, got, wanted)
            task.add(feeds, got, wanted)
        outputs = {name: c.result() for name, c in comparisons.items()}
        return Accuracy(outputs, task.result(), self._samples.count, tuple(self._job.params["batches"]))

    def _run_reference(self) -> tuple[list[Tensors], float]:
        """Return fp32's outputs, and the seconds of one pass over the samples once the model is loaded."""
        session = CutSession(self._model, self._scratch)
        session.run(self._batches[0])
        start = time.perf_counter()
        outputs = [session.run(feeds) for feeds in self._batches]
        return outputs, time.perf_counter() - start


def _add(comparison: OutputComparison, name: str, got: Tensors, wanted: Tensors) -> None:
    try:
        comparison.add(got[name], wanted[name])
    except ValueError as error:
        raise RunError(f"output '{name}' cannot be compared with the reference: {error}") from None


def _operands(plan: NodePlan) -> list[tuple[str, int, str]]:
    return [
        ("activation", o.index, o.tensor) if isinstance(o, Activation) else ("weight", o.index, o.names[-1])
        for o in plan.operands
    ]
