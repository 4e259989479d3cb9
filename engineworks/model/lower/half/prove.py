"""Numerical verification, on the CPU, that a half-precision model computes what the fp32 model does.

ONNX Runtime's CPU provider cannot evaluate the half model itself. It computes most fp16 operators in fp32 and drops the
casts between them (300 * 300 in "fp16" is 90000 there, not infinity), and it has hardly any kernel for bf16. So the
model is emulated: an fp32 graph in which every tensor that is half in the model goes through a Cast to the half type
and back, weights included.

Each node then reads and gives exactly the values that half precision holds. Sums inside a node are fp32, as on the
tensor cores of the targeted builders. This works for fp16 and bf16. The ONNX checker with strict type inference and,
for fp16, a run in ONNX Runtime also show that the model is well formed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engineworks.errors import LoweringError
from engineworks.host.lazy import onnx
from engineworks.model.graphs import subgraphs
from engineworks.model.lower.half.graph import FLOAT, HalfFormat, TypedGraph, infer_types, shown_model, split_model
from engineworks.model.lower.half.patterns import LAYOUT
from engineworks.model.lower.half.rewrite import rename_reads
from engineworks.model.lower.half.run import Arrays, Bench, run
from engineworks.model.lower.report import OutputProof
from engineworks.model.tensor_storage import tensor_values

_EQUAL_DB = 200.0
_EXACT = LAYOUT | {
    "Abs", "Clip", "GlobalMaxPool", "Max", "MaxPool", "Min", "Neg", "Pad", "ReduceMax", "ReduceMin", "Relu",
    "ScatterElements", "ScatterND", "Sign", "TopK", "Trilu", "Where",
}  # fmt: skip
"""Operators that make only values that their inputs hold, so that no rounding is needed."""


def check_well_formed(model: onnx.ModelProto, source: TypedGraph) -> None:
    """Run ONNX's checker and strict type inference, without the large weights.

    Skips the inference if it fails on the fp32 `source` too. Raises `LoweringError`.
    """
    shown = shown_model(*split_model(model))
    problem = _problem(shown, strict=True)
    if problem and _problem(shown_model(source.shell, source.weights), strict=True):
        problem = _problem(shown, strict=False)
    if problem:
        raise LoweringError(
            f"the half-precision model is not valid ONNX: {problem}",
            hint="this is a defect of the converter: please report the model",
        )


def _problem(shown: onnx.ModelProto, *, strict: bool) -> str | None:
    try:
        onnx.checker.check_model(shown, full_check=strict)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return str(error).strip().splitlines()[0]
    return None


def run_once(bench: Bench, model: onnx.ModelProto, sample: Arrays) -> None:
    """Run the fp16 model once in ONNX Runtime, optimized as a served CPU engine.

    A crash appears here (`builds.step` tries again with fewer optimizations). sample: arrays by input name, with the
    shapes and dtypes of the model's inputs. Raises `LoweringError` if few optimizations fail too: a fusion's fault is
    not the model's.
    """
    shell, weights = split_model(model)
    names = [value.name for value in shell.graph.output]
    with bench.borrow(weights) as stored:
        try:
            run(bench.open(shell, stored, optimize="all"), sample, names)
        except LoweringError:
            run(bench.open(shell, stored, optimize="basic"), sample, names)


def prove(
    bench: Bench, model: onnx.ModelProto, half: HalfFormat, samples: Sequence[Arrays], references: Sequence[Arrays]
) -> tuple[OutputProof, ...]:
    """Emulate the half model on the samples and compare each output with the fp32 model's.

    samples: arrays by input name; references: by output name, with the fp32 model's shapes and dtypes. Raises
    `LoweringError` if the emulation does not run.
    """
    shell, weights = split_model(model)
    names = [value.name for value in shell.graph.output]
    with bench.borrow(weights) as stored:
        session = bench.open(emulated(shell, weights, half), stored)
        return compare_outputs(references, (dict(zip(names, run(session, s, names), strict=True)) for s in samples))


def compare_outputs(references: Sequence[Arrays], outputs: Iterable[Arrays]) -> tuple[OutputProof, ...]:
    """Compare each sample's outputs with its references: arrays by output name, of any shape and dtype.

    Floating ones are compared in float64.
    """
    tallies = {name: _Tally(name) for name in references[0]}
    for reference, actual in zip(references, outputs, strict=True):
        for name, tally in tallies.items():
            tally.add(reference[name], actual[name])
    return tuple(tally.proof() for tally in tallies.values())


def emulated(shell: onnx.ModelProto, weights: Mapping[str, onnx.TensorProto], half: HalfFormat) -> onnx.ModelProto:
    """Return the half model as an fp32 graph that rounds: same nodes, same weights (still half, cast before use)."""
    types = infer_types(shell, weights)
    return _Emulator(shell, {name for name, kind in types.items() if kind == half.elem_type}, weights, half).shell


class _Emulator:
    def __init__(
        self, shell: onnx.ModelProto, halves: set[str], weights: Mapping[str, onnx.TensorProto], half: HalfFormat
    ) -> None:

        self._halves = halves
        self._half = half
        self._outer = {name for name in halves if name in weights or name in {v.name for v in shell.graph.input}}
        self._nodes: list[onnx.NodeProto] = []
        self._made: set[str] = set()
        self.shell = deepcopy(shell)
        for node in self.shell.graph.node:
            self._emit(node)
        for value in self.shell.graph.output:
            if value.name in halves and value.name not in self._outer:
                value.type.tensor_type.elem_type = FLOAT
        del self.shell.graph.node[:], self.shell.graph.value_info[:]
        self.shell.graph.node.extend(self._nodes)

    def _emit(self, node: onnx.NodeProto) -> None:
        holds_graph = any(True for _ in subgraphs(node))
        makes_half = [position for position, name in enumerate(node.output) if name in self._halves]
        for position, name in enumerate(node.input):
            if name in self._outer and not holds_graph:
                node.input[position] = self._cast_once(name, f"{name}:fp32", FLOAT)
            elif name in self._halves and holds_graph:
                node.input[position] = name if name in self._outer else self._as_half(name)
        for inner in subgraphs(node):
            for name in sorted(self._halves - self._outer):
                rename_reads(inner, name, self._as_half)
        if not holds_graph and node.op_type != "Cast":
            _retype(node, self._half)
        self._nodes.append(node)
        rounds = holds_graph or node.op_type not in _EXACT
        for position in makes_half if rounds else ():
            self._round(node, position, made_half=holds_graph or node.op_type == "Cast")

    def _round(self, node: onnx.NodeProto, position: int, *, made_half: bool) -> None:
        """Pass the output through the half type; what the node itself makes in that type only needs the way back."""
        name = node.output[position]
        node.output[position] = f"{name}:raw"
        source = f"{name}:raw"
        if not made_half:
            self._nodes.append(onnx.helper.make_node("Cast", [source], [f"{name}:half"], to=self._half.elem_type))
            source = f"{name}:half"
        self._nodes.append(onnx.helper.make_node("Cast", [source], [name], to=FLOAT))

    def _as_half(self, name: str) -> str:
        return self._cast_once(name, f"{name}:16", self._half.elem_type)

    def _cast_once(self, name: str, made: str, elem_type: int) -> str:
        if made not in self._made:
            self._made.add(made)
            self._nodes.append(onnx.helper.make_node("Cast", [name], [made], to=elem_type))
        return made


def _retype(node: onnx.NodeProto, half: HalfFormat) -> None:
    """Change attributes that make a node's output half to fp32."""
    for attribute in node.attribute:
        if attribute.name in ("dtype", "output_dtype") and attribute.i == half.elem_type:
            attribute.i = FLOAT
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == half.elem_type:
            values = tensor_values(attribute.t).astype(np.float32)
            attribute.t.CopyFrom(onnx.numpy_helper.from_array(values, attribute.t.name))


class _Tally:
    """Sums over samples for an output's metrics, in float64."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._floating = True
        self._power = self._error = self._largest = 0.0
        self._cosine = 1.0
        self._equal = self._elements = 0
        self._finite = True
        self._samples = self._compared = 0

    def add(self, reference: NDArray[Any], value: NDArray[Any]) -> None:
        self._samples += 1
        if reference.shape != value.shape:
            return
        self._compared += 1
        self._floating = reference.dtype.kind == "f"
        if not self._floating:
            self._equal += int(np.count_nonzero(reference == value))
            self._elements += reference.size
            return
        expected, got = reference.astype(np.float64).ravel(), value.astype(np.float64).ravel()
        usable = np.isfinite(expected)
        self._elements += int(np.count_nonzero(~usable))
        self._equal += int(np.count_nonzero(_same(expected[~usable], got[~usable])))
        expected, got = expected[usable], got[usable]
        if not np.all(np.isfinite(got)):
            self._finite = False
            return
        error = got - expected
        self._power += float(expected @ expected)
        self._error += float(error @ error)
        self._largest = max(self._largest, float(np.abs(error).max(initial=0.0)))
        self._cosine = min(self._cosine, cosine(expected, got))

    def proof(self) -> OutputProof:
        usable = self._finite and self._compared > 0
        return OutputProof(
            name=self._name,
            floating=self._floating,
            cosine=self._cosine if usable else 0.0,
            sqnr_db=_decibel(self._power, self._error) if usable else -_EQUAL_DB,
            max_abs_error=self._largest,
            agreement=self._equal / self._elements if self._elements else 1.0,
            finite=self._finite,
            samples=self._samples,
            compared=self._compared,
        )


def cosine(expected: NDArray[np.float64], got: NDArray[np.float64]) -> float:
    """Return the cosine of the angle between two vectors, float64[n]; 1 if both are zero or empty, 0 if only one is."""
    norms = float(np.linalg.norm(expected)) * float(np.linalg.norm(got))
    if norms == 0:
        return float(not expected.any() and not got.any())
    return min(1.0, float(expected @ got) / norms)


def _decibel(power: float, error: float) -> float:
    if error == 0:
        return _EQUAL_DB
    return max(-_EQUAL_DB, min(_EQUAL_DB, 10 * math.log10(power / error))) if power else -_EQUAL_DB


def _same(expected: NDArray[Any], got: NDArray[Any]) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = (expected == got) | (np.isnan(expected) & np.isnan(got))
    return same


def reference_outputs(bench: Bench, model: onnx.ModelProto, samples: Iterable[Arrays]) -> tuple[Arrays, ...]:
    """Return outputs of the fp32 model by name for each sample, with the graph as written.

    Fused int8 kernels of the CPU saturate, so none are used. samples: arrays by input name, with the shapes and dtypes
    of the model's inputs.
    """
    shell, weights = split_model(model)
    stored = bench.store(weights)
    session = bench.open(shell, stored)
    names = [value.name for value in shell.graph.output]
    return tuple(dict(zip(names, run(session, sample, names), strict=True)) for sample in samples)
