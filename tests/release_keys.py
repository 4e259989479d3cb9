"""A key pair for one test: passports are signed with it, and nothing else is trusted."""

from __future__ import annotations

from pathlib import Path

import pytest

from engineworks.engines.signing import Trust, read_trust, write_key_pair


def trust_mine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Trust:
    private, public, _ = write_key_pair(folder / "keys", "mine")
    monkeypatch.setenv("ENGINEWORKS_SIGNING_KEY", str(private))
    monkeypatch.setenv("ENGINEWORKS_TRUSTED_KEYS", str(public))
    return read_trust()
