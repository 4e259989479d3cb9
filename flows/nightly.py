"""Builds every recipe, or those that are chosen, each separately: a failure of one does not affect the others."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger

from engineworks.builds.delivery import digest_in, read_body
from engineworks.builds.results import BuildResult
from engineworks.errors import EngineworksError, StoreError, TrackingError
from engineworks.host.collector import collected_seldom
from engineworks.recipe.load import find_recipes
from engineworks.report.night.summary import summarize_night
from engineworks.settings import Settings, read_settings
from engineworks.store.shared import open_store
from engineworks.tracking.runs import open_tracking
from flows.build_recipe import build_recipe
from flows.deployments import PREPARE_POOL
from flows.dispatch import Ended, Order, started, workers_online
from flows.outcomes import ended, opaque, result_of
from tasks.night import (
    Chosen,
    RecipeNight,
    causes_of,
    choose_recipes,
    count_outcomes,
    lines_of,
    night_of_result,
    night_without_result,
)
from tasks.night_lookup import Lookup
from tasks.plan_night import find_unchanged
from tasks.publish_summary import publish_summary

DEPLOYMENT = "build-recipe/build-recipe"


def _night_name() -> str:
    """Name a flow run after its night."""
    return f"night of {datetime.now(UTC):%Y-%m-%d}"


@flow(name="nightly", flow_run_name=_night_name)
def nightly(
    folder: str = "recipes",
    recipes: list[str] | None = None,
    owner: str | None = None,
    tag: str | None = None,
    again: str | None = None,
    distributed: bool = False,
) -> State[tuple[RecipeNight, ...]]:
    """Build the recipes of the folder that match: `recipes` (globs over names or files), `owner` (a glob), `tag`.

    distributed: each as a run of the deployment build-recipe, else one after the other in this process. again: glob
    over ids of engines that workers check again. The run's log reports every engine's outcome; it ends
    failed unless every engine passed, or has no hardware to be measured on.
    """
    settings, start = read_settings(), time.monotonic()
    with collected_seldom():
        chosen = choose_recipes(Path(folder), globs=recipes or (), owner=owner, tag=tag, data_roots=settings.data_roots)
        nights = list(_nights(chosen, settings, again=again, distributed=distributed))
        logger = get_run_logger()
        files = [str(path) for path in find_recipes(Path(folder))]
        for line in (*lines_of(nights), *_summarized(nights, settings, time.monotonic() - start, files)):
            logger.info(line)
    counts = count_outcomes(nights, not_part=len(files) - len(chosen))
    bad = causes_of(night for night in nights if not night.is_good)
    return ended("\n".join([counts, *bad]), tuple(nights), good=not bad)


def _summarized(
    nights: Sequence[RecipeNight], settings: Settings, seconds: float, files: Sequence[str]
) -> tuple[str, ...]:
    """Publish the night's summary. Returns what could not be published, which fails no night. files: of all recipes."""
    results = [{**(n.verdicts or {"recipe": n.recipe, "error": n.message}), "file": n.file} for n in nights]
    try:
        tracking = open_tracking(settings.artifacts, settings.tracking_uri)
        summary = summarize_night(results, tracking, seconds=seconds, recipe_files=files)
        return publish_summary(opaque(summary), settings)
    except TrackingError as error:
        return (f"the summary of this night is not on record: {error}",)


def _nights(
    chosen: Sequence[Chosen], settings: Settings, *, again: str | None, distributed: bool
) -> Iterator[RecipeNight]:
    """Yield the outcome of every recipe, in no order."""
    pools = {t.target.pool for recipe in chosen if recipe.loaded for t in recipe.loaded.targets}
    online = workers_online(sorted(pools)) if distributed else {}
    lookup, to_do = Lookup(settings), []
    for recipe in chosen:
        if recipe.loaded is None:
            yield night_without_result(recipe, "refused", str(recipe.error))
            continue
        try:
            known = find_unchanged(opaque(recipe), recipe.name, lookup, online, again)
        except EngineworksError as error:
            yield night_without_result(recipe, "refused", str(error))
            continue
        if known is not None:
            yield night_of_result(known.to_json(), recipe, "unchanged")
        else:
            to_do.append(recipe)
    yield from _ordered(to_do, settings, again) if distributed else map(_built_here, to_do)


def _built_here(chosen: Chosen) -> RecipeNight:
    state: State[Any] = build_recipe(str(chosen.path), return_state=True)
    result = result_of(state)
    if isinstance(result, BuildResult):
        return night_of_result(result.to_json(), chosen, "built")
    return night_without_result(chosen, "lost", f"{result}")


def _ordered(to_do: Sequence[Chosen], settings: Settings, again: str | None) -> Iterator[RecipeNight]:
    by_file = {str(recipe.path): recipe for recipe in to_do}
    orders = [
        Order(file, DEPLOYMENT, PREPARE_POOL, {"recipe": file, "distributed": True, "again": again}) for file in by_file
    ]
    with started(orders) as runs:
        for order, ended in runs.ends():
            yield _delivered(by_file[order.name], ended, settings)


def _delivered(chosen: Chosen, ended: Ended, settings: Settings) -> RecipeNight:
    key = digest_in(ended.message, "verdicts")
    message = f"its flow run {ended.state.lower()}: {ended.message}"
    if key is not None:
        try:
            return night_of_result(read_body(open_store(settings), key), chosen, "built")
        except StoreError as error:
            message = str(error)
    return night_without_result(chosen, "lost", message)
