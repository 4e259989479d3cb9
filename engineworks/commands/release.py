"""`engineworks release`: build, evaluate, and make engines that passed champions."""

from __future__ import annotations

import typer

from engineworks.commands.options import All, Json, OneOrMore, Only, Quiet, Verbose, any_of
from engineworks.report import terminal
from engineworks.settings import read_settings


def release(
    recipes: OneOrMore,
    only: Only = None,
    as_json: Json = False,
    every: All = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Build, then make the engines that passed champions in MLflow.

    Exits 1 if a gate failed, 3 if a measurement does not decide or another release was faster.

    Examples:
        engineworks release recipes/digits.yaml
    """
    from engineworks.builds.results import most_severe
    from engineworks.commands.plans import read_plans
    from engineworks.release.command import champions_of_recipes, release_plans
    from engineworks.report.progress_text import progress
    from engineworks.report.results_text import print_results

    settings = read_settings()
    champions = champions_of_recipes(recipes, settings)  # before planning: plans refer to them
    plans = read_plans(settings, recipes, any_of(only))
    with progress(settings, quiet=quiet or as_json, verbose=verbose):
        results = release_plans(plans, settings, champions, only=any_of(only))
    if as_json:
        values = [r.to_json() for r in results]
        terminal.print_json(values[0] if len(values) == 1 else {"recipes": values})
    else:
        print_results([r.build for r in results], settings, quiet=True, every=every, verbose=verbose)
        for engine in (e for r in results for e in r.engines):
            terminal.echo(f"{engine.id}: {engine.message}")
    raise typer.Exit(most_severe(r.exit_code() for r in results))
