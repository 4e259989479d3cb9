"""Passports: provenance records of one engine, signed if there is a key, each one file that travels with its bytes.

    {"passport": 1, "engine": {id, precision, target, sha256, files, …}, "recipe": {file, sha256, commit, …},
     "digests": {step: {file: sha256}}, "steps": {step: key}, "versions": …, "hardware": …, "profiles": …,
     "reports": {file: …}, "report_digests": {file: sha256}, "verdict": {…, checks}, "issued_at": …, "signature": …}

A passport is a result like others. The store holds it under the digest of its contents (without the hour), so that
the same engine with the same verdict has one passport.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from engineworks.builds.results import LONGEST_LIST, EngineResult
from engineworks.engines.engine_files import NOT_SHIPPED, PASSPORT_FILE, PASSPORT_STEP, PASSPORT_VERSION
from engineworks.engines.signing import Signer, read_signer
from engineworks.fingerprint import digest_of
from engineworks.host.file_digests import digest_file
from engineworks.host.git import Checkout
from engineworks.host.packages import installed_version
from engineworks.measure.accuracy_report import Accuracy
from engineworks.measure.champion_report import ChampionComparison
from engineworks.measure.latency_report import Latency
from engineworks.plan.plan import Plan
from engineworks.recipe.load import DEFAULTS_FILE, TARGETS_FILE
from engineworks.store.artifact import Artifact
from engineworks.store.store import Store


def recipe_origin(plan: Plan, checkout: Checkout | None = None) -> dict[str, Any]:
    """Return the origin of the recipe: its text's digests and its git commit; `changed`: files that the commit lacks.

    checkout: of the recipe's repository, if already examined.
    """
    loaded = plan.loaded
    folder = loaded.path.parent
    files = [f for f in (loaded.path, folder / DEFAULTS_FILE, folder / TARGETS_FILE) if f.is_file()]
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

    engine: must be built. origin: of `recipe_origin`.
    """
    body = passport_body(plan, engine, store, origin)
    document = {
        "step": PASSPORT_STEP, "version": PASSPORT_VERSION, "params": body, "inputs": {"build": engine.keys["build"]},
        "signed_by": signer.key_id if signer else "",
    }  # fmt: skip
    with store.writing(digest_of(document), document, f"{engine.id}/{PASSPORT_STEP}") as writing:
        if writing.hit is not None:
            store.note_latest(f"{engine.id}/{PASSPORT_STEP}", document)
            return writing.hit
        issued = {**body, "issued_at": datetime.now(UTC).isoformat(timespec="seconds")}
        text = json.dumps(signer.sign(issued) if signer else issued, indent=1, allow_nan=False)
        (writing.folder / PASSPORT_FILE).write_text(text + "\n", encoding="utf-8")
    assert writing.published is not None
    return writing.published


def with_passport(plan: Plan, engine: EngineResult, store: Store, origin: Mapping[str, Any]) -> EngineResult:
    """Return the engine with its passport, signed if the environment names a key; unbuilt engines get none."""
    if engine.path is None:
        return engine
    artifact = issue_passport(plan, engine, store, origin, read_signer())
    return replace(engine, passport=artifact.file(PASSPORT_FILE))


def passport_body(plan: Plan, engine: EngineResult, store: Store, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return a passport's contents without the hour and the signature, as JSON."""
    built, sidecar = store.require(engine.keys["build"]), engine.sidecar
    assert sidecar is not None  # it was built
    _, precision, target = engine.id.split("/")
    reports = _reports(engine, store)
    return {
        "passport": PASSPORT_VERSION,
        "engine": {
            "id": engine.id, "precision": precision,
            "target": {"name": target, **sidecar.target},
            "sha256": sidecar.sha256,
            "files": {n: dict(f) for n, f in built.files.items() if n not in NOT_SHIPPED},
            **sidecar.passport_facts(),
        },
        "recipe": dict(origin),
        "digests": {s.kind: dict(d) for s in plan.needed(engine.keys.values()) if (d := s.document["digests"])},
        "steps": dict(engine.keys),
        "versions": {"engineworks": installed_version("engineworks"), **sidecar.versions},
        "hardware": {a.step.rpartition("/")[2]: h for a in reports if (h := a.document.get("hardware"))},
        "profiles": sidecar.profiles,
        "serving": plan.loaded.recipe.performance.serving.model_dump(mode="json", exclude={"load"}),
        "reports": {n: _shortened(_report(engine, a, n)) for a in reports for n in a.files if n.endswith(".json")},
        "report_digests": {n: f["sha256"] for a in reports for n, f in a.files.items() if n not in NOT_SHIPPED},
        "verdict": {
            "verdict": engine.verdict, "waived": list(engine.waived), "checks": [c.to_json() for c in engine.checks],
        },
    }  # fmt: skip


def _reports(engine: EngineResult, store: Store) -> list[Artifact]:
    """Return the artifacts of the steps that ran the engine; none if nothing here could run it."""
    artifacts = (store.get(key) for kind, key in engine.keys.items() if kind != "build")
    return [artifact for artifact in artifacts if artifact is not None]


def _report(engine: EngineResult, artifact: Artifact, name: str) -> Any:
    """Return the report in a file; the engine already holds those that it was evaluated by."""
    champion = engine.champion_comparison
    limits_of = {
        ("compare", Accuracy.FILE): engine.accuracy.to_json() if engine.accuracy else None,
        ("measure", Latency.FILE): engine.latency.to_json() if engine.latency else None,
        ("compare-champion", ChampionComparison.FILE): champion.to_json() if champion else None,
    }
    known = limits_of.get((artifact.step.rpartition("/")[2], name))
    return artifact.read_json(name) if known is None else known


def _shortened(value: Any) -> Any:
    """Shorten JSON values, which are dicts and lists."""
    if isinstance(value, dict):
        return {k: _shortened(v) for k, v in value.items()}
    if isinstance(value, list):
        return {"values": len(value)} if len(value) > LONGEST_LIST else [_shortened(v) for v in value]
    return value
