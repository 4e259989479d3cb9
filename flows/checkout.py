"""Locates the recipes for a worker's flow runs: a Prefect pull step that contains no host's path."""

from __future__ import annotations

import os
from pathlib import Path

from engineworks.errors import InputError


def enter_checkout() -> dict[str, str]:
    """Go to ENGINEWORKS_ROOT, by default the checkout whose flows are installed. Raises `InputError` if it is none.

    Prefect's own step takes a path that is the same on every host. A relative one would be relative to the run's
    temporary folder.
    """
    root = Path(os.environ.get("ENGINEWORKS_ROOT") or Path(__file__).parents[1]).expanduser().resolve()
    if not (root / "recipes").is_dir():
        raise InputError(f"{root} holds no recipes/", hint="set ENGINEWORKS_ROOT where the worker is started")
    os.chdir(root)
    return {"directory": str(root)}
