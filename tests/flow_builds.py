"""Builds by the flow, in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from engineworks.builds.results import BuildResult


def build(recipe: str = "recipes/tiny.yaml", only: str | None = None, compare: str | None = None) -> BuildResult:
    """Build in the current folder, by the flow."""
    from flows.build_recipe import build_recipe
    from flows.outcomes import result_of

    state = build_recipe(recipe, only, compare, return_state=True)
    result = result_of(state)
    assert isinstance(result, BuildResult), result
    assert state.is_completed() == (result.exit_code() == 0)
    return result


def enter(root: Path, patch: pytest.MonkeyPatch) -> None:
    for name in ("ENGINEWORKS_ARTIFACTS", "ENGINEWORKS_STORE", "ENGINEWORKS_DATA_ROOTS", "MLFLOW_TRACKING_URI"):
        patch.delenv(name, raising=False)
    patch.chdir(root)
