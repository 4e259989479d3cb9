"""MLflow's model registry: a registered model per recipe, a version per engine that passed, a champion per slot."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from engineworks.engines.engine_files import PASSPORT_FILE, SIDECAR_FILE, STATEMENTS_FILE
from engineworks.engines.passport import Passport
from engineworks.engines.signing import Trust
from engineworks.engines.statements import LONGEST, Statement, Statements
from engineworks.errors import InputError, TrackingError
from engineworks.tracking.aliases import Role, Slot, champions_of, history_text
from engineworks.tracking.champion_list import SINCE, Standing, standings, why_unfit, write_last_champion
from engineworks.tracking.connection import Connection, refusals, user_name
from engineworks.tracking.engine_model import EngineModel, log_engine_model
from engineworks.tracking.reader import ModelRecord
from engineworks.tracking.records import ENGINE, ENGINE_DIGEST, RECIPE, RUN
from engineworks.tracking.registry_lock import CLAIM, alone
from engineworks.tracking.roles import (
    FOLDER,
    PRECISION,
    TARGET,
    check_mlmodel,
    check_role,
    read_shipped_passport,
    statements_in,
)

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

ENDED = "engineworks.rolled_back"
TRIES = 3

Move = Literal["moved", "already", "overtaken"]

Issue = Callable[[Statements | None, str], Statement | None]
"""A slot's statements so far, and a version's digest by its tag → the statement of its release; None where the newest
one is for it already. Raises `TrustError` or `InputError` where none may be made."""


@dataclass(frozen=True)
class EngineVersion:
    """A model version: an engine that passed. run_id: the engine's run."""

    model: str
    version: int
    engine: str
    digest: str
    run_id: str
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FetchedEngine:
    """A released engine in a folder of its own, compared with its role. Its bytes are not compared with its passport
    yet."""

    folder: Path
    passport: Passport
    statements: Statements | None


class Registry:
    """The registered models of one tracking store. Every method raises `TrackingError` where MLflow refuses.

    lock: file whose flock this host's releases share. shared: whether other hosts write to the same registry.
    """

    def __init__(self, link: Connection, lock: Path, *, shared: bool) -> None:
        self._link, self._client = link, link.client
        self._lock, self._shared = lock, shared

    def versions_at(self, role: Role, slots: Sequence[Slot]) -> dict[Slot, int | None]:
        """Return the version that each slot's alias names, None where there is none."""
        known = {model: self._aliases(self._find(model)) for model in {s.model for s in slots}}
        return {slot: known[slot.model].get(slot.alias(role)) for slot in slots}

    def standings(self, slots: Sequence[Slot]) -> dict[Slot, Standing]:
        """Return each slot's recorded champions, and what the present one lacks."""
        return standings(self._link, slots)

    def why_unfit(self, slot: Slot, version: int) -> str:
        """Return why a previous champion cannot be champion again, '' where it can."""
        with refusals(f"version {version} of '{slot.model}' cannot be read"):
            missing = f"the files of version {version} are missing in MLflow"
            unfit = why_unfit(self._link, slot, version)
            return unfit or ("" if self._has_files(slot.model, version) else missing)

    def exists(self, model: str) -> bool:
        """Whether a registered model of this name exists."""
        return self._find(model) is not None

    def get(self, slot: Slot, role: Role = "champion") -> EngineVersion | None:
        """Return the engine at the slot's alias."""
        version = self.versions_at(role, [slot])[slot]
        return None if version is None else self._version(slot.model, version)

    def fetch(self, model: str, version: int | None, alias: str | None, into: Path, trust: Trust) -> FetchedEngine:
        """Copy a version's engine into the folder, and hold its passport against its role (`check_role`).

        version: None for the one that the alias names. Raises `InputError` where there is none, `TrustError`.
        """
        registered = self._find(model)
        if registered is None:
            raise InputError(f"there is no registered model '{model}' in MLflow", hint="run 'engineworks release'")
        number = version or self._aliases(registered).get(alias or "")
        if number is None or (known := self._model_version(model, number)) is None:
            wanted = f"version {version}" if version else f"alias {alias}"
            names = ", ".join(sorted(registered.aliases)) or "none"
            raise InputError(f"registered model '{model}' has no {wanted}", hint=f"its aliases: {names}")
        place = self.download(model, number, into)
        check_mlmodel(place.parent.parent)
        passport = read_shipped_passport(place, trust)
        return FetchedEngine(place, passport, check_role(registered, known, passport, trust, alias=alias))

    def download(self, model: str, version: int, folder: Path) -> Path:
        """Copy the version's engine (its files, sidecar and passport) into the folder, and return their location.

        Does not verify them.
        """
        from mlflow.artifacts import download_artifacts

        with refusals(f"version {version} of '{model}' cannot be fetched"):
            source = self._client.get_model_version_download_uri(model, str(version))
            place = download_artifacts(artifact_uri=source, dst_path=str(folder), tracking_uri=self._link.uri)
        return Path(place) / "data" / FOLDER

    def statements(self, slot: Slot) -> Statements | None:
        """Return the statements of the slot's releases, None where there are none. Raises `TrustError`."""
        return statements_in(self._state(slot)[0], slot)

    def register(self, model: EngineModel) -> EngineVersion:
        """Return a version for the engine, reusing an existing one, and set the candidate's alias to it."""
        slot = model.slot
        with self._alone(slot.model, model.recipe):
            registered = self._registered(model)
            if registered is None or not self._has_files(slot.model, registered.version):
                registered = self._create(model)
            with refusals(f"version {registered.version} of '{slot.model}' cannot be marked"):
                for name, value in model.tags.items():
                    if registered.tags.get(name) != value:
                        self._client.set_model_version_tag(slot.model, str(registered.version), name, value)
                for name in (registered.tags.keys() - model.tags.keys()) & model.optional_tags:
                    self._client.delete_model_version_tag(slot.model, str(registered.version), name)
                self._client.set_registered_model_alias(slot.model, slot.alias("candidate"), str(registered.version))
        return registered

    def promote(
        self,
        slot: Slot,
        version: int,
        *,
        expected: int | None,
        issue: Issue | None = None,
        passport: Path | None = None,
    ) -> Move:
        """Set the champion's alias to the version, if it still names `expected`, the champion that it was compared
        with.

        Otherwise another release was faster: returns "overtaken" and changes nothing. issue: makes the statement of the
        release, which is written before the alias is moved. passport: replaces the version's own.
        """
        for attempt in range(TRIES):
            with self._alone(slot.model) as claim, refusals(f"alias {slot.alias('champion')} cannot be moved"):
                tags, current = self._state(slot)
                if current not in (version, expected):
                    return "overtaken"
                if not self._state_release(slot, version, tags, issue, passport):
                    continue
                if current == version:
                    return "moved" if attempt else "already"
                listed = champions_of(tags, slot, current)
                self._move(slot, version, listed if listed[-1:] == [version] else [*listed, version])
                tags, current = self._state(slot)
                if current == version and tags.get(CLAIM) == claim:  # otherwise another host moved it: try again
                    self._mark(slot, version, SINCE)
                    return "moved"
        return "overtaken"

    def rollback(self, slot: Slot, issue: Issue | None = None) -> tuple[int, int] | None:
        """Move the champion's alias back to the newest earlier version that can be served. Returns (from, to), None
        where there is none. Reads the list of champions, because the last one may be deleted or without alias.

        issue: makes the statement that the old engine is champion again.
        """
        from mlflow.exceptions import MlflowException

        with self._alone(slot.model), refusals(f"alias {slot.alias('champion')} cannot be moved"):
            tags, current = self._state(slot)
            *before, last = champions_of(tags, slot, current) or [0]
            while before and self.why_unfit(slot, before[-1]):
                before.pop()
            if not before:
                return None
            if not self._state_release(slot, before[-1], tags, issue, None):
                raise TrackingError(
                    f"another release of '{slot.model}' was signed meanwhile", hint="nothing was changed; try again"
                )
            ended = self._exists(slot.model, last)  # asked before: what fails now has changed nothing
            self._move(slot, before[-1], before)
            if ended:
                with suppress(MlflowException):  # a date, for people: the champion is back
                    self._mark(slot, last, ENDED)
            return last, before[-1]

    def _alone(self, model: str, recipe: str | None = None) -> AbstractContextManager[str | None]:
        """Lock the registered model; create it if it is missing and `recipe` names its recipe."""
        registered = self._find(model)
        if registered is None:
            if recipe is None:
                raise InputError(f"there is no registered model '{model}'", hint="run 'engineworks release' first")
            self._create_model(model, recipe)
            registered = self._find(model)
        owner = registered.tags.get(RECIPE) if registered is not None else None
        if recipe is not None and owner != recipe:
            whose = f"is that of recipe '{owner}'" if owner else "was not made by Engineworks"
            raise InputError(f"registered model '{model}' {whose}", hint="say release: {model: another-name}")
        return alone(self._lock, self._client, model, shared=self._shared)

    def _create_model(self, model: str, recipe: str) -> None:
        from mlflow.exceptions import MlflowException

        with refusals(f"registered model '{model}' cannot be made"):
            try:
                self._client.create_registered_model(model, tags={RECIPE: recipe})
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # otherwise another process was faster
                    raise

    def _find(self, model: str) -> ModelRecord | None:
        return self._link.find_model(model)

    @staticmethod
    def _aliases(model: ModelRecord | None) -> dict[str, int]:
        return {} if model is None else {alias: int(version) for alias, version in model.aliases.items()}

    def _state(self, slot: Slot) -> tuple[Mapping[str, str], int | None]:
        """Return the registered model's tags, and the champion's version."""
        model = self._find(slot.model)
        return (model.tags if model else {}), self._aliases(model).get(slot.alias("champion"))

    def _state_release(
        self, slot: Slot, version: int, tags: Mapping[str, str], issue: Issue | None, passport: Path | None
    ) -> bool:
        """Write the statement of a release: as a tag, then beside the version's engine. False where another release has
        taken its number: of two writers, both read who came last."""
        known = self._model_version(slot.model, version)
        if issue is None or known is None:
            return True
        before = statements_in(tags, slot)
        statement = issue(before, dict(known.tags).get(ENGINE_DIGEST, ""))
        after = before
        if statement is not None:
            name, text = f"{slot.statement_tags}{statement.number}", json.dumps(statement.to_json())
            self._client.set_registered_model_tag(slot.model, name, text)
            if self._state(slot)[0].get(name) != text:
                return False
            after = before.and_then(statement) if before else Statements((statement,))
            oldest = f"{slot.statement_tags}{statement.number - LONGEST}"
            if oldest in tags:
                self._client.delete_registered_model_tag(slot.model, oldest)
        with TemporaryDirectory(prefix="engineworks-") as folder:
            statements_file = Path(folder, STATEMENTS_FILE)
            if after is not None:
                statements_file.write_text(json.dumps(after.to_json(), indent=1) + "\n", encoding="utf-8")
            for file in (f for f in (statements_file, passport) if f is not None and f.exists() and known.model_id):
                self._client.log_model_artifact(known.model_id, str(file), f"data/{FOLDER}")
        return True

    def _move(self, slot: Slot, version: int, champions: Sequence[int]) -> None:
        """Write the history first: if the process dies then, the alias stays and `champions_of` corrects the
        history."""
        known = self._client.get_model_version(slot.model, str(version))  # before: what fails has changed nothing
        self._client.set_registered_model_tag(slot.model, slot.history_tag, history_text(champions))
        self._client.set_registered_model_alias(slot.model, slot.alias("champion"), str(version))
        write_last_champion(self._link, slot, known, now_by_user())

    def _mark(self, slot: Slot, version: int, tag: str) -> None:
        self._client.set_model_version_tag(slot.model, str(version), tag, now_by_user())

    def _exists(self, model: str, version: int) -> bool:
        return bool(self._client.search_model_versions(f"name = '{model}' AND version_number = {version}"))

    def _has_files(self, model: str, version: int) -> bool:
        """Whether MLflow still has the version's engine; loading verifies its bytes."""
        from mlflow.artifacts import list_artifacts
        from mlflow.exceptions import MlflowException

        try:
            source = self._client.get_model_version_download_uri(model, str(version))
            listed = list_artifacts(artifact_uri=f"{source}/data/{FOLDER}", tracking_uri=self._link.uri)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # the version's source was deleted
                raise
            return False
        own = {SIDECAR_FILE, PASSPORT_FILE, STATEMENTS_FILE}
        return bool({PurePosixPath(file.path).name for file in listed} - own)

    def _model_version(self, model: str, version: int) -> ModelVersion | None:
        if self._link.find_version(model, str(version)) is None:
            return None
        with refusals(f"version {version} of '{model}' cannot be read"):
            return self._client.get_model_version(model, str(version))

    def _version(self, model: str, version: int) -> EngineVersion | None:
        return next(self._search(model, f"version_number = {version}"), None)

    def _registered(self, model: EngineModel) -> EngineVersion | None:
        slot = model.slot
        same = f"tags.`{ENGINE_DIGEST}` = '{model.digest}' AND tags.`{ENGINE}` = '{model.engine}'"
        return next(self._search(slot.model, same), None)

    def _search(self, model: str, query: str) -> Iterator[EngineVersion]:
        with refusals(f"versions of '{model}' cannot be searched"):
            versions = self._client.search_model_versions(f"name = '{model}' AND {query}")
        yield from map(_engine_version, versions)

    def _create(self, model: EngineModel) -> EngineVersion:
        with refusals(f"{model.engine} cannot be registered as '{model.slot.model}'"):
            logged = log_engine_model(self._client, self._link.experiment_id, model)
            identity = {
                RECIPE: model.recipe, ENGINE: model.engine, ENGINE_DIGEST: model.digest,
                PRECISION: model.slot.precision, TARGET: model.slot.target, RUN: model.run_id,
            }  # fmt: skip
            version = self._client.create_model_version(
                model.slot.model,
                source=f"models:/{logged.model_id}" if self._link.is_server else logged.artifact_location,
                run_id=model.run_id,
                model_id=logged.model_id,
                tags={**identity, **model.tags},
                await_creation_for=0,
            )
        return _engine_version(version)


def now_by_user() -> str:
    return f"{datetime.now(UTC).isoformat(timespec='seconds')} by {user_name()}"


def _engine_version(version: ModelVersion) -> EngineVersion:
    tags = dict(version.tags)
    if ENGINE not in tags:
        raise TrackingError(f"version {version.version} of '{version.name}' was not registered by Engineworks")
    return EngineVersion(version.name, int(version.version), tags[ENGINE], tags[ENGINE_DIGEST], version.run_id, tags)
