"""A recipe's own function that names slices, called in a sandbox: inputs and labels in, one name per sample out."""

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

FUNCTION = "engineworks.steps.user_slices:name"

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
        Sandbox(FUNCTION, what=f"the slices of '{function}'", echo=echo, time_limit_s=time_limit_s) as sandbox,
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
