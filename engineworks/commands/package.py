"""`engineworks package`: engines that passed, as a Triton model repository."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from engineworks.commands.options import Champions, Json, OneRecipe, Only, any_of
from engineworks.report import terminal
from engineworks.settings import read_settings

if TYPE_CHECKING:
    from engineworks.package.package import PackagedEngine
    from engineworks.release.sources import LeftOut


Out = Annotated[Path, typer.Option("--out", help="Folder to write; an older package there is replaced.")]
Unmeasured = Annotated[
    bool, typer.Option("--unmeasured", help="Also engines that nothing here could run; their passports say so.")
]


def package(
    recipe: OneRecipe,
    out: Out,
    only: Only = None,
    champions: Champions = False,
    unmeasured: Unmeasured = False,
    as_json: Json = False,
) -> None:
    """Write a Triton model repository of the engines that passed.

    The models are for the server that 'make triton' installs or ENGINEWORKS_TRITON names, else for NVIDIA's container.
    Exits 1 or 3 if an engine was left out because it failed or has no verdict.

    Examples:
        engineworks package recipes/digits.yaml --only '*/cpu' --out models
    """
    from engineworks.builds.results import most_severe

    models, engines, left = _package(recipe, out, any_of(only), champions=champions, unmeasured=unmeasured)
    if as_json:
        left_out = [{"id": engine.id, "verdict": engine.verdict, "message": engine.message} for engine in left]
        packaged = [e.passport.id for e in engines]
        terminal.print_json(
            {"out": str(out), "models": [m.name for m in models], "engines": packaged, "left_out": left_out}
        )
    else:
        for model in models:
            terminal.echo(f"{model}")
        for engine in left:
            terminal.echo(f"left out: {engine.id} {engine.message}")
    raise typer.Exit(most_severe(engine.exit_code for engine in left))


def _package(
    recipe: Path, out: Path, only: str | None, *, champions: bool, unmeasured: bool
) -> tuple[list[Path], list[PackagedEngine], list[LeftOut]]:
    """Write the package; returns its models' directories, its engines, and those left out."""
    from engineworks.commands.plans import read_plans
    from engineworks.host.triton import find_server
    from engineworks.package.package import write_package
    from engineworks.package.sources import note_package
    from engineworks.recipe.load import load_recipe
    from engineworks.release.sources import built_engines, champion_engines, require_some
    from engineworks.serving.server import available_backends
    from engineworks.store.leases import Lease
    from engineworks.store.shared import open_store
    from engineworks.tracking.runs import open_tracking

    settings = read_settings()
    store = open_store(settings)
    with TemporaryDirectory(prefix="engineworks-") as folder:
        if champions:
            loaded = load_recipe(recipe, data_roots=settings.data_roots)
            registry = open_tracking(settings.artifacts, settings.tracking_uri).registry()
            engines, left = champion_engines(loaded, registry, only, Path(folder))
        else:
            (plan,) = read_plans(settings, [recipe], only)
            loaded, _lease = plan.loaded, Lease(store.root, plan.steps)  # until the note keeps them
            engines, left = built_engines(plan, store, unmeasured=unmeasured)
        require_some(engines, left, lambda engine: f"{engine.id} {engine.message}")
        models = write_package(
            loaded, engines, out, available=available_backends(find_server()), echo=partial(typer.echo, err=True)
        )
        note_package(store.root, out, engines)
    return models, engines, left
