"""`engineworks release`: build, evaluate, and make engines that passed champions."""

from __future__ import annotations

import typer

from engineworks.commands.options import Json, OneOrMore, Only, Quiet, Verbose, any_of
from engineworks.report import terminal
from engineworks.settings import read_settings


def release(
    recipes: OneOrMore,
    only: Only = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Build and judge; engines that passed become champions in MLflow. Example: engineworks release recipes/digits.yaml

    Exits 1 if a gate failed, 3 if an engine could not be judged here or another release was faster.
    """
    from engineworks.builds.results import most_severe
    from engineworks.commands.plans import read_plans
    from engineworks.release.command import champions_of_recipes, release_plans

    settings = read_settings()
    champions = champions_of_recipes(recipes, settings)  # before planning: plans refer to them
    plans = read_plans(settings, recipes, any_of(only))
    with terminal.progress(quiet=quiet or as_json, verbose=verbose):
        results = release_plans(plans, settings, champions, only=any_of(only))
    if as_json:
        values = [r.to_json() for r in results]
        terminal.print_json(values[0] if len(values) == 1 else {"recipes": values})
    else:
        terminal.print_results([r.build for r in results], settings, quiet=True)
        for engine in (e for r in results for e in r.engines):
            terminal.say(f"{engine.id}: {engine.sentence}")
    raise typer.Exit(most_severe(r.exit_code() for r in results))
