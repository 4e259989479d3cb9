"""Engines as a Triton model repository."""

from __future__ import annotations

from pathlib import Path

from engineworks.release.passport import Passport
from engineworks.release.signing import Trust


def verify_package(folder: Path, trust: Trust) -> list[Passport]:
    raise NotImplementedError
