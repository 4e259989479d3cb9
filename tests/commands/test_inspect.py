"""What `inspect` says of sidecars that no builder wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typed_reports import sidecar

from engineworks.commands.inspect import inspect_path
from engineworks.errors import InputError


@pytest.mark.parametrize(
    "changes",
    [
        {"target": {}}, {"profiles": [{}]}, {"details": {"notes": 5}}, {"engine": "../e"}, {"engine": 5},
        {"sha256": "x"}, {"verdict": "pass"},
    ],
)  # fmt: skip
def test_a_sidecar_that_is_not_as_documented_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    known = sidecar().to_json()
    (tmp_path / known["engine"]).write_bytes(b"engine")
    (tmp_path / "engine.json").write_text(json.dumps({**known, **changes}), encoding="ascii")
    with pytest.raises(InputError, match=r"engine.json|the sidecar names"):
        inspect_path(tmp_path)
