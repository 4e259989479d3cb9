"""ONNX Runtime's exceptions in plain words: which operator of which node it cannot run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from engineworks.errors import EngineworksError, ModelError
from engineworks.model.onnx_files import load_model

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
    """All exceptions that ONNX Runtime raises; they have no common base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = (v for v in vars(state).values() if isinstance(v, type) and issubclass(v, Exception))
    return (*own, RuntimeError, ValueError)


@contextmanager
def ort_errors_as(kind: type[EngineworksError], what: str) -> Iterator[None]:
    """Raise `kind` with `what` and ONNX Runtime's message for its errors."""
    kinds: tuple[type[Exception], ...] = (*ort_errors(), TypeError)
    try:
        yield
    except kinds as error:
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
