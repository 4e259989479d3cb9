"""Verifies that two ONNX files compute the same, by running both in ONNX Runtime on the same feeds.

Both run as written: ONNX Runtime's optimizer is off, because it could fold and fuse one and not the other. Weights next
to the file are mapped into memory, not copied, so two models of several GB can be open at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engineworks.errors import FoldError, ModelError, SamplesError
from engineworks.host.lazy import Array, Arrays, NDArray, ort
from engineworks.model.ort import exact_options, ort_errors
from engineworks.tensors import TensorSpec

TOLERANCE = {"float64": 1e-5, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
"""Maximum difference of each floating type, relative to the magnitude that `_magnitudes` finds. It allows another order
of summation and no more: about 100, 2 and 2 units in the last place of float32, float16 and bfloat16."""

_THREADS = min(2, os.cpu_count() or 1)
_FATAL = 4  # ONNX Runtime's severity: the error itself is raised, its log line is only noise


def open_session(path: Path, *, optimized: bool = False) -> ort.InferenceSession:
    """Load the model on the CPU, unoptimized unless requested. Raises `ModelError` with ONNX Runtime's reason."""
    options = exact_options()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_BASIC if optimized else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = _THREADS
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    options.enable_cpu_mem_arena = False  # the arena keeps up to twice what the largest run needs
    # Prepacking copies every weight; without it external weights stay mapped from their file.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other steps run at the same time
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except ort_errors() as error:
        reason = runtime_reason(error)
        missing = re.search(r"implementation for (\w+)\((\d+)\) node with name '(.*)'", reason)
        if missing:
            operator, version, name = missing.groups()
            what = f"unsupported operator '{operator}' at node '{name}'"
            raise ModelError(
                f"{path}: {what}: ONNX Runtime has none of version {version} for its dtypes",
                hint="export the model with a newer opset",
            ) from None
        raise ModelError(f"{path}: ONNX Runtime cannot load the model: {reason}") from None


def first_outputs(session: ort.InferenceSession, feeds: Sequence[Arrays], where: str) -> Arrays:
    """Return all outputs on the first feed, by name. Raises `SamplesError` if there is none or it does not run.

    feeds: by input name, with the shapes and dtypes of the model's inputs.
    """
    if not feeds:
        raise SamplesError(f"{where}: there is no evaluation data to prove a rewritten model with")
    try:
        return _run(session, feeds[0])
    except ort_errors() as error:
        raise SamplesError(
            f"{where}: the model does not run on the first sample ({_shown(feeds[0])}): {runtime_reason(error)}",
            hint="see that the evaluation data has the model's names, dtypes and shapes",
        ) from None


def check_same_twice(session: ort.InferenceSession, feed: Arrays, where: str) -> None:
    """Raise `ModelError` if the model gives two results for one sample, because then no rewritten model can equal it.

    feed: by input name, with the shapes and dtypes of the model's inputs.
    """
    first, second = _run(session, feed), _run(session, feed)
    for name, value in first.items():
        if difference(value, second[name])[1]:
            raise ModelError(
                f"{where}: the model gives another output '{name}' each time it runs on the same sample",
                hint="export it in evaluation mode; is a Dropout in training mode, or a random number, in it?",
            )


@dataclass(frozen=True)
class Expected:
    """A feed and the original's outputs, by name. where: what it is, for messages."""

    feed: Arrays
    outputs: Arrays
    where: str


def expected_outputs(
    original: ort.InferenceSession, feeds: Sequence[Arrays], first: Arrays, inputs: Sequence[TensorSpec]
) -> list[Expected]:
    """Return the original's outputs on all feeds, and on the first one at other lengths of each dynamic dimension where
    it runs. So the original need not be open while rewritten models are.

    feeds: by input name, with the shapes and dtypes of the model's inputs. first: `first_outputs` of the original.
    Raises `SamplesError` for feeds that it cannot run.
    """
    found = [Expected(feeds[0], first, f"on sample 0 ({_shown(feeds[0])})")]
    for index, feed in enumerate(feeds[1:], 1):
        try:
            found.append(Expected(feed, _run(original, feed), f"on sample {index} ({_shown(feed)})"))
        except ort_errors() as error:
            message = f"the model does not run on sample {index} ({_shown(feed)}): {runtime_reason(error)}"
            raise SamplesError(message) from None
    for dim, feed in resized(feeds[0], inputs):
        try:
            found.append(Expected(feed, _run(original, feed), f"at another '{dim}' ({_shown(feed)})"))
        except ort_errors():
            continue  # a length that the model does not take, e.g. no multiple of 32
    return found


def compare(candidate: ort.InferenceSession, expected: Sequence[Expected]) -> dict[str, float]:
    """Return the largest absolute difference of every output. Raises `FoldError` with the output, difference and sample
    of the first difference above `TOLERANCE`."""
    worst = dict.fromkeys(expected[0].outputs, 0.0)
    for run in expected:
        try:
            actual = _run(candidate, run.feed)
        except ort_errors() as error:
            raise FoldError(f"the rewritten model does not run {run.where}: {runtime_reason(error)}") from None
        for name, value in run.outputs.items():
            apart, problem = difference(value, actual[name])
            worst[name] = max(worst[name], apart)
            if problem:
                raise FoldError(f"output '{name}' {problem}, {run.where}")
    return worst


def resized(feed: Arrays, inputs: Sequence[TensorSpec]) -> Iterator[tuple[str, Arrays]]:
    """Yield the feed once for every dynamic dimension, half as long there, or 2 instead of 1; dtypes stay.

    Data may have only one length, and a graph with that length folded in would pass.
    """
    for dim in dict.fromkeys(d for spec in inputs for d in spec.dynamic_dims):
        other = dict(feed)
        for spec in inputs:
            for axis, name in enumerate(spec.shape):
                if name == dim:
                    value = other[spec.name]
                    length = value.shape[axis] // 2 if value.shape[axis] != 1 else 2
                    other[spec.name] = np.take(value, np.arange(length) % value.shape[axis], axis=axis)
        if any(other[name].shape != feed[name].shape for name in feed):
            yield dim, other


def difference(expected: Array, actual: Array) -> tuple[float, str]:
    """Return the largest absolute difference, and why it is too large ('' if it is not).

    expected, actual: of any shape and dtype. NaN and infinities must be at the same places, integers and booleans
    equal.
    """
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return float("inf"), f"is {_array(actual)} instead of {_array(expected)}"
    if expected.dtype.name not in TOLERANCE:
        wrong = int(np.count_nonzero(expected != actual))
        if not wrong:
            return 0.0, ""
        most = float(np.abs(expected.astype(np.float64) - actual.astype(np.float64)).max())
        return most, f"differs in {wrong} of {expected.size} values, by up to {most:.6g}"
    before, after = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(before)
    strange = int(np.count_nonzero(~finite & ~((before == after) | (np.isnan(before) & np.isnan(after)))))
    strange += int(np.count_nonzero(finite & ~np.isfinite(after)))
    if strange:
        return float("inf"), f"has NaN or infinity in other places: {strange} of {expected.size} values"
    apart = np.abs(np.subtract(before, after, where=finite, out=np.zeros_like(before)))
    if not apart.any():
        return 0.0, ""
    allowed = TOLERANCE[expected.dtype.name] * _magnitudes(np.abs(before[finite]), np.abs(before))
    worst = np.unravel_index(int(np.argmax(np.where(finite, apart - allowed, -np.inf))), apart.shape)
    figure = f"differs by {apart[worst]:.6g} where it is {before[worst]:.6g}, allowed are {allowed[worst]:.6g}"
    return float(apart.max()), "" if apart[worst] <= allowed[worst] else figure


def runtime_reason(error: object) -> str:
    """Return ONNX Runtime's message, or an exception with it, without codes, paths and C++ signatures."""
    text = re.split(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", str(error).strip())[-1]
    text = re.sub(r"Load model from .*? failed: ?", "", text)
    text = re.sub(r"/\S+\.(?:cc|h):\d+ .*?\) (?=[A-Z'\[])", "", text)
    return " ".join(text.split())


def _magnitudes(finite: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the magnitude that each value's difference is relative to: its own, or the output's where that is larger.

    finite, values, result: float64 in any shape. The output's magnitude is its largest value, but at most a hundred
    times its tenth percentile (without zeros). A mask of -1e9 in some places must not excuse errors in the others.
    """
    nonzero = finite[finite > 0]
    scale = min(nonzero.max(), 100 * np.quantile(nonzero, 0.1)) if nonzero.size else 0.0
    return np.maximum(values, scale)


def _run(session: ort.InferenceSession, feed: Arrays) -> dict[str, Array]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


def _shown(feed: Arrays) -> str:
    return ", ".join(f"{name}: {_array(value)}" for name, value in feed.items())


def _array(value: Array) -> str:
    return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
