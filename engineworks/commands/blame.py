"""`engineworks blame`: which node of which model an engine's failure comes from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engineworks.commands.completion import engine_ids, recipe_files
from engineworks.commands.options import Json, Quiet, Verbose
from engineworks.commands.plans import read_plans
from engineworks.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_PASSED, InputError, TargetError
from engineworks.report import terminal
from engineworks.settings import Settings, read_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engineworks.builds.blame_result import Blame
    from engineworks.builds.results import BuildResult
    from engineworks.plan.plan import Plan


def blame(
    engine: Annotated[str, typer.Argument(help="An engine's id, e.g. digits/int8/cpu.", autocompletion=engine_ids)],
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", help="Its recipe file; default: found in recipes/.", autocompletion=recipe_files),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find the nodes that an engine's failure comes from, and write a folder that shows it.

    Exits 1 if a fault was found, 0 if none was, 3 if this host cannot tell.

    Examples:
        engineworks blame digits/int8/cpu
    """
    from engineworks.commands.blame_records import record_in_newest
    from engineworks.report.progress_text import progress

    settings = read_settings()
    try:
        plans = read_plans(settings, [recipe or _recipe_of(engine)], engine)
    except TargetError as error:  # it names the option --only, which this command does not have
        raise InputError(error.message.removeprefix("--only "), hint=error.hint) from None
    with progress(settings, quiet=quiet or as_json, verbose=verbose):
        (found,) = find_blames(plans, settings, [engine])
        record_in_newest(found, settings)
    if as_json:
        terminal.print_json(found.to_json())
    else:
        print_blame(found)
    codes = {"engine": EXIT_GATE_FAILED, "lowered": EXIT_GATE_FAILED, "nothing": EXIT_PASSED}
    raise typer.Exit(codes.get(found.culprit, EXIT_INCONCLUSIVE))


def find_blames(plans: Sequence[Plan], settings: Settings, engines: Sequence[str]) -> list[Blame]:
    """Search for each of these planned engines. Raises `InputError` for one that no plan has."""
    from engineworks.builds.blame import find_blame
    from engineworks.builds.progress import listener
    from engineworks.host.child import default_pool
    from engineworks.recipe.load import refuse_decoders
    from engineworks.store.shared import open_store

    refuse_decoders([plan.loaded for plan in plans if any(e.id in engines for e in plan.engines)], "blame")
    planned = {engine.id: (plan, engine) for plan in plans for engine in plan.engines}
    store, found = open_store(settings), []
    for name in engines:
        if name not in planned:
            raise InputError(f"{name}: its target cannot run it, so that nothing is built", hint="see engineworks plan")
        plan, engine = planned[name]
        found.append(find_blame(plan, engine, store, settings, default_pool(), listener().echo))
    return found


def blame_failures(plans: Sequence[Plan], results: Sequence[BuildResult], settings: Settings) -> list[Blame]:
    """Search for every engine of these builds that failed in its build or its comparison, and write it down there."""
    from engineworks.commands.blame_records import record_blames
    from engineworks.report.blame import FAILED

    decoders = {plan.recipe for plan in plans if plan.loaded.recipe.model.decoder is not None}
    results = [result for result in results if result.recipe not in decoders]
    failed = [e.id for result in results for e in result.engines if e.verdict in FAILED and "build" in e.keys]
    found = find_blames(plans, settings, failed)
    record_blames(results, found, settings)
    return found


def print_blame(found: Blame) -> None:
    from engineworks.report.blame import shown_error

    terminal.echo(found.message)
    for line in found.details:
        terminal.echo(f"  {line}")
    if found.pieces:
        rows = [(p["node"], *map(shown_error, (p["effect"], p["error"])), p["tensor"]) for p in found.pieces[:10]]
        terminal.print_table(("piece of the lowered model", "error of outputs", "own error", "tensor"), rows)
    if found.bundle:
        terminal.echo(f"  without Engineworks: cd {found.bundle} && python run.py")


def _recipe_of(engine: str) -> Path:
    """The recipe in recipes/ with the engine's name. Raises `InputError`."""
    from engineworks.errors import RecipeError
    from engineworks.recipe.load import find_recipes, load_recipe

    if engine.count("/") != 2:
        raise InputError(f"'{engine}' is no engine's id", hint="ids are recipe/precision/target, e.g. digits/int8/cpu")
    name = engine.partition("/")[0]
    paths = find_recipes(Path("recipes"))
    for path in sorted(paths, key=lambda p: p.stem != name):
        try:
            if load_recipe(path).recipe.recipe == name:
                return path
        except RecipeError:
            if path.stem == name:
                raise
    raise InputError(f"recipes/ has no recipe '{name}'", hint="name its file: --recipe FILE")
