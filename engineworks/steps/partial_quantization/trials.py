"""Models with some quantized nodes, compared with fp32 on the evaluation samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from engineworks.engines.backends.onnxruntime import session_options
from engineworks.errors import RunError
from engineworks.host.lazy import onnx, ort
from engineworks.measure.accuracy import OutputComparison
from engineworks.measure.accuracy_report import Accuracy
from engineworks.model.calibrate.ranges import Ranges
from engineworks.model.calibrate.segments import Segment, segment_model, tensor_types
from engineworks.model.graphs import names_read
from engineworks.model.lower.quantizable import QUANTIZABLE, Activation, NodePlan, plan_quantization
from engineworks.model.lower.quantize import quantize
from engineworks.model.onnx_files import (
    EXTERNAL_ABOVE_BYTES,
    MODEL_FILE,
    graph_inputs,
    graph_outputs,
    save_model,
    weight_bytes,
)
from engineworks.model.ort import lacks_exact_kernel, ort_errors, plain
from engineworks.recipe.batch import output_axes
from engineworks.recipe.recipe import CALIBRATED
from engineworks.recipe.samples import SampleFile
from engineworks.steps.job import StepJob
from engineworks.steps.partial_quantization.groups import Group, exact_pattern, keep_patterns
from engineworks.steps.partial_quantization.ranking import Trial, make_trial
from engineworks.steps.task_metric import TaskComparison

T = TypeVar("T")
Tensors = dict[str, NDArray[Any]]


class CutSession:
    """Runs a model or a piece of one, whose inputs have types and no shapes.

    `scratch`: a folder for what no message can hold. integer_kernels: fuse Q/DQ into integer kernels, as the engine of
    a CPU target does; else, and where this processor has no exact kernel, compute the graph node by node, in fp8 too.
    Raises `RunError` if ONNX Runtime does not accept the model.
    """

    def __init__(self, model: onnx.ModelProto, scratch: Path, *, integer_kernels: bool = True) -> None:
        large = weight_bytes(model) > EXTERNAL_ABOVE_BYTES
        if large:
            save_model(model, scratch / MODEL_FILE)
        self._source = str(scratch / MODEL_FILE) if large else model.SerializeToString()
        self._integer_kernels = integer_kernels
        self._exactly("cannot load the model", self._open)
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]

    def run(self, tensors: Mapping[str, NDArray[Any]]) -> Tensors:
        """Return all outputs by name, with the model's shapes and dtypes; tensors that are no inputs are ignored.
        Raises `RunError`."""
        feeds = {name: tensors[name] for name in self._inputs}
        outputs = self._exactly("failed", lambda: self._session.run(self._outputs, feeds))
        return dict(zip(self._outputs, outputs, strict=True))

    def _open(self) -> None:
        options = session_options({})
        if not self._integer_kernels:
            # Disabling fusions of Q/DQ is not enough: in fp8, ONNX Runtime 1.31 also removes the Relu before a Q.
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = ort.InferenceSession(self._source, options, providers=["CPUExecutionProvider"])

    def _exactly(self, what: str, action: Callable[[], T]) -> T:
        """Return the action's result; as the engine's build, without integer kernels where none is exact here."""
        try:
            return action()
        except ort_errors() as error:
            if not (self._integer_kernels and lacks_exact_kernel(str(error))):
                raise RunError(f"ONNX Runtime {what}: {plain(error)}", log=str(error)) from None
        self._integer_kernels = False
        self._exactly("cannot load the model", self._open)
        return self._exactly(what, action)


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


CACHE_BYTES = 1 << 29
"""Maximum memory of a cut's tensors, all samples together; if they would take more, the cut does not move."""


class Prefix:
    """A model (fp32, its weights in memory) cut at a place that moves forward. `batches`: its inputs.

    Outputs of the nodes before the cut are kept for all samples. Groups are tried in the order of the graph: each fp32
    node runs once in all, and the tensors of one cut are in memory at a time.
    """

    def __init__(
        self, model: onnx.ModelProto, batches: Sequence[Tensors], scratch: Path, *, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._model, self._scratch, self._cache_bytes = model, scratch, cache_bytes
        self._types = tensor_types(model)
        self._uses = [tuple(names_read(node)) for node in model.graph.node]
        self._made_at = {name: at for at, node in enumerate(model.graph.node) for name in node.output if name}
        self._inputs = {spec.name for spec in graph_inputs(model)}
        self.at = 0
        self.batches = list(batches)
        self._sorted = all(self._made_at.get(n, -1) < at for at, names in enumerate(self._uses) for n in names)

    def move_to(self, position: int) -> None:
        """Cut before the node at `position`, if possible. Raises `RunError`.

        The cut does not move in a graph that is not sorted, where a tensor of unknown type would cross, or where the
        tensors would take too much memory.
        """
        if position <= self.at or not self._sorted:
            return
        crossing = self._crossing(position)
        made = tuple(name for name in crossing if self._made_at.get(name, -1) >= self.at)
        if any(name not in self._types for name in made):
            return
        moved = self._run(Segment(self.at, position, self._read_by(self.at, position), made), crossing)
        if moved is not None:
            self.at, self.batches = position, moved

    def rest(self) -> onnx.ModelProto:
        """Return the model behind the cut, fp32, with its outputs."""
        stop = len(self._uses)
        if self.at == 0:
            return self._model
        outputs = tuple(o.name for o in self._model.graph.output if self._made_at.get(o.name, -1) >= self.at)
        return segment_model(self._model, Segment(self.at, stop, self._read_by(self.at, stop), outputs), self._types)

    def _run(self, segment: Segment, crossing: Sequence[str]) -> list[Tensors] | None:
        """Return the tensors that cross at the segment's end, None if they are too many."""
        moved: list[Tensors] = []
        part = segment_model(self._model, segment, self._types)
        session = CutSession(part, self._scratch) if segment.outputs else None
        taken = 0
        for tensors in self.batches:
            made = session.run(tensors) if session else {}
            kept = {name: made[name] if name in made else tensors[name] for name in crossing}
            taken += sum(value.nbytes for value in kept.values())
            if taken > self._cache_bytes:
                return None
            moved.append(kept)
        return moved

    def _crossing(self, position: int) -> tuple[str, ...]:
        """Return tensors that nodes from `position` on read and that earlier nodes, or the caller, give."""
        read = dict.fromkeys(name for names in self._uses[position:] for name in names)
        return tuple(n for n in read if n in self._inputs or self._made_at.get(n, position) < position)

    def _read_by(self, start: int, stop: int) -> tuple[str, ...]:
        read = dict.fromkeys(name for names in self._uses[start:stop] for name in names)
        return tuple(n for n in read if n in self._inputs or self._made_at.get(n, start) < start)
