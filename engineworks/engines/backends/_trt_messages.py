"""Rewrites errors of TensorRT's ONNX parser and builder as one message: operator, node, what to do.

Two tables hold the vendor's known messages, from TensorRT-RTX 1.7.1 with one small model per operator. Unknown messages
are quoted in full, with their node.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from engineworks.engines.backends._trt_log import WITHOUT_GPU
from engineworks.host.lazy import onnx

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
