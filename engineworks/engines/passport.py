"""Passports, typed: reads and verifies them, and loads nothing else. `builds.passport` issues them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import StringConstraints

from engineworks.engines.backends.base import Serving
from engineworks.engines.engine_files import PASSPORT_FILE, PASSPORT_VERSION, check_files, refuse_strangers
from engineworks.engines.signing import Trust
from engineworks.engines.strict_json import Digest, parse_document, read_bytes, typed
from engineworks.errors import TrustError
from engineworks.tensors import TensorSpec
from engineworks.typed_json import Document


@dataclass(frozen=True)
class FileFacts(Document):
    """One file of an engine."""

    bytes: int
    sha256: Digest


@dataclass(frozen=True)
class TargetFacts(Document):
    """The target as the pipeline describes it, and its name."""

    name: str
    backend: str
    compute_capability: tuple[Annotated[str, StringConstraints(pattern=r"^[0-9]{1,3}\.[0-9]{1,2}$")], ...]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class TensorFacts(TensorSpec, Document):
    """An input or output."""


@dataclass(frozen=True)
class ServingFacts(Document):
    """How the engine is run, as `backends.base.Serving`."""

    cuda_graphs: bool
    kernels: Literal["lazy", "eager", "none"]


@dataclass(frozen=True)
class EngineFacts(Document):
    """The engine. sha256: of its main file. model_sha256: of the lowered ONNX file."""

    id: str
    precision: str
    target: TargetFacts
    sha256: Digest
    files: Mapping[str, FileFacts]
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    details: Mapping[str, Any]
    model_sha256: Digest


@dataclass(frozen=True)
class RecipeFacts(Document):
    """The recipe's text. files: sha256 by name. changed: files that the commit lacks."""

    name: str
    file: str
    sha256: Digest
    files: Mapping[str, Digest]
    commit: str
    changed: tuple[str, ...]
    resolved_sha256: Digest


@dataclass(frozen=True)
class VerdictFacts(Document):
    """The verdict with its checks as JSON, and the waivers that it rests on."""

    verdict: Literal["pass", "fail", "inconclusive", "unmeasured", "failed"]
    waived: tuple[str, ...]
    checks: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class SignatureFacts(Document):
    """A signature as `signing.Signer` writes it."""

    algorithm: str
    key_id: str
    value: str


@dataclass(frozen=True)
class PassportFacts(Document):
    """The contents of `passport.json`; `builds.passport` documents them."""

    passport: Literal[1]
    engine: EngineFacts
    recipe: RecipeFacts
    digests: Mapping[str, Mapping[str, str]]
    steps: Mapping[str, str]
    versions: Mapping[str, str | None]
    hardware: Mapping[str, Mapping[str, Any]]
    profiles: tuple[Mapping[str, Any], ...]
    serving: ServingFacts
    reports: Mapping[str, Any]
    report_digests: Mapping[str, Digest]
    verdict: VerdictFacts
    issued_at: str
    signature: SignatureFacts | None = None


@dataclass(frozen=True)
class Passport:
    """A passport as read. body: its JSON. source: the file. signed_by: id of the trusted key that signed it, '' if none
    did."""

    body: Mapping[str, Any]
    source: Path
    signed_by: str = ""

    @cached_property
    def facts(self) -> PassportFacts:
        """Return the typed contents. Raises `TrustError` where the JSON is not as documented."""
        return typed(PassportFacts, self.body, str(self.source))

    @property
    def id(self) -> str:
        return self.facts.engine.id

    @property
    def sha256(self) -> str:
        return self.facts.engine.sha256

    @property
    def target(self) -> TargetFacts:
        return self.facts.engine.target

    @property
    def serving(self) -> Serving:
        """Return how the engine was compared and measured, and should be run."""
        return Serving(self.facts.serving.cuda_graphs, self.facts.serving.kernels)

    @property
    def verdict(self) -> str:
        return self.facts.verdict.verdict

    @property
    def files(self) -> Mapping[str, str]:
        """Return sha256 by file name."""
        return {name: facts.sha256 for name, facts in self.facts.engine.files.items()}

    @property
    def main(self) -> str:
        """Return the name of the engine's main file."""
        return next(name for name, digest in self.files.items() if digest == self.sha256)

    def summary(self) -> str:
        """Summarize the passport in a line."""
        signature = self.facts.signature
        signed = f"signed by {self.signed_by}" if self.signed_by else "not signed"
        if signature and not self.signed_by:
            signed = f"signature of {signature.key_id} not checked: no trusted keys are set"
        verdict = f"{self.verdict} (waived)" if self.facts.verdict.waived else self.verdict
        return f"{self.id}: the bytes are those of its passport, {signed}; verdict {verdict}"


def read_passport(path: Path, trust: Trust) -> Passport:
    """Read a passport and check its signature where one is required. Raises `TrustError`."""
    data = read_bytes(path, missing="an engine without a passport is not loaded")
    return passport_from_json(parse_document(data, str(path)), path, trust)


def passport_from_json(body: Mapping[str, Any], path: Path, trust: Trust) -> Passport:
    """Return the parsed passport, as `read_passport`."""
    if body.get("passport") != PASSPORT_VERSION:
        raise TrustError(f"{path}: is no passport of version {PASSPORT_VERSION}", hint="fetch the engine again")
    passport = Passport(body, path, trust.check(body, str(path)))
    engine = passport.facts.engine
    if engine.id != f"{passport.facts.recipe.name}/{engine.precision}/{engine.target.name}":
        raise TrustError(f"{path}: names the engine {engine.id}, but another recipe, precision or target")
    if engine.sha256 not in passport.files.values():
        raise TrustError(f"{path}: does not list its engine {engine.sha256[:12]}… among the files")
    return passport


def refuse_verdict(passport: Passport, *, accepted: tuple[str, ...] = ("pass",)) -> None:
    """Raises `TrustError` unless the passport's verdict is one of `accepted`."""
    if passport.verdict not in accepted:
        raise TrustError(
            f"{passport.source}: the verdict of {passport.id} is {passport.verdict}", hint="do not use this engine"
        )


def verify_folder(folder: Path, trust: Trust) -> Passport:
    """Return the passport in the engine's folder after checking its signature and the digest of every file.

    Raises `TrustError`: no passport, unsigned, signed by an unknown key, altered, or other files in the folder.
    """
    return verify_files(folder, read_passport(folder / PASSPORT_FILE, trust))


def verify_files(folder: Path, passport: Passport) -> Passport:
    """Compare the engine's files in the folder with the passport. Raises `TrustError`."""
    check_files(folder, passport.files, against="its passport")
    refuse_strangers(folder, passport.files)
    return passport
