"""Builds what a commit changed: only the recipes whose fingerprints differ from those at a revision.

The event `recipe.committed` starts it (docs/recipes-as-code.md), with the revision before the push as `since`.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from engineworks.plan.changed import only_glob
from flows.build_recipe import build_recipe
from flows.outcomes import ended
from tasks.find_changed import find_changed


@flow(name="on-commit", flow_run_name="since {since}")
def on_commit(since: str, recipes: list[str] | None = None) -> State[dict[str, str]]:
    """Build the recipes that changed since the git revision `since`, of these files or, by default, of recipes/.

    Engines of a recipe that are as they were are left out where one glob says so; else the store answers for them.
    The flow ends failed if a recipe could not be read or built, or a gate failed; none of them stops the others.
    Its result: the outcome by recipe.
    """
    changes = find_changed(since, recipes)
    messages = {recipe.file: f"not read: {'; '.join(recipe.reasons)}" for recipe in changes.broken}
    failed = bool(messages)
    for recipe in changes.to_build:
        state: State[Any] = build_recipe(recipe.file, only_glob(recipe), return_state=True)
        failed |= not state.is_completed()
        messages[recipe.file] = f"{state.name}: {state.message}"
    message = "; ".join(f"{file}: {text}" for file, text in messages.items())
    nothing = f"nothing changed since {changes.since} ({len(changes.recipes)} recipes)"
    return ended(message or nothing, messages, good=not failed)
