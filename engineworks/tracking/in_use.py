"""The store keys that a record refers to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from engineworks.tracking.aliases import HISTORY, listed_versions
from engineworks.tracking.connection import Connection, refusals
from engineworks.tracking.queries import RunQuery
from engineworks.tracking.records import ENGINE_BUILD_KEY, RECIPE, RUN, STORE_KEYS, store_keys_of

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

T = TypeVar("T")

PAGE = 100


def store_keys_in_use(link: Connection) -> set[str]:
    """Return the store keys that runs of any experiment refer to, and versions that an alias or a list of champions
    names, even if their runs are deleted. Other deleted runs do not count. Raises `TrackingError`."""
    with_keys = link.search(RunQuery(starting={STORE_KEYS: "["}), everywhere=True)
    runs = {run.run_id: store_keys_of(run.tags) for run in with_keys}
    keys = {key for of_run in runs.values() for key in of_run}
    with refusals("registered models cannot be read"):
        for version in _versions_in_use(link):
            tags = dict(version.tags)
            keys |= store_keys_of(tags)
            if ENGINE_BUILD_KEY in tags:
                keys.add(tags[ENGINE_BUILD_KEY])
            run_id = tags.get(RUN) or version.run_id
            if run_id and run_id not in runs:
                keys |= link.keys_of_deleted(run_id)
    return keys


def _versions_in_use(link: Connection) -> Iterator[ModelVersion]:
    for model in _models(link):
        listed = (text for tag, text in model.tags.items() if tag.startswith(HISTORY))
        wanted = {version for text in listed for version in listed_versions(text) or ()}
        wanted |= {int(version) for version in model.aliases.values()}
        for version in _pages(link.client.search_model_versions, f"name = '{model.name}'"):
            if int(version.version) in wanted:
                yield version


def _models(link: Connection) -> Iterator[RegisteredModel]:
    """Yield our registered models with their aliases, which a search leaves out."""
    for model in _pages(link.client.search_registered_models, None):
        if RECIPE in dict(model.tags):
            yield link.client.get_registered_model(model.name)


def _pages(search: Callable[..., list[T]], query: str | None) -> Iterator[T]:
    token: str | None = None
    while True:
        page = search(query, max_results=PAGE, page_token=token)
        yield from page
        token = getattr(page, "token", None)
        if not token:
            return
