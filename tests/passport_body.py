"""The least body of a passport that is read, for engines that no build made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def passport_body(engine: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body for an engine that passed. engine: its id, precision, target, sha256, files and tensors."""
    digest = "0" * 64
    recipe = {
        "name": engine["id"].partition("/")[0], "file": "recipes/tiny.yaml", "sha256": digest, "files": {}, "commit": "",
        "changed": [], "resolved_sha256": digest,
    }  # fmt: skip
    return {
        "passport": 1, "engine": {"details": {}, "model_sha256": digest, **engine}, "recipe": recipe, "digests": {},
        "steps": {}, "versions": {}, "hardware": {}, "profiles": [{}],
        "serving": {"cuda_graphs": False, "kernels": "lazy"}, "reports": {}, "report_digests": {},
        "verdict": {"verdict": "pass", "waived": [], "checks": []}, "issued_at": "2026-11-30T00:00:00+00:00",
    }  # fmt: skip
