"""The engines in one directory of a Triton package, each verified by its passport and the statements of its release.

1/passports/engines.json {"engines": 1, "model": the directory's name, "targets": {target: {"passport", "files",
                         "statements", "kernels"}}, "signature"}    files: the passport's name → path in the directory
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from engineworks.engines.backends import backend, backend_facts, runner
from engineworks.engines.backends.base import Session
from engineworks.engines.engine_files import SIDECAR_FILE, check_files, inside
from engineworks.engines.passport import Passport, SignatureFacts, read_passport, refuse_verdict
from engineworks.engines.signing import Signer, Trust, read_trust
from engineworks.engines.statements import Statements, check_statement, read_known_statements, read_statements_file
from engineworks.engines.strict_json import Digest, parse_document, read_bytes, typed
from engineworks.engines.verified import named, private_copy
from engineworks.errors import RunError, TargetError, TrustError
from engineworks.host.atomic_write import write_atomically
from engineworks.typed_json import Document

VERSION = "1"
"""Version of every model in the package: Triton counts versions per directory; passports hold Engineworks' versions."""

PASSPORTS = f"{VERSION}/passports"
"""In the version's directory: in the model's, Triton takes every other folder for a version and warns."""

EARLIER_PASSPORTS = "passports"
"""Where packages of Engineworks 0.1 have them."""

KERNELS = f"{VERSION}/kernels"
"""Folder with what an engine compiled for the GPU on which it was packaged, by target."""

ENGINES_FILE = "engines.json"

PACKAGE_AGAIN = "run 'engineworks package' again"


@dataclass(frozen=True)
class PackagedFiles(Document):
    """One engine in the directory. statements: file with those of its release, None for one that was not released.
    kernels: sha256 by path, of what it compiled where it was packaged."""

    passport: str
    files: Mapping[str, str]
    statements: str | None = None
    kernels: Mapping[str, Digest] = field(default_factory=dict)


@dataclass(frozen=True)
class PackagedEngines(Document):
    """The contents of `engines.json`. model: the directory's name."""

    engines: Literal[1]
    model: str
    targets: Mapping[str, PackagedFiles]
    signature: SignatureFacts | None = None

    def write(self, folder: Path, signer: Signer | None) -> None:
        """Write the file into the model's directory, signed if there is a key."""
        document = self.to_json()
        text = json.dumps(signer.sign(document) if signer else document, indent=1)
        (folder / PASSPORTS / ENGINES_FILE).write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class EngineInPackage:
    """An engine of the directory. files: the passport's name → the file and its sha256. kernels: each file with its
    sha256. statements: of its release, if any."""

    files: Mapping[str, tuple[Path, str]]
    passport: Passport
    statements: Statements | None = None
    kernels: Sequence[tuple[Path, str]] = ()


def model_name(model: str, passport: Passport) -> str:
    """Return the name of the directory that holds the engine: `<registered model>-<precision>-<target>`, for GPUs with
    the backend instead of the target. Raises `TargetError` for an unknown backend."""
    target = passport.target
    place = target.backend if backend(target.backend).TRAITS.on_gpu else target.name
    return f"{model}-{passport.facts.engine.precision}-{place}"


def verify_engines(model: Path, trust: Trust) -> list[EngineInPackage]:
    """Return every engine of the model's directory as `read_engines`, after checking its bytes too."""
    engines = read_engines(model, trust)
    for engine in engines:
        for file, digest in engine.files.values():
            check_files(file.parent, {file.name: digest}, against="its passport")
        for file, digest in engine.kernels:
            check_files(file.parent, {file.name: digest}, against=ENGINES_FILE)
    return engines


def read_engines(model: Path, trust: Trust, name: str = "") -> list[EngineInPackage]:
    """Return every engine of the model's directory after checking signatures, verdicts and roles. Raises `TrustError`.

    name: of the model that was asked for; by default, the directory's.
    """
    folders = (model / PASSPORTS, model / EARLIER_PASSPORTS)
    name, place = name or model.name, next((f for f in folders if f.is_dir()), folders[0]) / ENGINES_FILE
    document = parse_document(read_bytes(place, missing=PACKAGE_AGAIN), str(place))
    trust.check(document, str(place))
    if "engines" not in document:  # an earlier Engineworks named no model
        document = {"engines": 1, "model": name, "targets": document}
    described = typed(PackagedEngines, document, str(place))
    if described.model != name:
        raise TrustError(f"{place}: is of model {described.model}, not of {name}", hint="do not serve it")
    engines = [
        _read_engine(model, target, files, described.model, trust) for target, files in described.targets.items()
    ]
    if not engines:
        raise TrustError(f"{place}: names no engine", hint=PACKAGE_AGAIN)
    return engines


def _read_engine(model: Path, target: str, packaged: PackagedFiles, name: str, trust: Trust) -> EngineInPackage:
    passport = read_passport(inside(model, packaged.passport), trust)
    refuse_verdict(passport, accepted=("pass", "unmeasured"))
    try:
        fits = name.endswith(model_name("", passport)) and target == passport.target.name
    except TargetError as error:
        raise TrustError(f"{model}: {passport.id} cannot be checked: {error}") from None
    if not fits:
        raise TrustError(f"{model}: holds {passport.id} in place of target {target} of {name}", hint="do not serve it")
    missing = passport.files.keys() - packaged.files.keys() - {SIDECAR_FILE}
    if missing:
        raise TrustError(f"{model}: '{min(missing)}' of {passport.id} is missing", hint="fetch the package again")
    digests = {n: digest for n, digest in passport.files.items() if n in packaged.files}
    files = {n: (inside(model, packaged.files[n]), digest) for n, digest in digests.items()}
    kernels = [(inside(model, path), digest) for path, digest in packaged.kernels.items()]
    return EngineInPackage(files, passport, _statements(model, packaged, passport, name, trust), kernels)


def _statements(model: Path, packaged: PackagedFiles, passport: Passport, name: str, trust: Trust) -> Statements | None:
    if packaged.statements is None:
        return None
    path = inside(model, packaged.statements)
    statements = read_statements_file(path)
    if trust.required:
        check_statement(statements.newest, passport, trust, str(path))
        if model_name(statements.newest.model, passport) != name:
            raise TrustError(f"{path}: {statements.newest.name} is not of model {name}", hint="do not serve it")
        read_known_statements().accept(statements, str(path))
    return statements


def open_packaged(model: Path, name: str = "", *, cache: Path | None = None) -> Session:
    """Load the engine of the model's directory that this host can run. name: of the model, as for `read_engines`.
    cache: folder for its compiled kernels, which gets the package's where it has none.

    Raises `TrustError` before loading anything, `RunError` where this host can run none of them.
    """
    chosen = _choose(read_engines(model, read_trust(), name))
    target = chosen.passport.target
    backend = runner(target.backend)
    assert backend is not None  # it has no reason not to run
    described = chosen.passport.facts.engine
    known = (*described.inputs, *described.outputs)
    main = chosen.passport.main
    if cache is not None:
        _take_kernels(chosen, cache)
    with private_copy(chosen.files, main, "its passport") as path, named(path, chosen.files[main][0]):
        return backend.load(path, target.options, serving=chosen.passport.serving, cache=cache, known=known)


def _take_kernels(engine: EngineInPackage, cache: Path) -> None:
    """Copy the package's kernels into the cache, but for files that it has. Raises `TrustError` for altered ones."""
    for file, digest in engine.kernels:
        if not (cache / file.name).exists():
            with private_copy({file.name: (file, digest)}, file.name, ENGINES_FILE) as path:
                write_atomically(cache / file.name, path.read_bytes())


def _choose(engines: Sequence[EngineInPackage]) -> EngineInPackage:
    """Choose an engine, preferring one for exactly this GPU type to a portable one."""
    reasons = []
    for engine in sorted(engines, key=lambda e: len(e.passport.target.compute_capability)):
        target = engine.passport.target
        why = backend_facts(target.backend).why_not_run(target.compute_capability)
        if why is None:
            return engine
        reasons.append(f"{engine.passport.id}: {why}")
    raise RunError("no engine of the package can be run here:\n" + "\n".join(reasons))
