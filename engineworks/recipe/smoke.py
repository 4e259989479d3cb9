"""`--mode smoke`: the same recipe in a fraction of the time, for pull requests; never to be mistaken for a full build.

Its recipe is called `digits@smoke`, a name that no recipe file can have. So its engines, runs and reports differ from
those of `digits`. Every one of its keys holds the mode, so that no step is shared with a full build. `release` and
`package` know no mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from engineworks.engines.backends import backend
from engineworks.recipe.batch import fixed_batch
from engineworks.recipe.load import LoadedRecipe
from engineworks.recipe.profiles import evaluation_batches
from engineworks.recipe.samples import SampleFile
from engineworks.recipe.targets import NamedTarget

Mode = Literal["full", "smoke"]

SAMPLES = 64
"""Samples of the evaluation and calibration data that a smoke build uses, evenly spread."""


def in_mode(loaded: LoadedRecipe, mode: Mode) -> LoadedRecipe:
    """The recipe as it is built in this mode.

    smoke: 64 samples, TensorRT's lowest optimization level, one measurement per named shape. Budgets, sweep, streams,
    serving and champion are left out, because they mean nothing for such an engine.
    """
    if mode == "full":
        return loaded
    recipe = loaded.recipe
    serving = recipe.performance.serving.model_copy(update={"load": None})
    none: dict[str, object] = {"budget": {}, "sweep": None, "streams": (), "regression": None, "serving": serving}
    release = recipe.release.model_copy(update={"serve": None})
    changed = {"performance": recipe.performance.model_copy(update=none), "release": release}
    files = loaded.files
    calibration = _fewer(files.calibration, [fixed_batch(files.calibration.specs) or 1]) if files.calibration else None
    return replace(
        loaded,
        recipe=recipe.model_copy(update={"recipe": f"{loaded.name}@smoke", **changed}),
        files=replace(files, evaluation=_fewer(files.evaluation, evaluation_batches(recipe)), calibration=calibration),
        targets=tuple(_quick(target) for target in loaded.targets),
        mode=mode,
        by_context={context: in_mode(one, mode) for context, one in loaded.by_context.items()},
    )


def _fewer(data: SampleFile, sizes: Sequence[int]) -> SampleFile:
    """As many samples as fill batches of these sizes; all where so few fill none."""
    return replace(data, count=data.filling(min(data.count, SAMPLES), sizes) or data.count)


def _quick(target: NamedTarget) -> NamedTarget:
    options = {**target.target.options, **backend(target.target.backend).TRAITS.smoke_options}
    return replace(target, target=target.target.model_copy(update={"options": options}))
