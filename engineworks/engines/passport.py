"""Reads and verifies passports, and loads nothing else. `builds.passport` issues them and documents their contents."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engineworks.engines.backends.base import Serving
from engineworks.engines.engine_files import PASSPORT_FILE, check_files
from engineworks.engines.engine_session import serving_from_json
from engineworks.engines.signing import SIGNATURE, Trust
from engineworks.errors import TrustError

VERSION = 1


STEP = "passport"


@dataclass(frozen=True)
class Passport:
    """A passport as read. source: the file. signed_by: id of the trusted key that signed it, '' if none did."""

    body: Mapping[str, Any]
    source: Path
    signed_by: str = ""

    @property
    def id(self) -> str:
        return str(self.body["engine"]["id"])

    @property
    def sha256(self) -> str:
        return str(self.body["engine"]["sha256"])

    @property
    def target(self) -> Mapping[str, Any]:
        """Return backend, compute_capability and options, as the pipeline describes targets."""
        target: Mapping[str, Any] = self.body["engine"]["target"]
        return target

    @property
    def serving(self) -> Serving:
        """Return how the engine was compared and measured, and should be run."""
        return serving_from_json(self.body["serving"])

    @property
    def files(self) -> Mapping[str, str]:
        """Return sha256 by file name."""
        return {name: facts["sha256"] for name, facts in self.body["engine"]["files"].items()}

    def sentence(self) -> str:
        """Summarize the passport in a line."""
        signature = self.body.get(SIGNATURE)
        signed = f"signed by {self.signed_by}" if self.signed_by else "not signed"
        if signature and not self.signed_by:
            signed = f"signature of {signature.get('key_id')} not checked: no trusted keys are set"
        verdict = self.body["verdict"]
        word = f"{verdict['verdict']} (waived)" if verdict["waived"] else verdict["verdict"]
        return f"{self.id}: the bytes are those of its passport, {signed}; verdict {word}"


def read_passport(path: Path, trust: Trust) -> Passport:
    """Read a passport and check its signature where one is required. Raises `TrustError`."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrustError(f"{path}: there is no passport", hint="an engine without one is not loaded") from None
    except (OSError, ValueError):
        raise TrustError(f"{path}: is not a readable passport", hint="fetch the engine again") from None
    if not isinstance(body, dict) or body.get("passport") != VERSION:
        raise TrustError(f"{path}: is no passport of version {VERSION}")
    signed_by = trust.check(body, str(path))
    if why := _malformed(body):
        raise TrustError(f"{path}: {why}")
    return Passport(body, path, signed_by)


def verify_folder(folder: Path, trust: Trust) -> Passport:
    """Return the passport in the engine's folder after checking its signature and the digest of every file.

    Raises `TrustError`: no passport, unsigned, signed by an unknown key, or altered.
    """
    return verify_files(folder, read_passport(folder / PASSPORT_FILE, trust))


def verify_files(folder: Path, passport: Passport) -> Passport:
    """Compare the engine's files in the folder with the passport. Raises `TrustError`."""
    check_files(folder, passport.files, against="its passport")
    return passport


def _malformed(body: Mapping[str, Any]) -> str:
    """Return why a passport is unusable, '' if it is not: an unsigned one may come from anywhere."""
    engine, verdict = body.get("engine"), body.get("verdict")
    if not isinstance(engine, dict) or not isinstance(verdict, dict) or "verdict" not in verdict:
        return "says nothing of an engine and its verdict"
    files, target = engine.get("files"), engine.get("target")
    if not isinstance(files, dict) or not isinstance(target, dict) or not all(map(_is_digest, files.values())):
        return "does not say what the engine's files and target are"
    if not {"backend", "compute_capability", "options"} <= target.keys():
        return "does not say what the engine's files and target are"
    sha256 = engine.get("sha256")
    if not isinstance(body.get("serving"), dict) or not {"cuda_graphs", "kernels"} <= body["serving"].keys():
        return "does not say how the engine is run"
    if not any(f["sha256"] == sha256 for f in files.values()) or str(engine.get("id")).count("/") != 2:
        return "does not name its engine"
    return ""


def _is_digest(facts: object) -> bool:
    return isinstance(facts, dict) and re.fullmatch("[0-9a-f]{64}", str(facts.get("sha256"))) is not None
