"""A model whose graph finds the extremes of its tensors, for methods that read no more: no tensor leaves ONNX Runtime.

This second path pays: calibration takes 0.86 and 0.88 of ONNX Runtime's own time, 1.07 and 1.09 without it
(benchmarks/results/calibration-cpu.json). Reading the tensors took a fifth more of a ResNet-50's time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engineworks.errors import CalibrationError
from engineworks.host.lazy import ort
from engineworks.model.calibrate.activations import Activation
from engineworks.model.calibrate.heap import trim_heap
from engineworks.model.calibrate.histograms import BinCounter
from engineworks.model.calibrate.reduction_graph import (
    FROM,
    LEAST_OPSET,
    NOWHERE,
    Reduced,
    append_reductions,
    derivations,
)
from engineworks.model.calibrate.runtime import CPU_PROVIDER, check_names, check_tensors, open_session, write_part
from engineworks.model.calibrate.segments import inferred_tensors, plan_segments
from engineworks.model.calibrate.values import HostValues, ReducedValues, Same
from engineworks.model.onnx_files import graph_inputs, load_model, opset_of
from engineworks.model.runtime.ort_errors import ort_errors_as
from engineworks.tensors import TensorSpec

_TRIM_EVERY_RUNS = 32
"""How often freed memory returns to the system: its pages must be cleared again, a fifth of the next run's time."""

_FLOAT = 1  # onnx.TensorProto.FLOAT
_NO_SAMPLE = np.zeros(0, np.float32)


class ReducedModel:
    """Runs the whole model on one batch after the other; satisfies `collect.Passes`. See `open_reductions`."""

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
        """Let each calibrator take in its tensor of this batch. Raises as `SegmentedModel.run`, and what a calibrator
        raises.

        feeds: by input name, with the shapes and dtypes of the model's inputs.
        """
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
