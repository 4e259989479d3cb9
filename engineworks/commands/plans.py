"""Recipe files → plans, for every command that builds or releases."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engineworks.plan.plan import Plan
    from engineworks.recipe.smoke import Mode
    from engineworks.settings import Settings


def read_plans(
    settings: Settings, recipes: Sequence[Path], only: str | None, compare: str | None = None, mode: Mode = "full"
) -> list[Plan]:
    """Plan the recipes, in their order. Raises `RecipeError`, or `TargetError` where `only` selects nothing."""
    from engineworks.engines.peers import read_names
    from engineworks.host.file_digests import FileDigests
    from engineworks.plan.champion_lookup import find_champions
    from engineworks.plan.plan import plan_recipes
    from engineworks.recipe.load import load_recipes
    from engineworks.recipe.smoke import in_mode
    from engineworks.store.shared import open_store

    peers = read_names(compare)
    loaded = [in_mode(recipe, mode) for recipe in load_recipes(recipes, data_roots=settings.data_roots)]
    digests = FileDigests(settings.artifacts / "digests.db")
    champions = partial(find_champions, settings=settings)
    return plan_recipes(loaded, open_store(settings), digests, only=only, compare=peers, champions=champions)
