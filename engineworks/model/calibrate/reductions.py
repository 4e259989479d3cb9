"""A model whose graph finds the extremes of its tensors, for methods that read no more: no tensor leaves ONNX Runtime.

This second path pays: calibration takes 0.86 and 0.88 of ONNX Runtime's own time, 1.07 and 1.09 without it
(benchmarks/results/calibration-cpu.json). Reading the tensors took a fifth more of a ResNet-50's time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engineworks.errors import CalibrationError
from engineworks.host.lazy import onnx, ort
from engineworks.host.memory import trim_heap
from engineworks.model.calibrate.activations import Activation
from engineworks.model.calibrate.histograms import BinCounter
from engineworks.model.calibrate.runtime import CPU_PROVIDER, check_names, check_tensors, open_session, write_part
from engineworks.model.calibrate.segments import inferred_tensors, plan_segments
from engineworks.model.calibrate.values import LARGE, SAMPLED_EVERY, HostValues, ReducedValues, Same
from engineworks.model.onnx_files import graph_inputs, load_model, opset_of
from engineworks.model.ort import ort_errors_as
from engineworks.tensors import TensorSpec

LEAST_OPSET = 10
"""First opset in which Slice has its bounds as inputs."""

_ROW_AXES = 2
"""Number of leading axes that form a tensor's rows: channels of images, positions of sequences."""

_PREFIX = "engineworks:"

FROM = f"{_PREFIX}from"
"""Input: where samples begin, i64[1]; beyond every tensor for a batch without samples."""

NOWHERE = np.array([np.iinfo(np.int64).max], np.int64)

DERIVED: Mapping[str, Same] = {
    "Relu": lambda values: np.maximum(values, 0),
    **dict.fromkeys(("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"), lambda values: values),
}
"""Operators that keep the order of values, so that their output's extremes and samples follow from their input's."""


@dataclass(frozen=True)
class Reduced:
    """A tensor that the graph reduces: the names of its results. sample: None if none is taken."""

    size: str
    least: str
    most: str
    total: str
    sample: str | None


def derivations(model: onnx.ModelProto, made: Sequence[str]) -> dict[str, tuple[str, Same]]:
    """Return the tensors that follow from others of them: their source and how."""
    named, derived = frozenset(made), dict[str, tuple[str, Same]]()
    for node in model.graph.node:
        same = DERIVED.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if same and node.output[0] in named and node.input[0] in named:
            derived[node.output[0]] = node.input[0], same
    return derived


def append_reductions(model: onnx.ModelProto, tensors: Mapping[str, int], *, sample: bool) -> dict[str, Reduced]:
    """Append nodes for the size, extremes, sum and sample of each tensor; these become the graph's outputs.

    tensors: their ranks by name, 0 if unknown.
    """
    graph, opset = model.graph, opset_of(model)
    del graph.output[:]
    if sample:
        constants = {"to": NOWHERE, "axis": [0], "flat": [-1], "one": [1], "every": [SAMPLED_EVERY]}
        for name, value in constants.items():
            graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.int64), _PREFIX + name))
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(LARGE, np.int64), f"{_PREFIX}large"))
        graph.input.append(onnx.helper.make_tensor_value_info(FROM, onnx.TensorProto.INT64, [1]))
    reduced = {}
    for at, (tensor, rank) in enumerate(tensors.items()):
        names = Reduced(*(f"{_PREFIX}{what}:{at}" for what in ("size", "least", "most", "total", "sample")))
        reduced[tensor] = names if sample else Reduced(names.size, names.least, names.most, names.total, None)
        graph.node.extend(_reductions(tensor, names, rank, opset))
        if names.sample and sample:
            graph.node.extend(_sampling(tensor, names.size, names.sample))
    outputs = (name for names in reduced.values() for name in vars(names).values() if name)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return reduced


def _reductions(tensor: str, names: Reduced, rank: int, opset: int) -> list[onnx.NodeProto]:
    """Make nodes for the size, the extremes, and the sum, which shows NaN: ONNX Runtime's own extremes skip it.

    A tensor of images or sequences is reduced by rows first, because ONNX Runtime uses several threads for rows and one
    for a whole tensor.
    """
    make = onnx.helper.make_node
    nodes = [make("Size", [tensor], [names.size])]
    rows = f"{names.size}:rows"
    if rank > _ROW_AXES:
        nodes.append(make("Flatten", [tensor], [rows], axis=_ROW_AXES))
    for kind, name in (("ReduceMin", names.least), ("ReduceMax", names.most), ("ReduceSum", names.total)):
        reduced_rows = tensor
        if rank > _ROW_AXES:
            reduced_rows = f"{name}:rows"
            nodes.extend(_of_rows(kind, rows, reduced_rows, opset))
        nodes.append(make(kind, [reduced_rows], [name], keepdims=0))
    return nodes


def _of_rows(kind: str, rows: str, result: str, opset: int) -> list[onnx.NodeProto]:
    """Reduce rows; the axis is an attribute in older opsets and an input since."""
    make = onnx.helper.make_node
    if opset < (13 if kind == "ReduceSum" else 18):
        return [make(kind, [rows], [result], axes=[1], keepdims=0)]
    axis = onnx.numpy_helper.from_array(np.array([1], np.int64))
    return [
        make("Constant", [], [f"{result}:axis"], value=axis),
        make(kind, [rows, f"{result}:axis"], [result], keepdims=0),
    ]


def _sampling(tensor: str, size: str, sample: str) -> list[onnx.NodeProto]:
    """Sample one value in `SAMPLED_EVERY` of a large tensor, all of a small one, none if `FROM` lies beyond the
    tensor."""
    make = onnx.helper.make_node
    large, every, flat = (f"{sample}:{what}" for what in ("large", "every", "flat"))
    to, axis = f"{_PREFIX}to", f"{_PREFIX}axis"
    return [
        make("Greater", [size, f"{_PREFIX}large"], [large]),
        make("Where", [large, f"{_PREFIX}every", f"{_PREFIX}one"], [every]),
        make("Reshape", [tensor, f"{_PREFIX}flat"], [flat]),
        make("Slice", [flat, FROM, to, axis, every], [sample]),
    ]


_TRIM_EVERY_RUNS = 32
"""How often freed memory returns to the system: its pages must be cleared again, a fifth of the next run's time."""

_FLOAT = 1  # onnx.TensorProto.FLOAT
_NO_SAMPLE = np.zeros(0, np.float32)


class ReducedModel:
    """Runs the whole model on one batch after the other, as `collect.Tally` does. See `open_reductions`."""

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        session: ort.InferenceSession,
        reduced: Mapping[str, Reduced],
        derived: Mapping[str, tuple[str, Same]],
        bins: int,
    ) -> None:
        """reduced, derived: by wanted tensor; the source of a derived tensor is wanted too."""
        self.inputs = tuple(inputs)
        self.provider: str = session.get_providers()[0]
        self._session, self._reduced, self._derived = session, reduced, derived
        self._counter = BinCounter(bins)
        self._outputs = [value.name for value in session.get_outputs()]
        self._samples = any(names.sample for names in reduced.values())
        self._runs = 0

    def run(self, feeds: Mapping[str, NDArray[Any]], activations: Mapping[str, Activation], *, look: bool) -> None:
        """As `collect.Tally.run`."""
        check_names(self.inputs, feeds)
        reduced = self._reduce(self._run(feeds, look=look))
        for name, activation in activations.items():
            values = reduced.get(name) or HostValues(feeds[name], self._counter)
            activation.add(values, values.sampled_counts if look and self._samples else None)
        self._runs += 1
        if self._runs % _TRIM_EVERY_RUNS == 1:  # also after the first run, because loading leaves holes
            trim_heap()

    def finish(self) -> None:
        """Do nothing: everything is counted when a run returns."""

    close = finish

    def _run(self, feeds: Mapping[str, NDArray[Any]], *, look: bool) -> dict[str, NDArray[Any]]:
        given = dict(feeds)
        if self._samples:
            given[FROM] = np.zeros(1, np.int64) if look else NOWHERE
        with ort_errors_as(CalibrationError, "ONNX Runtime does not run the model on a calibration sample"):
            return dict(zip(self._outputs, self._session.run(self._outputs, given), strict=True))

    def _reduce(self, outputs: Mapping[str, NDArray[Any]]) -> dict[str, ReducedValues]:
        values = {name: self._of(names, outputs) for name, names in self._reduced.items()}

        def derive(name: str) -> ReducedValues:
            if name not in values:
                source, same = self._derived[name]
                values[name] = derive(source).through(same)
            return values[name]

        return values | {name: derive(name) for name in self._derived}

    def _of(self, names: Reduced, outputs: Mapping[str, NDArray[Any]]) -> ReducedValues:
        sample = outputs[names.sample] if names.sample else _NO_SAMPLE
        size, least, most, total = (outputs[name] for name in (names.size, names.least, names.most, names.total))
        return ReducedValues(int(size), least, most, total, sample, self._counter)


def open_reductions(path: Path, wanted: Sequence[str], threads: int, bins: int, *, sample: bool) -> ReducedModel | None:
    """Open the ONNX file as a model that reduces the tensors `wanted` on the CPU; None if it cannot.

    It cannot for a tensor that is no float32 or of unknown type, an opset below 10, or only inputs. sample: whether
    values for a histogram are wanted too. Raises `CalibrationError` for a tensor that the model lacks and for a model
    that ONNX Runtime does not load.
    """
    model = load_model(path, weights=False)
    inputs = graph_inputs(model)
    given = {spec.name for spec in inputs}
    check_tensors(model, wanted, given)
    made = [name for name in wanted if name not in given]
    tensors = inferred_tensors(model)
    types = {name: tensor.elem_type for name, tensor in tensors.items()}
    if not made or opset_of(model) < LEAST_OPSET or any(types.get(name) != _FLOAT for name in wanted):
        return None
    derived = derivations(model, made)
    (segment,) = plan_segments(model, made, types, tensors_per_segment=len(made) + 1)
    del model.graph.node[segment.stop :], model.graph.value_info[:]
    ranks = {name: len(tensors[name].shape.dim) for name in made if name not in derived}
    reduced = append_reductions(model, ranks, sample=sample)
    with tempfile.TemporaryDirectory(prefix="calibration-") as folder:
        written = write_part(model, Path(folder) / "reduced.onnx", external=True)
        del model
        session = open_session(written, path, threads, [CPU_PROVIDER], alone=True)
    return ReducedModel(inputs, session, reduced, derived, bins)
