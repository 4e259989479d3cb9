"""`engineworks limits`: limits that follow from a recipe's own measurements, as a change of the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engineworks.commands.options import Json, OneRecipe, Only, Quiet, Verbose, any_of
from engineworks.report import terminal
from engineworks.settings import read_settings

if TYPE_CHECKING:
    from engineworks.commands.limits.measurement import Limits


def limits(
    recipe: OneRecipe,
    only: Only = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write the limits into the recipe; default: print the diff.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Suggest limits from what was measured, each with its reason.

    Only engines that this host runs are measured; the limits of others stay.

    Examples:
        engineworks limits recipes/digits.yaml
        engineworks limits recipes/digits.yaml --write
    """
    from engineworks.commands.limits.measurement import measure_limits
    from engineworks.commands.recipe_patch import print_difference
    from engineworks.report.progress_text import progress

    settings = read_settings()
    with progress(settings, quiet=quiet or as_json, verbose=verbose):
        found = measure_limits(recipe, settings, only=any_of(only))
    diff = _patch(found, recipe, write=write)
    if as_json:
        values = [suggestion.to_json() for suggestion in found.suggestions]
        document = {"limits": values, "silent": list(found.silent), "diff": diff, "written": write and bool(diff)}
        terminal.print_json(document)
        return
    for s in found.suggestions:
        before = "none" if s.before is None else f"{s.before:g}"
        terminal.echo(f"{s.precision}: {s.limit} {s.value:g} (now {before}): {s.reason}")
    for line in found.silent:
        terminal.echo(line)
    if not found.suggestions:
        terminal.echo("no limit changes")
    print_difference(diff, found.loaded.shown, written=write)


def _patch(found: Limits, recipe: Path, *, write: bool) -> str:
    """Return the change as a unified diff, '' if there is none."""
    from engineworks.commands.recipe_patch import patch_recipe, with_change

    def change(document: Any) -> None:
        for suggestion in found.suggestions:
            given = document.setdefault("accuracy", {}).setdefault("limits", {})
            given.setdefault(suggestion.precision, {})[suggestion.limit] = suggestion.value

    shown = found.loaded.shown
    return patch_recipe(recipe, lambda text: with_change(text, change, shown, "its limits"), shown, write=write)
