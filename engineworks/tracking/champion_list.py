"""All champions of MLflow's registry: which version, of which engine, since when."""

from __future__ import annotations

from dataclasses import dataclass

from engineworks.tracking.connection import Connection, refusals
from engineworks.tracking.records import ENGINE, ENGINE_DIGEST, RECIPE, RUN

ALIAS = "champion-"
SINCE = "engineworks.champion_since"


@dataclass(frozen=True)
class RegisteredChampion:
    """One champion. since: as it was tagged, 'TIME by USER', '' where nobody did. created_at: seconds since 1970."""

    model: str
    alias: str
    version: str
    engine: str
    digest: str
    run_id: str
    since: str
    created_at: float


def list_champions(link: Connection) -> list[RegisteredChampion]:
    """Champions of the registered models that are ours, by engine. Raises `TrackingError` where MLflow refuses."""
    found = []
    with refusals("registered models can not be searched"):
        models = link.client.search_registered_models(max_results=1000)
        for model in models:
            if RECIPE not in dict(model.tags):
                continue
            for alias, version in link.client.get_registered_model(model.name).aliases.items():
                if alias.startswith(ALIAS):
                    found.append(_champion(link, model.name, alias, str(version)))
    return sorted(found, key=lambda c: c.engine)


def _champion(link: Connection, model: str, alias: str, version: str) -> RegisteredChampion:
    known = link.client.get_model_version(model, version)
    tags = dict(known.tags)
    return RegisteredChampion(
        model, alias, version, tags.get(ENGINE, ""), tags.get(ENGINE_DIGEST, ""), tags.get(RUN) or known.run_id or "",
        tags.get(SINCE, ""), (known.creation_timestamp or 0) / 1000,
    )  # fmt: skip
