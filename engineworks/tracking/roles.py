"""Holds an engine from the registry against its role there: passport, statements, tags and alias must agree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineworks.engines.engine_files import PASSPORT_FILE, refuse_strangers
from engineworks.engines.passport import Passport, read_passport, refuse_verdict
from engineworks.engines.signing import Trust
from engineworks.engines.statements import (
    RELEASE_AGAIN,
    Statement,
    Statements,
    agree,
    check_order,
    check_statement,
    read_known_statements,
    read_statements,
)
from engineworks.engines.strict_json import parse_document, read_bytes, typed
from engineworks.errors import TrustError
from engineworks.tracking.aliases import Slot
from engineworks.tracking.records import ENGINE, ENGINE_DIGEST, RECIPE

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

FOLDER = "files"
"""The engine's folder in the model's `data`. Not `engine`: over REST a folder whose only file has its name is listed as
empty."""

LOADER = "engineworks.tracking.engine_model"
"""The module that MLflow loads an engine with: `_load_pyfunc`. Stored models name it, so it keeps its name."""

PRECISION, TARGET = "engineworks.precision", "engineworks.target"
VERDICT, SIGNED_BY = "engineworks.verdict", "engineworks.signed_by"
"""Tags of a version."""


def statements_in(tags: Mapping[str, str], slot: Slot) -> Statements | None:
    """Return the slot's statements in the registered model's tags, None where there are none. Raises `TrustError`."""
    named = {name: text for name, text in tags.items() if name.startswith(slot.statement_tags)}
    if not named:
        return None
    read = sorted((_statement(name, text) for name, text in named.items()), key=lambda s: s.number)
    check_order(read, f"registered model '{slot.model}'")
    return Statements(tuple(read))


def _statement(name: str, text: str) -> Statement:
    statement = typed(Statement, parse_document(text.encode(errors="surrogatepass"), f"tag {name}"), f"tag {name}")
    if name.rpartition(".")[2] != str(statement.number):
        raise TrustError(f"tag {name}: holds {statement.name}", hint=RELEASE_AGAIN)
    return statement


def read_shipped_passport(folder: Path, trust: Trust) -> Passport:
    """Return the passport next to a released engine after checking its signature, its verdict, and that nothing else
    is in the folder. Raises `TrustError`."""
    passport = read_passport(folder / PASSPORT_FILE, trust)
    refuse_verdict(passport)
    refuse_strangers(folder, passport.files)
    return passport


def check_shipped_statements(folder: Path, passport: Passport, trust: Trust) -> Statements | None:
    """Compare the statements next to an engine with its passport where keys are required. Raises `TrustError`."""
    statements = read_statements(folder)
    if trust.required:
        _check(statements, passport, trust, str(folder))
    return statements


def check_role(
    registered: RegisteredModel, version: ModelVersion, passport: Passport, trust: Trust, *, alias: str | None = None
) -> Statements | None:
    """Compare a version's engine with what the registry says of it. Returns the statements of its slot.

    alias: by which the version was asked for. Where keys are required, the newest statement must be for this engine.
    Raises `TrustError`.
    """
    what, tags = f"version {version.version} of '{registered.name}'", dict(version.tags)
    engine, signature = passport.facts.engine, passport.facts.signature
    issued = {
        ENGINE: engine.id, ENGINE_DIGEST: engine.sha256, RECIPE: passport.facts.recipe.name, VERDICT: passport.verdict,
        PRECISION: engine.precision, TARGET: engine.target.name, SIGNED_BY: signature.key_id if signature else "",
    }  # fmt: skip
    needed = (ENGINE, ENGINE_DIGEST)
    agree(
        f"{what}: by its tag it",
        {name: (tags.get(name, ""), stated) for name, stated in issued.items() if name in tags or name in needed},
    )
    slot = Slot(registered.name, engine.target.name, engine.precision)
    champions = {name for name in version.aliases if name.startswith("champion-")} | ({alias} if alias else set())
    if wrong := sorted(champions - {slot.alias("champion"), slot.alias("candidate")}):
        raise TrustError(
            f"{what}: is asked for as {wrong[0]}, and holds {passport.id}", hint="another engine was put in its place"
        )
    statements = statements_in(registered.tags, slot)
    if trust.required:
        _check(statements, passport, trust, what, model=registered.name)
    return statements


def version_in(folder: Path) -> tuple[RegisteredModel, ModelVersion] | None:
    """Return the registered model and version that MLflow fetched the engine's folder from, as its own file beside
    `MLmodel` names them; None for a model that comes from no registry. Raises `TrustError` where the registry does not
    know them."""
    place = folder.parent.parent / REGISTERED
    if not place.exists():
        return None
    named = _read_yaml(place)
    model, version = str(named.get("model_name", "")), str(named.get("model_version", ""))
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        client = MlflowClient()
        return client.get_registered_model(model), client.get_model_version(model, version)
    except (MlflowException, OSError) as error:
        raise TrustError(
            f"{place}: the role of version {version} of '{model}' is not known: {str(error).splitlines()[0]}",
            hint="let MLFLOW_TRACKING_URI name its registry; keys are required, so it is not loaded without",
        ) from None


REGISTERED = "registered_model_meta"


def _check(statements: Statements | None, passport: Passport, trust: Trust, what: str, model: str = "") -> None:
    if statements is None:
        raise TrustError(f"{what}: holds no statement of a release", hint=RELEASE_AGAIN)
    newest = statements.newest
    check_statement(newest, passport, trust, what)
    if model and newest.model != model:
        raise TrustError(f"{what}: {newest.name} is of another registered model", hint=RELEASE_AGAIN)
    read_known_statements().accept(statements, what)


def check_mlmodel(root: Path) -> None:
    """Raises `TrustError` where a model's folder lets MLflow run anything but our loader. root: holds `MLmodel`."""
    place = root / "MLmodel"
    flavors = _read_yaml(place).get("flavors")
    flavor = flavors.get("python_function") if isinstance(flavors, Mapping) and len(flavors) == 1 else None
    items = flavor.items() if isinstance(flavor, Mapping) else ()
    named = {k: v for k, v in items if k not in HARMLESS and (k, v) != ("code", None)}
    if named != {"loader_module": LOADER, "data": f"data/{FOLDER}"}:
        raise TrustError(
            f"{place}: names something else than Engineworks' loader, which MLflow would run",
            hint="it was altered: do not load it",
        )


HARMLESS = frozenset({"env", "python_version", "streamable"})


def _read_yaml(place: Path) -> Mapping[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    data = read_bytes(place)
    if len(data) > LARGEST_YAML_BYTES:
        raise TrustError(f"{place}: is larger than any that Engineworks writes", hint=RELEASE_AGAIN)
    try:
        read = YAML(typ="safe", pure=True).load(data.decode())
    except (YAMLError, ValueError, RecursionError) as error:
        raise TrustError(f"{place}: cannot be read: {str(error).splitlines()[0]}", hint=RELEASE_AGAIN) from None
    return read if isinstance(read, Mapping) else {}


LARGEST_YAML_BYTES = 2**20
