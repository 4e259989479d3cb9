"""ONNX Runtime as every room uses it: how far it optimizes a model, as a rule and after it crashed, and its exceptions
in plain words.

Some optimizations of ONNX Runtime end the process (SIGSEGV) instead of raising an error. A step whose child crashed is
run again with the next of `FORMS` (`builds.step`). An engine made in another form than the first records it in its
metadata, so that every later load, on any host, takes the level that it was tried at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from engineworks.errors import EngineworksError, ModelError
from engineworks.host.lazy import onnx, ort
from engineworks.model.export.outline import metadata_of
from engineworks.model.graphs import all_graphs, attribute
from engineworks.model.onnx_files import load_model

EXACT_ACTIVATIONS = ("session.qdq_matmulnbits_accuracy_level", "1")
"""ONNX Runtime fuses DequantizeLinear and MatMul of weights in int4 or int8 to MatMulNBits, which at its own level, 4,
rounds the activations to int8 as well. Engines compute what their precision promises: at level 1 they do, in fp32."""

INT8_ACTIVATIONS = ("session.qdq_matmulnbits_accuracy_level", "4")
"""What w4a8 promises: each row of activations is rounded to int8, by blocks of the weights' size."""

EXACT_PRODUCTS = ("session.x64quantprecision", "1")
"""Without VNNI, x86 kernels add two int8 products in int16, which saturates: errors of .6 were seen where operands are
large. With this option such processors multiply uint8 by uint8; on others it changes nothing (ONNX Runtime's
`kOrtSessionOptionsAvx2PrecisionMode`). So an int8 engine gives the same numbers on every host."""


AS_WRITTEN = ("session.disable_quant_qdq", "1")
"""Q/DQ run in floating point, as they are written. Integer kernels are for engines and what must equal them: without
VNNI, EXACT_PRODUCTS breaks some graphs (NO_EXACT_KERNEL)."""

NO_EXACT_KERNEL = ("Attempt to replace the existing tensor", "running MatMulIntegerToFloat node")
"""What ONNX Runtime 1.31 reports where `EXACT_PRODUCTS` breaks a graph on a processor without VNNI: on loading, where
two products share an int8 weight; on running, where the weight is the left operand and has a scale per channel."""


def exact_options(*, integer_kernels: bool = False, int8_activations: bool = False) -> Any:
    """New options for a session, with which a quantized model computes the same numbers on every processor.

    Every session of ONNX Runtime is opened with these. integer_kernels: fuse Q/DQ and products into integer kernels.
    int8_activations: as in w4a8.
    """
    options = ort.SessionOptions()
    activations = INT8_ACTIVATIONS if int8_activations else EXACT_ACTIVATIONS
    for entry in (activations, EXACT_PRODUCTS, *(() if integer_kernels else (AS_WRITTEN,))):
        options.add_session_config_entry(*entry)
    return options


def rounds_activations(model: onnx.ModelProto) -> bool:
    """Return whether a product of the model itself asks for activations in int8, as onnxruntime-genai's builder writes
    them. ONNX Runtime rounds them only where it prepacks weights."""
    return any(
        node.op_type == "MatMulNBits" and attribute(node, "accuracy_level", 0) == 4
        for graph in all_graphs(model.graph)
        for node in graph.node
    )


def lacks_exact_kernel(error: str) -> bool:
    """Whether ONNX Runtime's message says that it has no exact integer kernel for the graph on this processor."""
    return any(text in error for text in NO_EXACT_KERNEL)


METADATA_KEY = "engineworks.form"

LEVELS: Mapping[str, str] = {
    "all": "ORT_ENABLE_ALL", "extended": "ORT_ENABLE_EXTENDED", "basic": "ORT_ENABLE_BASIC",
    "none": "ORT_DISABLE_ALL",
}  # fmt: skip
"""Name of a level → ONNX Runtime's, the highest first."""


@dataclass(frozen=True)
class Form:
    """saved: level of the saved engine. loaded: level at which it is loaded, and at which other models run.
    without: optimizers that are off when the engine is made."""

    saved: str
    loaded: str
    without: tuple[str, ...] = ()

    def metadata(self) -> str:
        """What is written into the engine."""
        return json.dumps({"saved": self.saved, "loaded": self.loaded, "without": list(self.without)})

    def description(self) -> str:
        off = f" without {', '.join(self.without)}" if self.without else ""
        return f"built at optimization level {self.saved}{off}, loaded at level {self.loaded}"


FORMS: Sequence[Form] = (
    Form("extended", "all"),
    Form("extended", "basic", ("MatmulTransposeFusion",)),
    Form("extended", "basic"),
    Form("basic", "basic"),
    Form("none", "none"),
)
"""Tried in this order. MatmulTransposeFusion of ONNX Runtime 1.31 leaves a broken graph where a Cast lies between a
Transpose and a MatMul, as in every fp16 model on a CPU. From the second on the load runs no fusion: Triton's ONNX
Runtime backend can set the level of a load, but switch no optimizer off."""

_current: ContextVar[Form] = ContextVar("form", default=FORMS[0])


@contextmanager
def after_crashes(count: int) -> Iterator[None]:
    """Within it, models are built and loaded in the form that comes after so many crashes."""
    token = _current.set(FORMS[min(count, len(FORMS) - 1)])
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Form:
    return _current.get()


def form_of(engine: Path) -> Form:
    """The form that the engine was made in; the current one for a model without this entry."""
    try:
        written = json.loads(metadata_of(engine)[METADATA_KEY])
    except (KeyError, ModelError, OSError, ValueError):  # ONNX Runtime reports what is wrong with the file
        return current()
    return Form(str(written["saved"]), str(written["loaded"]), tuple(written["without"]))


def sign(engine: Path, form: Form) -> None:
    """Add the form to the metadata of the engine's file: fields of a protobuf message may follow in any order."""
    entry = onnx.StringStringEntryProto(key=METADATA_KEY, value=form.metadata())
    with engine.open("ab") as file:
        file.write(onnx.ModelProto(metadata_props=[entry]).SerializeToString())


def ort_level(name: str) -> Any:
    """ONNX Runtime's level of this name; no higher than the current form's."""
    order = list(LEVELS)
    return getattr(ort.GraphOptimizationLevel, LEVELS[max(name, current().loaded, key=order.index)])


NO_KERNEL = (
    re.compile(r"Could not find an implementation for (?P<op>\w+)\(\d+\) node with name '(?P<node>[^']*)'"),
    re.compile(r"(?P<why>Type '[^']*' of \w+ parameter \(.*?\)) of operator \((?P<op>\w+)\) in node \((?P<node>.*?)\)"),
    re.compile(r"(?P<op>[\w.]+:\w+)\(-?\d+\) is not a registered function/op"),
)
"""Wordings of ONNX Runtime 1.31 for an operator that it does not have, or not for these types."""

INVALID = (
    re.compile(
        r"(?P<why>Type parameter \(\w+\)) of Optype \((?P<op>\w+)\) (?P<more>bound to .*?) in node \((?P<node>.*?)\)"
    ),
    re.compile(r"Node \((?P<node>.*?)\) Op \((?P<op>\w+)\) (?P<why>.*)"),
)
"""Its wordings for a graph that is wrong in itself."""


@cache
def ort_errors() -> tuple[type[Exception], ...]:
    """All exceptions that ONNX Runtime raises: its own, which have no common base, and Python's for arguments of a
    wrong kind."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = (v for v in vars(state).values() if isinstance(v, type) and issubclass(v, Exception))
    return (*own, RuntimeError, ValueError, TypeError)


@contextmanager
def ort_errors_as(kind: type[EngineworksError], what: str) -> Iterator[None]:
    """Raise `kind` with `what` and ONNX Runtime's message for its errors."""
    try:
        yield
    except ort_errors() as error:
        raise kind(f"{what}: {error}") from error


def what_failed(error: Exception, model: Path) -> str:
    """The end of a sentence that begins with ONNX Runtime: 'has no CPU kernel for Gemm (node 'fc1')'."""
    text = str(error)
    for wording in NO_KERNEL:
        if match := wording.search(text):
            fields = match.groupdict()
            why = f": {fields['why']}" if fields.get("why") else ""
            return f"has no CPU kernel for {fields['op']}{_named(fields.get('node', ''), fields['op'], model)}{why}"
    for wording in INVALID:
        if match := wording.search(text):
            fields = match.groupdict()
            why = " ".join(w for w in (fields["why"], fields.get("more")) if w)
            return f"finds {fields['op']}{_named(fields['node'], fields['op'], model)} invalid: {why}"
    return f"cannot load it: {plain(error)}"


def plain(error: Exception) -> str:
    """The error's text on one line, without ONNX Runtime's prefix."""
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(str(error).split()))


def _named(node: str, op: str, model: Path) -> str:
    """The node by its name, or by its first output where the message or the model gives it none."""
    if node:
        return f" (node '{node}')"
    domain, _, op_type = op.rpartition(":")
    try:
        nodes = load_model(model, weights=False).graph.node
    except ModelError:
        return ""
    failing = next((n for n in nodes if n.op_type == op_type and (not domain or n.domain == domain)), None)
    if failing is None:
        return ""
    return f" (node '{failing.name}')" if failing.name else f" (node of '{failing.output[0]}')"
