"""Checks of `engineworks verify`: an engine by id, file or folder, a package, or a passport with its engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engineworks.engines.engine_files import PASSPORT_FILE, PASSPORT_STEP
from engineworks.engines.passport import Passport, read_passport, refuse_verdict, verify_files, verify_folder
from engineworks.engines.signing import Trust, read_trust
from engineworks.engines.statements import check_statement, read_known_statements, read_statements
from engineworks.errors import InputError
from engineworks.fingerprint import digest_of
from engineworks.package.package import PACKAGE_FILE, verify_package
from engineworks.settings import Settings
from engineworks.store.shared import open_store
from engineworks.store.store import Store


def verify_anything(name: str, settings: Settings) -> list[Passport]:
    """Return the named passports after checking their signatures, their engines' bytes, and that none has failed.

    Raises `TrustError` for the first problem, `InputError` if the name matches nothing.
    """
    passports = _verify(name, settings)
    for passport in passports:
        refuse_verdict(passport, accepted=("pass", "unmeasured", "inconclusive"))
    return passports


def _verify(name: str, settings: Settings) -> list[Passport]:
    trust, path = read_trust(), Path(name)
    if not path.exists():
        if name.count("/") == 2:
            return [verify_built(name, open_store(settings), trust)]
        raise InputError(f"{name}: neither a file nor an engine's id", hint="ids are recipe/precision/target")
    if path.is_dir() and (path / PACKAGE_FILE).is_file():
        return verify_package(path, trust)
    folder = path if path.is_dir() else path.parent
    if (folder / PASSPORT_FILE).is_file():
        return [_verify_with_sidecar(folder, open_store(settings), trust)]
    return [_verify_stored(folder, open_store(settings), trust)]


def verify_built(engine: str, store: Store, trust: Trust) -> Passport:
    """Check the engine with this id that was evaluated last. Raises `TrustError`, or `InputError` if there is none."""
    document = store.latest(f"{engine}/{PASSPORT_STEP}")
    if document is None:
        raise InputError(f"{engine}: was not built here", hint="run 'engineworks build' first")
    return _verify_document(document, store, trust)


def _verify_document(document: Mapping[str, Any], store: Store, trust: Trust) -> Passport:
    """Check the stored passport with this document, and its engine in the store.

    Reads the folders as they are: a damaged engine must be reported, not silently rebuilt.
    """
    passport = read_passport(_folder(store, digest_of(document)) / PASSPORT_FILE, trust)
    return verify_files(_folder(store, document["inputs"]["build"]), passport)


def _folder(store: Store, key: str) -> Path:
    """Return the artifact's folder; fetch it if only the remote store has it."""
    if not store.place(key).exists():
        store.get(key)
    return store.place(key)


def _verify_with_sidecar(folder: Path, store: Store, trust: Trust) -> Passport:
    """Check a folder with a passport. Its engine lies next to the passport or, for a stored passport, in the store."""
    passport = read_passport(folder / PASSPORT_FILE, trust)
    built = store.place(passport.facts.steps.get("build", "none"))
    if not any((folder / name).exists() for name in passport.files) and folder.parent.parent == built.parent.parent:
        return verify_files(built, passport)
    passport = verify_folder(folder, trust)
    if trust.required and (statements := read_statements(folder)) is not None:
        check_statement(statements.newest, passport, trust, str(folder))
        read_known_statements().accept(statements, str(folder))
    return passport


def _verify_stored(folder: Path, store: Store, trust: Trust) -> Passport:
    """Check an engine in the store by its folder; its passport lies elsewhere in the store."""
    from engineworks.commands.inspect import inspect_path

    inspect_path(folder)  # reports what it is, if it is no engine
    for document in store.latest_of(PASSPORT_STEP):
        if store.place(document["inputs"]["build"]) == folder.resolve():
            return _verify_document(document, store, trust)
    raise InputError(f"{folder}: there is no passport of this engine", hint=f"no {PASSPORT_FILE} beside it")
