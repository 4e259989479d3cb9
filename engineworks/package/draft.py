"""A passport for a package that is only tried: the real one holds the verdict, which the trial is part of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engineworks.engines.engine_files import NOT_SHIPPED, PASSPORT_VERSION
from engineworks.engines.sidecar import Sidecar
from engineworks.fingerprint import digest_of
from engineworks.host.file_digests import digest_file


def write_draft(path: Path, engine: Path, name: str, serving: Mapping[str, Any]) -> None:
    """Write a passport with the digests of the engine's files, without provenance, reports and verdict.

    engine: the folder of a build's artifact. name: the engine's id. serving: how it is run, as JSON.
    """
    sidecar, nothing = Sidecar.read(engine), digest_of("")
    recipe, precision, target = name.split("/")
    files = [file for file in engine.iterdir() if file.name not in NOT_SHIPPED]
    body = {
        "passport": PASSPORT_VERSION,
        "engine": {
            "id": name, "precision": precision, "target": {"name": target, **sidecar.target},
            "sha256": sidecar.sha256,
            "files": {f.name: {"bytes": f.stat().st_size, "sha256": digest_file(f)} for f in files},
            **sidecar.passport_facts(),
        },
        "recipe": {
            "name": recipe, "file": "", "sha256": nothing, "files": {}, "commit": "", "changed": [],
            "resolved_sha256": nothing,
        },
        "digests": {}, "steps": {}, "versions": sidecar.versions, "hardware": {}, "profiles": sidecar.profiles,
        "serving": serving, "reports": {}, "report_digests": {},
        "verdict": {"verdict": "unmeasured", "waived": [], "checks": []}, "issued_at": "",
    }  # fmt: skip
    path.write_text(json.dumps(body), encoding="utf-8")
