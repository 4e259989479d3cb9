"""Champions in MLflow's registry: one slot's, with its history and missing versions, and the list of all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engineworks.tracking.aliases import HISTORY, LAST, Slot, champions_of, is_readable, slot_of
from engineworks.tracking.connection import Connection
from engineworks.tracking.reader import ModelRecord, Reader, VersionRecord
from engineworks.tracking.records import ENGINE, ENGINE_BUILD_KEY, ENGINE_DIGEST, RECIPE, RUN, RegisteredVersion

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

ALIAS = "champion-"
SINCE = "engineworks.champion_since"


@dataclass(frozen=True)
class Standing:
    """A slot's champions. listed: recorded versions, oldest first, the present one last. current: the version that the
    alias names. lost: why the last one is not served; '' where it is, or where there never was one."""

    listed: tuple[int, ...] = ()
    current: int | None = None
    lost: str = ""

    @property
    def last(self) -> int | None:
        return self.listed[-1] if self.listed else None


@dataclass(frozen=True)
class RegisteredChampion:
    """One champion. since: its tag, 'TIME by USER' or ''. created_at: seconds since 1970, None where the version no
    longer exists. lost: as in `Standing`."""

    model: str
    alias: str
    version: str
    engine: str
    digest: str
    run_id: str
    since: str
    created_at: float | None
    lost: str = ""


def standing_of(link: Reader, model: ModelRecord | None, slot: Slot) -> Standing:
    """Return the slot's champions. MLflow removes the alias of a deleted version, so this also reads the list of
    champions."""
    if model is None:
        return Standing()
    alias, tags = slot.alias("champion"), model.tags
    named = model.aliases.get(alias)
    current = None if named is None else int(named)
    listed = tuple(champions_of(tags, slot, current))
    if not listed:
        unread = "" if is_readable(tags, slot) else f"its list of champions, tag {slot.history_tag}, cannot be read"
        return Standing(lost=unread)
    lost = why_unfit(link, slot, listed[-1])
    if current is None and not lost:
        lost = f"version {listed[-1]} has lost its alias {alias}"
    return Standing(listed, current, lost)


def why_unfit(link: Reader, slot: Slot, version: int) -> str:
    """Return why the version cannot be the slot's champion, '' where it can."""
    known = link.find_version(slot.model, str(version))
    if known is None:
        return f"version {version} was deleted in MLflow"
    engine = known.tags.get(ENGINE, "")
    if engine.count("/") != 2:
        return f"version {version} is no engine that Engineworks registered"
    own = slot_of(slot.model, engine).name == slot.name
    return "" if own else f"version {version} is {engine}, another engine"


def standings(link: Reader, slots: Iterable[Slot]) -> dict[Slot, Standing]:
    """Return each slot's champions. Raises `TrackingError` where MLflow refuses."""
    wanted = list(slots)
    models = {name: link.find_model(name) for name in {slot.model for slot in wanted}}
    found = {slot: standing_of(link, models[slot.model], slot) for slot in wanted}
    if all(standing.listed for standing in found.values()):
        return found
    last = _last_champions(link)
    return {slot: _with_deleted(standing, last.get(slot.last_tag)) for slot, standing in found.items()}


def _with_deleted(standing: Standing, last: RegisteredChampion | None) -> Standing:
    """Return the standing; one without champions that had one before says that it was deleted."""
    return standing if standing.listed or standing.lost or last is None else replace(standing, lost=last.lost)


def _last_champions(link: Reader) -> dict[str, RegisteredChampion]:
    """Return the newest champions as the experiment's tags record them, by tag, as if their models were deleted."""
    tags = {name: value for name, value in link.experiment_tags().items() if name.startswith(LAST)}
    return {name: _deleted(json.loads(value)) for name, value in tags.items()}


def _deleted(last: Mapping[str, str]) -> RegisteredChampion:
    slot = slot_of(last["model"], last["engine"])
    lost = f"registered model '{slot.model}' was deleted in MLflow, with version {last['version']}, its champion"
    return RegisteredChampion(alias=slot.alias("champion"), created_at=None, lost=lost, **last)


def write_last_champion(link: Connection, slot: Slot, version: ModelVersion, since: str) -> None:
    """Record the slot's champion in the experiment's tags. since: 'TIME by USER'."""
    tags = dict(version.tags)
    last = {
        "model": slot.model, "version": str(version.version), "engine": tags.get(ENGINE, ""),
        "digest": tags.get(ENGINE_DIGEST, ""), "run_id": tags.get(RUN) or version.run_id or "", "since": since,
    }  # fmt: skip
    link.tag_experiment({slot.last_tag: json.dumps(last)})


def versions_behind(link: Reader, model: str, aliases: Iterable[str]) -> dict[str, RegisteredVersion]:
    """Return versions by alias. Listing the registry's aliases is one call, whatever their number."""
    registered = link.find_model(model)
    known = registered.aliases if registered else {}
    found = {alias: link.find_version(model, known[alias]) for alias in aliases if alias in known}
    return {alias: _registered(version) for alias, version in found.items() if version is not None}


def _registered(version: VersionRecord) -> RegisteredVersion:
    tags = version.tags
    return RegisteredVersion(
        version.model, version.version, tags.get(ENGINE, ""), tags.get(ENGINE_DIGEST, ""),
        tags.get(ENGINE_BUILD_KEY, ""), tags.get(RUN) or version.run_id,
    )  # fmt: skip


def list_champions(link: Reader, recipe: str | None = None) -> list[RegisteredChampion]:
    """Return the champions of Engineworks' registered models (or of one recipe's), including missing ones, by engine.
    Raises `TrackingError` where MLflow refuses."""
    champions = [_champion(link, model, slot) for model in link.find_models(recipe) for slot in _slots(model)]
    known = {(c.model, c.alias) for c in champions}
    deleted = [c for c in _last_champions(link).values() if recipe in (None, c.engine.partition("/")[0])]
    champions += [c for c in deleted if (c.model, c.alias) not in known]
    return sorted(champions, key=lambda c: c.engine)


def _slots(model: ModelRecord) -> Iterator[Slot]:
    """Yield the slots of the aliases, and of lists of champions without an alias."""
    names = [alias.removeprefix(ALIAS) for alias in model.aliases if alias.startswith(ALIAS)]
    names += [tag.removeprefix(HISTORY) for tag in model.tags if tag.startswith(HISTORY)]
    for name in dict.fromkeys(names):
        target, _, precision = name.rpartition("-")
        yield Slot(model.name, target, precision)


def _champion(link: Reader, model: ModelRecord, slot: Slot) -> RegisteredChampion:
    standing, alias = standing_of(link, model, slot), slot.alias("champion")
    known = None if standing.last is None else link.find_version(model.name, str(standing.last))
    tags = known.tags if known else {}
    engine = tags.get(ENGINE) or f"{model.tags[RECIPE]}/{slot.precision}/{slot.target}"
    run = tags.get(RUN) or (known.run_id if known else "")
    return RegisteredChampion(
        model.name, alias, str(standing.last or ""), engine, tags.get(ENGINE_DIGEST, ""), run, tags.get(SINCE, ""),
        known.created_at if known else None, standing.lost,
    )  # fmt: skip
