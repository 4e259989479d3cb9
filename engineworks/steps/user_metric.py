"""A recipe's own metric and its own names of slices, called in a sandbox: arrays in, numbers or names out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engineworks.errors import ModelError
from engineworks.host.sandbox import Sandbox
from engineworks.host.sandbox.serve import Emit
from engineworks.host.sandbox.wire import Array, GarbledError
from engineworks.model.export.source_code import load_function, user_failure

FUNCTION = "engineworks.steps.user_metric:evaluate"

Rows = Mapping[str, Array]


def evaluate_in_sandbox(
    metric: str, root: Path, engine: Rows, reference: Rows, inputs: Rows, labels: Array | None, *,
    echo: Callable[[str], object], time_limit_s: float | None, sets: Sequence[Array] = (),
) -> tuple[tuple[float, float, float], list[tuple[float, float]]]:  # fmt: skip
    """Return the metric of the engine, of the reference, and of the engine again, to see whether it wavers; and of
    engine and reference on each set of rows.

    engine, reference, inputs: [samples, …] by name; labels: [samples, …]; sets: int[rows] each. Raises `ModelError` if
    the metric is missing or gives no number, `ExportError` if it raises, `StepError` if it ends or garbles the sandbox,
    `TimeLimitError`.
    """
    parts = {"engine": engine, "reference": reference, "inputs": inputs}
    arrays = {f"{part}/{name}": array for part, rows in parts.items() for name, array in rows.items()}
    arrays |= {} if labels is None else {"labels": labels}
    arrays |= {f"rows/{i}": rows for i, rows in enumerate(sets)}
    with (
        Sandbox(FUNCTION, what=f"the metric '{metric}'", echo=echo, time_limit_s=time_limit_s) as sandbox,
        sandbox.ask({"metric": metric, "root": str(root)}, arrays) as answer,
    ):
        numbers = answer.value["value"].get("numbers")
        count = 3 + 2 * len(sets)
        if not isinstance(numbers, list) or len(numbers) != count or not all(type(n) is float for n in numbers):
            raise GarbledError("holds no numbers")
        return (numbers[0], numbers[1], numbers[2]), list(zip(numbers[3::2], numbers[4::2], strict=True))


def evaluate(request: Mapping[str, Any], arrays: Rows, _: Emit) -> dict[str, Any]:
    """Call the metric in this process, a sandbox. Raises as `evaluate_in_sandbox`."""
    name, root = request["metric"], Path(request["root"])
    metric = load_function(name, root, role="metric")

    def part(prefix: str, rows: Any) -> dict[str, Array]:
        """Copy the arrays: a metric that works in place must not affect the next call."""
        return {key.removeprefix(prefix): np.array(a[rows]) for key, a in arrays.items() if key.startswith(prefix)}

    every = slice(None)
    asked: list[tuple[str, Any]] = [("engine/", every), ("reference/", every), ("engine/", every)]
    sets = sum(key.startswith("rows/") for key in arrays)
    asked += [(side, arrays[f"rows/{i}"]) for i in range(sets) for side in ("engine/", "reference/")]
    numbers = []
    for side, rows in asked:
        labels = arrays["labels"][rows].copy() if "labels" in arrays else None
        try:
            value = metric(part(side, rows), labels, part("inputs/", rows))
        except BaseException as error:  # noqa: BLE001 - the user's code may raise anything
            raise user_failure(error, root, f"the metric '{name}'") from None
        numbers.append(_number(value, name))
    return {"numbers": numbers}


def _number(value: object, metric: str) -> float:
    if not isinstance(value, int | float | np.floating | np.integer):
        raise ModelError(f"accuracy.metric: {metric} returned {type(value).__name__}, not a number")
    try:
        return float(value)
    except OverflowError:
        raise ModelError(f"accuracy.metric: {metric} returned an integer that is too large for a float") from None


NAMING = "engineworks.steps.user_metric:name"

LONGEST_NAME = 80
"""Characters of a slice's name that are kept."""


def names_in_sandbox(
    function: str, root: Path, inputs: Mapping[str, Array], labels: Array | None, *,
    echo: Callable[[str], object], time_limit_s: float | None,
) -> Array:  # fmt: skip
    """Return the slice of every sample, str[samples].

    function: module:function(inputs, labels) in `root`. inputs: [samples, …] by name; labels: [samples, …]. Raises
    `ModelError` if it gives no such names, and else as `user_metric.evaluate_in_sandbox`.
    """
    arrays = {f"inputs/{name}": array for name, array in inputs.items()}
    arrays |= {} if labels is None else {"labels": labels}
    with (
        Sandbox(NAMING, what=f"the slices of '{function}'", echo=echo, time_limit_s=time_limit_s) as sandbox,
        sandbox.ask({"function": function, "root": str(root)}, arrays) as answer,
    ):
        names = answer.value["value"].get("names")
        if not isinstance(names, list) or not all(type(name) is str for name in names):
            raise GarbledError("holds no names")
        return np.array(names, np.str_)


def name(request: Mapping[str, Any], arrays: Mapping[str, Array], _: Emit) -> dict[str, Any]:
    """Call the function in this process, a sandbox. Raises as `names_in_sandbox`."""
    function, root = request["function"], Path(request["root"])
    own = load_function(function, root, role="slices")
    inputs = {key.removeprefix("inputs/"): np.array(a) for key, a in arrays.items() if key.startswith("inputs/")}
    try:
        given = own(inputs, arrays["labels"].copy() if "labels" in arrays else None)
        names = np.asarray(list(given))
    except BaseException as error:  # noqa: BLE001 - the user's code may raise anything
        raise user_failure(error, root, f"'{function}'") from None
    if names.ndim != 1 or names.dtype.kind not in "USiub":
        kind = f"{names.dtype.name}{list(names.shape)}"
        raise ModelError(f"data.evaluation.slices: {function} returned {kind}, not one text or whole number per sample")
    return {"names": [text[:LONGEST_NAME] for text in names.astype(np.str_).tolist()]}
