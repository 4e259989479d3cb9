"""`engineworks rollback`: restore the previous champions."""

from __future__ import annotations

from engineworks.commands.options import Json, OneRecipe, Only, any_of
from engineworks.report import terminal
from engineworks.settings import read_settings


def rollback(recipe: OneRecipe, only: Only = None, as_json: Json = False) -> None:
    """Move champions back to their previous versions.

    Examples:
        engineworks rollback recipes/digits.yaml --only '*/cpu'
    """
    from engineworks.recipe.load import load_recipe
    from engineworks.release.promotion import roll_back
    from engineworks.tracking.runs import open_tracking

    settings = read_settings()
    loaded = load_recipe(recipe, data_roots=settings.data_roots)
    registry = open_tracking(settings.artifacts, settings.tracking_uri).registry()
    moved = roll_back(loaded, registry, any_of(only))
    if as_json:
        terminal.print_json({"recipe": loaded.name, "releases": [m.to_json() for m in moved]})
        return
    for outcome in moved:
        terminal.echo(f"{outcome.id}: {outcome.message}")
