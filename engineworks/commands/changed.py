"""`engineworks changed`: recipes and engines that changed since a revision, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engineworks import errors
from engineworks.commands.options import Json, Quiet
from engineworks.report import terminal
from engineworks.settings import read_settings

if TYPE_CHECKING:
    from engineworks.plan.changed import Changes
    from engineworks.plan.differences import EngineChange

Recipes = Annotated[list[Path] | None, typer.Argument(help="Recipe files; default: every recipe in recipes/.")]
Since = Annotated[str, typer.Option("--since", help="A git revision: a commit, branch or tag.")]
SHOWN = 3
"""Maximum number of reasons shown per recipe; --json has all."""


def changed(since: Since, recipes: Recipes = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """List recipes and engines that changed since a Git revision.

    With -q: only the files of recipes that need a build, one per line.

    Examples:
        engineworks changed --since origin/main
    """
    from engineworks.plan.changed import find_changes

    named = [path for path in recipes or [] if not path.name.startswith("_")]
    changes = find_changes(since, named or None, read_settings())
    if as_json:
        terminal.print_json(changes.to_json())
    elif quiet:
        for recipe in changes.to_build:
            terminal.echo(recipe.file)
    else:
        _say(changes)
    if changes.broken:
        names = ", ".join(recipe.file for recipe in changes.broken)
        raise errors.InputError(f"not compared: {names}", hint="engineworks validate says what is wrong")


def _say(changes: Changes) -> None:
    for recipe in changes.recipes:
        terminal.echo(f"{recipe.file}: {recipe.state}" + _some(recipe.reasons))
        groups: dict[tuple[str, tuple[str, ...]], list[EngineChange]] = {}
        for engine in recipe.engines:
            if engine.state != "unchanged":
                groups.setdefault((engine.state, engine.reasons), []).append(engine)
        if recipe.state == "changed":
            for (state, reasons), engines in groups.items():
                terminal.echo(f"  {state}: {', '.join(e.id for e in engines)}" + _some(reasons))
    count = sum(len(recipe.to_build) for recipe in changes.recipes)
    recipes = f"{len(changes.to_build)} of {len(changes.recipes)} recipes"
    terminal.echo(f"since {changes.since} ({changes.commit[:12]}): {recipes}, {count} engines")
    if changes.assumed:
        names = ", ".join(changes.assumed[:SHOWN]) + (", …" if len(changes.assumed) > SHOWN else "")
        terminal.echo(f"not in git, counted as unchanged: {len(changes.assumed)} files ({names})")


def _some(reasons: tuple[str, ...]) -> str:
    shown = "; ".join(reasons[:SHOWN]) + (f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else "")
    return f": {shown}" if shown else ""
