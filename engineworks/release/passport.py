"""Passports: what is known of one engine, in one file that travels with its bytes and can be signed.

    {"passport": 1, "engine": {id, precision, target, sha256, files, …}, "recipe": {file, sha256, commit, …},
     "digests": {step: {file: sha256}}, "steps": {step: key}, "versions": …, "hardware": …, "profiles": …,
     "reports": {file: …}, "report_digests": {file: sha256}, "verdict": {…, checks}, "issued_at": …, "signature": …}

A passport is a result like others: it lies in the store under the digest of all that it says (but the hour), so that
the same engine with the same verdict has one passport.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engineworks.backends.base import Serving
from engineworks.engine_files import NOT_SHIPPED, PASSPORT_FILE, check_files
from engineworks.errors import TrustError
from engineworks.fingerprint import digest_file, digest_of, installed_version
from engineworks.git.state import Checkout
from engineworks.plan import Plan
from engineworks.plan.duel import DUEL_FILE
from engineworks.recipe.load import DEFAULTS_FILE, TARGETS_FILE
from engineworks.release.signing import SIGNATURE, Signer, Trust, read_signer
from engineworks.results import ACCURACY, LATENCY, LONGEST_LIST, EngineResult
from engineworks.steps import StepName
from engineworks.steps.engine_session import serving_from_json
from engineworks.store import Artifact, Store

VERSION = 1
STEP = "passport"


@dataclass(frozen=True)
class Passport:
    """A passport that was read. source: the file. signed_by: id of the trusted key that signed it, '' if none did."""

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
        """backend, compute_capability and options, as the pipeline knows targets."""
        target: Mapping[str, Any] = self.body["engine"]["target"]
        return target

    @property
    def serving(self) -> Serving:
        """How the engine was compared and measured, and is to be run."""
        return serving_from_json(self.body["serving"])

    @property
    def files(self) -> Mapping[str, str]:
        """sha256 by file name."""
        return {name: facts["sha256"] for name, facts in self.body["engine"]["files"].items()}

    def sentence(self) -> str:
        """What the passport says, in a line."""
        signature = self.body.get(SIGNATURE)
        signed = f"signed by {self.signed_by}" if self.signed_by else "not signed"
        if signature and not self.signed_by:
            signed = f"signature of {signature.get('key_id')} not checked: no trusted keys are set"
        verdict = self.body["verdict"]
        word = f"{verdict['verdict']} (waived)" if verdict["waived"] else verdict["verdict"]
        return f"{self.id}: the bytes are those of its passport, {signed}; verdict {word}"


def recipe_origin(plan: Plan, checkout: Checkout | None = None) -> dict[str, Any]:
    """Where the recipe comes from: its text's digests and its git commit; `changed`: files that the commit lacks.

    checkout: of the recipe's repository, if it was looked at already.
    """
    loaded = plan.loaded
    beside = (loaded.path, loaded.path.parent / DEFAULTS_FILE, loaded.path.parent / TARGETS_FILE)
    files = [file for file in beside if file.is_file()]
    git = checkout or Checkout(loaded.root)
    return {
        "name": loaded.name,
        "file": loaded.path.relative_to(loaded.root).as_posix(),
        "sha256": digest_file(loaded.path),
        "files": {file.name: digest_file(file) for file in files},
        "commit": git.commit,
        "changed": git.changed(files),
        "resolved_sha256": digest_of(loaded.recipe.model_dump(mode="json")),
    }


def issue_passport(
    plan: Plan, engine: EngineResult, store: Store, origin: Mapping[str, Any], signer: Signer | None
) -> Artifact:
    """Write the engine's passport into the store, signed if there is a key; the artifact holds `passport.json`.

    engine: one that was built. origin: of `recipe_origin`.
    """
    body = passport_body(plan, engine, store, origin)
    document = {
        "step": STEP, "version": VERSION, "params": body, "inputs": {"build": engine.keys["build"]},
        "signed_by": signer.key_id if signer else "",
    }  # fmt: skip
    with store.writing(digest_of(document), document, f"{engine.id}/{STEP}") as writing:
        if writing.hit is not None:
            store.note_latest(f"{engine.id}/{STEP}", document)
            return writing.hit
        issued = {**body, "issued_at": datetime.now(UTC).isoformat(timespec="seconds")}
        text = json.dumps(signer.sign(issued) if signer else issued, indent=1, allow_nan=False)
        (writing.folder / PASSPORT_FILE).write_text(text + "\n", encoding="utf-8")
    assert writing.published is not None
    return writing.published


def with_passport(plan: Plan, engine: EngineResult, store: Store, origin: Mapping[str, Any]) -> EngineResult:
    """The engine with its passport, signed if the environment names a key; one that was not built gets none."""
    if engine.path is None:
        return engine
    artifact = issue_passport(plan, engine, store, origin, read_signer())
    return replace(engine, passport=artifact.file(PASSPORT_FILE))


def passport_body(plan: Plan, engine: EngineResult, store: Store, origin: Mapping[str, Any]) -> dict[str, Any]:
    """All that a passport says but the hour and the signature, as JSON."""
    built = store.require(engine.keys["build"])
    _, precision, target = engine.id.split("/")
    reports = _reports(engine, store)
    return {
        "passport": VERSION,
        "engine": {
            "id": engine.id, "precision": precision,
            "target": {"name": target, **engine.sidecar["target"]},
            "sha256": engine.sidecar["sha256"],
            "files": {n: dict(f) for n, f in built.files.items() if n not in NOT_SHIPPED},
            **{k: engine.sidecar[k] for k in ("inputs", "outputs", "details", "model_sha256")},
        },
        "recipe": dict(origin),
        "digests": {kind: dict(d) for kind, document in _documents(plan, engine) if (d := document["digests"])},
        "steps": dict(engine.keys),
        "versions": {"engineworks": installed_version("engineworks"), **engine.sidecar["versions"]},
        "hardware": {a.step.rpartition("/")[2]: h for a in reports if (h := a.document.get("hardware"))},
        "profiles": engine.sidecar["profiles"],
        "serving": plan.loaded.recipe.performance.serving.model_dump(mode="json"),
        "reports": {n: _shortened(_report(engine, a, n)) for a in reports for n in a.files if n.endswith(".json")},
        "report_digests": {n: f["sha256"] for a in reports for n, f in a.files.items() if n not in NOT_SHIPPED},
        "verdict": {
            "verdict": engine.verdict, "waived": list(engine.waived), "checks": [c.to_json() for c in engine.checks],
        },
    }  # fmt: skip


def read_passport(path: Path, trust: Trust) -> Passport:
    """Read a passport and check its signature where one is asked for. Raises `TrustError`."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrustError(f"{path}: there is no passport", hint="an engine without one is not loaded") from None
    except (OSError, ValueError):
        raise TrustError(f"{path}: is no passport that can be read", hint="get the engine anew") from None
    if not isinstance(body, dict) or body.get("passport") != VERSION:
        raise TrustError(f"{path}: is no passport of version {VERSION}")
    signed_by = trust.check(body, str(path))
    if why := _malformed(body):
        raise TrustError(f"{path}: {why}")
    return Passport(body, path, signed_by)


def verify_folder(folder: Path, trust: Trust) -> Passport:
    """The passport in the engine's folder, after its signature and the digest of every file were checked.

    Raises `TrustError`: no passport, unsigned, a stranger's, or altered.
    """
    return verify_files(folder, read_passport(folder / PASSPORT_FILE, trust))


def verify_files(folder: Path, passport: Passport) -> Passport:
    """Check the engine's files in the folder against the passport. Raises `TrustError`."""
    check_files(folder, passport.files, against="its passport")
    return passport


def _documents(plan: Plan, engine: EngineResult) -> list[tuple[StepName, Mapping[str, Any]]]:
    """The documents of all steps that the engine stands on, in the plan's order."""
    pending, seen = [*engine.keys.values()], set[str]()
    while pending:
        key = pending.pop()
        if key not in seen:
            seen.add(key)
            pending.extend(plan.steps[key].inputs.values())
    return [(step.kind, step.document) for key, step in plan.steps.items() if key in seen]


def _reports(engine: EngineResult, store: Store) -> list[Artifact]:
    """The artifacts of the steps that ran the engine; none of an engine that nothing here could run."""
    found = (store.get(key) for kind, key in engine.keys.items() if kind != "build")
    return [artifact for artifact in found if artifact is not None]


def _report(engine: EngineResult, artifact: Artifact, name: str) -> Any:
    """What the file says, at most without raw samples. What the engine was judged by is known already."""
    judged_by = {
        ("compare", ACCURACY): engine.accuracy, ("measure", LATENCY): engine.latency, ("duel", DUEL_FILE): engine.duel,
    }  # fmt: skip
    known = judged_by.get((artifact.step.rpartition("/")[2], name))
    return artifact.read_json(name) if known is None else known


def _shortened(value: Any) -> Any:
    """Of what JSON gave: dicts and lists."""
    if isinstance(value, dict):
        return {k: _shortened(v) for k, v in value.items()}
    if isinstance(value, list):
        return {"values": len(value)} if len(value) > LONGEST_LIST else [_shortened(v) for v in value]
    return value


def _malformed(body: Mapping[str, Any]) -> str:
    """What makes a passport unusable, '' if nothing does: nobody signed may mean that anybody wrote it."""
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
