"""The vendor's log: forwards every line of the build and keeps errors as the reason of a failure; and errors of
TensorRT's ONNX parser and builder as one message: operator, node, what to do.

Two tables hold the vendor's known messages, from TensorRT-RTX 1.7.1 with one small model per operator. Unknown messages
are quoted in full, with their node.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from engineworks.host.gpu import first_gpu
from engineworks.host.lazy import onnx

WITHOUT_GPU = re.compile(r"catchCudaError|cudaError 35\b")
"""TensorRT-RTX adds this to every real error on a host without a GPU: CUDA did not answer."""

NO_REASON = re.compile(r"Unexpected exception bad optional access|^ModelImporter\.cpp:\d+: (While parsing|---)")
"""Errors that give no reason."""


OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemory|cudaErrorMemoryAllocation|insufficient memory", re.IGNORECASE)
"""How the vendor reports missing memory, on the GPU or elsewhere."""


def telling(text: str) -> str:
    """Return an error's text without the vendor's source location.

    'IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check] Cannot compile … In compileGraph at
    /_src/…)' → 'Cannot compile …'.
    """
    lines = [line for line in text.splitlines() if line.strip() and not WITHOUT_GPU.search(line)] or text.splitlines()
    line = " ".join(line.strip() for line in lines)
    line = re.sub(r"^.*?Error Code \d+: (?:[\w ]+ \()?", "", line)
    line = re.sub(r"\[[\w./]+:\d+: \w+\]\s*", "", line)
    line = re.sub(r"\s*\(?In \w+ at /\S+.*$", "", line)
    return line.strip(" .()") or text.strip()


class Errors:
    """The vendor's errors, in order."""

    def __init__(self) -> None:
        self._errors: list[str] = []

    def reason(self) -> str:
        """Return the first error that gives a reason, in one line."""
        good = [e for e in self._errors if not WITHOUT_GPU.search(e) and not NO_REASON.search(e)]
        return telling((good or self._errors or ["it gave no reason"])[0])

    def out_of_memory(self) -> bool:
        """Whether one of the errors reports missing memory."""
        return any(OUT_OF_MEMORY.search(error) for error in self._errors)

    def text(self) -> str:
        """Return all errors unchanged."""
        return "\n".join(self._errors)


class RunErrors(Errors):
    """Errors of one runtime, its engines and contexts, from the vendor's error recorder.

    The vendor also gets its own native logger. A Python logger would be called for every verbose line, which made
    launches of many small kernels a third slower.
    """

    def __init__(self, trt: Any) -> None:
        super().__init__()
        outer = self

        class Recorder(trt.IErrorRecorder):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IErrorRecorder.__init__(self)

            def clear(self) -> None:
                outer.clear()

            def report_error(self, code: Any, text: str) -> bool:
                del code
                outer._errors.append(text)
                return True

            def num_errors(self) -> int:
                return len(outer._errors)

            def get_error_code(self, index: int) -> Any:
                return trt.ErrorCodeTRT.UNSPECIFIED_ERROR

            def get_error_desc(self, index: int) -> str:
                return outer._errors[index]

            def has_overflowed(self) -> bool:
                return False

        self.logger, self.recorder = native_logger(trt), Recorder()

    def clear(self) -> None:
        """Forget earlier errors."""
        self._errors.clear()


@cache
def native_logger(trt: Any) -> Any:
    """Return the vendor's own logger, one per process; it prints errors."""
    return trt.Logger(trt.Logger.ERROR)


class Logger(Errors):
    """Backs the vendor's logger of builds. The vendor keeps the first logger of a process, so builds and runs use
    different processes."""

    def __init__(self, trt: Any) -> None:
        super().__init__()
        outer = self

        class VendorLogger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                outer._take(severity.name, text)

        self._send: Callable[[str], None] | None = None
        self._filter_gpu = False
        self.vendor = VendorLogger()

    @contextmanager
    def sending(self, log: Callable[[str], None]) -> Iterator[Logger]:
        """Send log lines to `log` within the block; forgets errors of earlier builds."""
        self._send, self._errors, self._filter_gpu = log, [], first_gpu() is None
        try:
            yield self
        finally:
            self._send = None

    def _take(self, severity: str, text: str) -> None:
        if severity == "VERBOSE" or self._send is None:  # thousands of lines for a small model
            return
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self._errors.append(text)
            if self._filter_gpu and WITHOUT_GPU.search(text) and "Error Code 1: Cuda Runtime" in text:
                return
        self._send(f"{severity.lower()}: {text}")


_loggers: dict[str, Logger] = {}


def logger_of(trt: Any) -> Logger:
    """Return the logger of this vendor module in this process."""
    if trt.__name__ not in _loggers:
        _loggers[trt.__name__] = Logger(trt)
    return _loggers[trt.__name__]


_ON_CPU = "or build the model for a CPU target (backend: onnxruntime)"
_REPLACE = f"replace it in the model, {_ON_CPU}"

_MISSING = re.compile(
    r"^(Assertion failed: )?false$|[Pp]lugin (creator version \d+ )?(was )?not found|Op type \w+ is not supported"
)
"""How the parser reports an operator that it does not have."""

_PARSER: Sequence[tuple[re.Pattern[str], str, str]] = (
    (
        re.compile(r"mode than 1 outputs|nodes with one output"),
        "is supported with its first output only",
        f"leave the others out of the model, {_ON_CPU}",
    ),
    (
        re.compile(r"Non-zero zero point"),
        "has a zero point that is not 0",
        f"train with symmetric int8 (qscheme=torch.per_tensor_symmetric, dtype=qint8), {_ON_CPU}",
    ),
    (
        re.compile(r"\[Select\]: ISelectLayer must have .*of same types"),
        "is supported in fp32 only, in this form",
        "use fp32, or keep the node in fp32 by a mixture (mixtures: {mixed: {default: fp16, fp32: ['op:OPERATOR']}})",
    ),
    (
        re.compile(r"must have same input types.*?is of type (\w+) and .*?is of type (\w+)"),
        "must have same input types, and has {0} and {1}",
        "cast one of its inputs in the model",
    ),
    (
        re.compile(r"unsupported input type of (\w+)"),
        "does not take inputs of type {0}",
        f"cast them in the model, {_ON_CPU}",
    ),
    (
        re.compile(r"nbDims == 2 \|\| .*nbDims == 3"),
        "has more than three spatial dimensions",
        _REPLACE,
    ),
)  # fmt: skip
"""(the parser's message, what is wrong with the node, what to do)."""

_NO_KERNEL = re.compile(r"(?:^|\s)(\S+) has no runners|any implementation for (?:node )?(\S+?)[.\s]")


@dataclass(frozen=True)
class TrtMessage:
    """A message. known: whether its reason is known, so that building again changes nothing."""

    text: str
    hint: str
    known: bool


def parser_message(errors: Sequence[Any], graph: onnx.GraphProto | None, reason: str) -> TrtMessage:
    """Return the message for a parser's errors. graph: the model's. reason: the log's, used where the parser names
    nothing."""
    missing: dict[str, list[str]] = {}
    fields: dict[str, str] = {}
    known = True
    for error in errors:
        operator, name, text = error.node_operator(), error.node_name(), error.desc().strip()
        if operator and _MISSING.search(text):
            nodes = missing.setdefault(operator, [])
            nodes.extend([name] if name not in nodes else [])
        elif not operator and "convertDtype" in text:
            fields |= dict.fromkeys(_strange_types(graph), f"cast it in the model, {_ON_CPU}")
        else:
            what, hint = _of_node(operator, name, text)
            known = known and bool(hint)
            fields[what] = hint
    lacking = [_missing(operator, nodes) for operator, nodes in missing.items()]
    parts = ([f"it does not have {', '.join(lacking)}"] if lacking else []) + list(fields)
    hints = dict.fromkeys(([_REPLACE] if lacking else []) + [hint for hint in fields.values() if hint])
    if not parts:
        return TrtMessage(reason, "the whole of what it said is in the build's log", known=False)
    return TrtMessage("; ".join(parts), "; ".join(hints) or "the whole of what it said is in the build's log", known)


def _missing(operator: str, nodes: Sequence[str]) -> str:
    many = f", {len(nodes)} nodes" if len(nodes) > 1 else ""
    return f"{operator} (node '{nodes[0]}'{many})"


def _of_node(operator: str, name: str, text: str) -> tuple[str, str]:
    """Return what is wrong with the node, and what to do ('' for unknown messages)."""
    where = f"{operator} (node '{name}')" if operator else "the model"
    flat = unwrapped(text.removeprefix(f"Invalid Node - {name}\n"))
    for pattern, what, hint in _PARSER:
        if match := pattern.search(flat):
            return f"{where} {what.format(*(g.lower() for g in match.groups()))}", hint.replace("OPERATOR", operator)
    assertion = re.search(r'&& ((?:"[^"]*"\s*)+)$|^Assertion failed: .*?: (?=[A-Z])(.*)$', flat)
    if assertion:
        text = assertion[2] or "".join(re.findall(r'"([^"]*)"', assertion[1]))
        return f"{where}: {text.strip(' .')}", _REPLACE if operator else ""
    return f"{where}: {flat}", ""


def _strange_types(graph: onnx.GraphProto | None) -> Iterator[str]:
    """Yield inputs and constants of a type that TensorRT does not have: the parser does not name them."""
    types = onnx.TensorProto.DataType
    plain = {"FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT64", "INT32", "INT8", "UINT8", "BOOL", "INT4"}
    if graph is None:
        return
    for value in graph.input:
        kind = types.Name(value.type.tensor_type.elem_type)
        if kind not in plain:
            yield f"input '{value.name}' is of type {kind.lower()}"
    for tensor in graph.initializer:
        kind = types.Name(tensor.data_type)
        if kind not in plain and not kind.startswith("FLOAT"):
            yield f"constant '{tensor.name}' is of type {kind.lower()}"


def builder_message(reason: str, graph: onnx.GraphProto | None) -> TrtMessage:
    """Return the message for the builder's reason (`Errors.reason`)."""
    nodes = {node.name: node.op_type for node in (graph.node if graph is not None else ()) if node.name}
    match = _NO_KERNEL.search(reason)
    if match:
        name = (match[1] or match[2]).strip(".'")
        name = name if name in nodes else re.sub(r"_\d+$", "", name)  # the parser numbers its layers
        where = f"{nodes[name]} (node '{name}')" if name in nodes else f"'{name}'"
        return TrtMessage(f"it has no kernel for {where}", _REPLACE, known=True)
    if "Attention operation was not supported by a dedicated kernel" in reason:
        named = [f"Attention (node '{name}')" for name, operator in nodes.items() if operator == "Attention"]
        text = f"it has no kernel for {', '.join(named[:3]) or 'Attention'} in this type and head size"
        return TrtMessage(text, "write Attention as MatMul and Softmax, or use fp16 on this target", known=True)
    named = [name for name in nodes if re.search(rf"(?<![\w/.]){re.escape(name)}(?![\w/.])", reason)]
    where = f" ({nodes[max(named, key=len)]}, node '{max(named, key=len)}')" if named else ""
    return TrtMessage(reason + where, "the whole of what it said is in the build's log", known=False)


def unwrapped(text: str) -> str:
    """Return the full text in one line, without the vendor's source locations and without CUDA's errors on hosts
    without a GPU."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not WITHOUT_GPU.search(line)]
    flat = " ".join(lines) or " ".join(text.split())
    flat = re.sub(r"^\w+::\w+: Error Code \d+: ", "", flat)
    return re.sub(r"\s*In \w+ at /\S+?:\d+\)?", "", flat).strip(" .")
