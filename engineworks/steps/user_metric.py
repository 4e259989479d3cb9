"""A recipe's own metric, called in a sandbox: outputs, labels and inputs in, three numbers out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    say: Callable[[str], object], time_limit_s: float | None,
) -> tuple[float, float, float]:  # fmt: skip
    """Return the metric of the engine, of the reference, and of the engine again, to see whether it wavers.

    engine, reference, inputs: [samples, …] by name; labels: [samples, …]. Raises `ModelError` if the metric is missing
    or gives no number, `ExportError` if it raises, `StepError` if it ends or garbles the sandbox, `TimeLimitError`.
    """
    parts = {"engine": engine, "reference": reference, "inputs": inputs}
    arrays = {f"{part}/{name}": array for part, rows in parts.items() for name, array in rows.items()}
    arrays |= {} if labels is None else {"labels": labels}
    with (
        Sandbox(FUNCTION, what=f"the metric '{metric}'", say=say, time_limit_s=time_limit_s) as sandbox,
        sandbox.ask({"metric": metric, "root": str(root)}, arrays) as answer,
    ):
        numbers = answer.value["value"].get("numbers")
        if not isinstance(numbers, list) or len(numbers) != 3 or not all(type(n) is float for n in numbers):
            raise GarbledError("holds no numbers")
        return (numbers[0], numbers[1], numbers[2])


def evaluate(request: Mapping[str, Any], arrays: Rows, _: Emit) -> dict[str, Any]:
    """Call the metric in this process, a sandbox. Raises as `evaluate_in_sandbox`."""
    name, root = request["metric"], Path(request["root"])
    metric = load_function(name, root, role="metric")

    def part(prefix: str) -> dict[str, Array]:
        """Copy the arrays: a metric that works in place must not affect the next call."""
        return {key.removeprefix(prefix): np.array(a) for key, a in arrays.items() if key.startswith(prefix)}

    numbers = []
    for rows in ("engine/", "reference/", "engine/"):
        labels = arrays["labels"].copy() if "labels" in arrays else None
        try:
            value = metric(part(rows), labels, part("inputs/"))
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
