"""Inputs to try a model with before and after its export, and whether the outputs are the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engineworks.errors import ExportError
from engineworks.host.lazy import Array
from engineworks.model.equivalence import open_session
from engineworks.model.export.interface import Interface

if TYPE_CHECKING:
    Arrays = dict[str, Array]

TOLERANCE = {"float16": 3e-2, "bfloat16": 3e-2}
"""Largest difference from the module's outputs, relative to their largest absolute value; 1e-3 for other dtypes."""


@dataclass(frozen=True)
class Trial:
    """The module's own outputs for one set of inputs."""

    lengths: Mapping[str, int]
    inputs: Arrays
    outputs: Arrays

    def __str__(self) -> str:
        return ", ".join(f"{dim}={n}" for dim, n in self.lengths.items()) or "fixed shapes"


def trial_inputs(interface: Interface, examples: Arrays | None) -> list[tuple[dict[str, int], Arrays]]:
    """(length of each dimension, arrays by input name in the recipe's dtypes) at the profiles' smallest lengths, and
    last at the next larger ones: those are traced, as tracing freezes a length of 1. Given examples are cut or repeated
    to these lengths; made ones have other values each time."""
    lengths = interface.lengths()
    low = {dim: known[0] for dim, known in lengths.items()}
    high = {dim: known[min(1, len(known) - 1)] for dim, known in lengths.items()}
    trials = []
    for seed, dims in enumerate((low, high) if low != high else (low,)):
        shapes = {spec.name: spec.concrete(dims) for spec in interface.inputs}
        if examples is None:
            trials.append((dims, _made_inputs(interface, shapes, seed)))
        else:
            trials.append((dims, {name: _fitted(examples[name], shape) for name, shape in shapes.items()}))
    return trials


def _made_inputs(interface: Interface, shapes: Mapping[str, tuple[int, ...]], seed: int) -> Arrays:
    """Normal numbers for floats; 0 and 1 for integers: valid as token ids, masks and segments of every model."""
    draw = np.random.default_rng(seed)
    inputs: Arrays = {}
    for spec in interface.inputs:
        shape = shapes[spec.name]
        if spec.dtype.startswith("float"):
            inputs[spec.name] = draw.standard_normal(shape).astype(spec.dtype)
        else:
            values = draw.integers(0, 2, shape)
            values[..., :1] = 1  # no row is masked as a whole
            inputs[spec.name] = values.astype(spec.dtype)
    return inputs


def _fitted(array: Array, shape: tuple[int, ...]) -> Array:
    for axis, length in enumerate(shape):
        array = np.take(array, np.arange(length) % array.shape[axis], axis=axis)
    return np.ascontiguousarray(array)


def compare_outputs(path: Path, trials: list[Trial]) -> float:
    """Run the exported model on every trial; the largest relative difference from the module's outputs.

    Raises `ExportError` where they differ.
    """
    session = open_session(path)
    worst = 0.0
    for trial in trials:
        results = session.run(None, trial.inputs)
        got = dict(zip(trial.outputs, results, strict=True))
        difference = difference_of(trial.outputs, got)
        if difference is None:
            raise ExportError(f"the exported model's outputs differ from the module's at {trial}")
        worst = max(worst, difference)
    return worst


def difference_of(expected: Arrays, got: Arrays) -> float | None:
    """Largest absolute difference of arrays by output name, relative to the largest expected value of the same output,
    computed in float64; None if it is above `TOLERANCE`, or if shapes, the places of NaN and infinity, or more than 1%
    of the integers differ."""
    worst = 0.0
    for name, right in expected.items():
        value = got[name]
        if value.shape != right.shape:
            return None
        if right.dtype.kind != "f":
            if right.size and np.mean(value == right) < 0.99:
                return None
            continue
        limit = TOLERANCE.get(right.dtype.name, 1e-3)
        finite = np.isfinite(right)
        if not np.array_equal(finite, np.isfinite(value)):
            return None
        wanted, actual = right[finite].astype(np.float64), value[finite].astype(np.float64)
        scale = float(np.abs(wanted).max(initial=0.0))
        off = float(np.abs(wanted - actual).max(initial=0.0))
        relative = off / scale if scale else off
        if relative > limit:
            return None
        worst = max(worst, relative)
    return worst
