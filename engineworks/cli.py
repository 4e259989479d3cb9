"""The command line: the only module that exits, and the outer boundary where every error becomes one message."""

from __future__ import annotations

import copy
import gc as garbage
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from engineworks import errors
from engineworks.commands.blame import blame as blame_engine
from engineworks.commands.blame import blame_failures, print_blame
from engineworks.commands.changed import changed
from engineworks.commands.completion import engine_ids, peers, recipe_files
from engineworks.commands.deploy import deploy
from engineworks.commands.generate import generate
from engineworks.commands.init.command import init
from engineworks.commands.keygen import keygen
from engineworks.commands.limits.command import limits
from engineworks.commands.list import list_things
from engineworks.commands.manual.command import manual
from engineworks.commands.options import All, Command, Json, OneOrMore, Only, Quiet, Verbose, any_of, finite
from engineworks.commands.package import package
from engineworks.commands.plans import read_plans
from engineworks.commands.rehearse import rehearse
from engineworks.commands.release import release
from engineworks.commands.report import report
from engineworks.commands.rollback import rollback
from engineworks.commands.sensitivity.command import sensitivity
from engineworks.commands.serve import serve
from engineworks.commands.sync import sync
from engineworks.commands.verify import verify
from engineworks.commands.why import why
from engineworks.host.disk import refusal_of_host
from engineworks.report import terminal
from engineworks.settings import read_settings

app = typer.Typer(
    name="engineworks",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED = "interrupted; what was finished is kept, and the next build goes on from there"

Recipes = Annotated[
    list[Path] | None,
    typer.Argument(help="Recipe files; default: every recipe in recipes/.", autocompletion=recipe_files),
]
Compare = Annotated[
    str | None,
    typer.Option(
        "--compare",
        help="Measure these next to the engines: pytorch, ort-cpu, ort-cuda (comma-separated).",
        autocompletion=peers,
    ),
]
Mode = Annotated[
    Literal["full", "smoke"],
    typer.Option("--mode", help="smoke: small samples, quick builds, for pull requests; engines are RECIPE@smoke/…"),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        terminal.echo(f"engineworks {version('engineworks')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Recipes in, inference engines out."""


@app.command()
def validate(
    recipes: Recipes = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of recipes instead.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check recipes and show every problem with its file:line:column.

    Examples:
        engineworks validate recipes/digits.yaml
        engineworks validate --schema
    """
    from engineworks.recipe.load import load_recipes
    from engineworks.recipe.schema import recipe_schema

    if schema:
        terminal.print_json(recipe_schema())
        return
    settings = read_settings()
    paths = _recipes(recipes)
    try:
        loaded = load_recipes(paths, data_roots=settings.data_roots)
    except errors.RecipeError as error:
        if as_json:
            terminal.print_json({"recipes": [], "problems": [_problem(p) for p in error.problems]})
            raise typer.Exit(error.exit_code) from None
        raise
    if as_json:
        terminal.print_json({"recipes": [r.name for r in loaded], "problems": []})
    elif not quiet:
        for recipe in loaded:
            terminal.echo_valid(recipe.shown, len(recipe.recipe.precisions), len(recipe.targets))


@app.command()
def plan(
    recipes: OneOrMore,
    only: Only = None,
    compare: Compare = None,
    mode: Mode = "full",
    as_json: Json = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit 1 if a step has to run.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As Markdown, for a comment on a change.")] = False,
    every: All = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show each step of a build: cached, or why it has to run.

    Examples:
        engineworks plan recipes/digits.yaml
        engineworks plan recipes/digits.yaml --only '*/*/cpu' --all
    """
    plans = read_plans(read_settings(), recipes, any_of(only), compare, mode)
    if as_json:
        terminal.print_json({"recipes": [p.to_json() for p in plans]})
    elif markdown:
        from engineworks.report.plans_table import render_plans

        terminal.echo(render_plans(plans).rstrip())
    else:
        from engineworks.report.plans_table import print_plans

        print_plans(plans, quiet=quiet, verbose=verbose, every=every)
    if exit_code and any(p.to_do for p in plans):
        raise typer.Exit(errors.EXIT_GATE_FAILED)


@app.command()
def build(
    recipes: OneOrMore,
    only: Only = None,
    compare: Compare = None,
    mode: Mode = "full",
    as_json: Json = False,
    require_verdict: Annotated[
        bool, typer.Option("--require-verdict", help="Exit 3 if an engine could not be measured here.")
    ] = False,
    blame: Annotated[
        bool, typer.Option("--blame", help="Find the nodes that each failure comes from, afterwards.")
    ] = False,
    every: All = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Build the engines, compare and measure them, and record their verdicts.

    Exits 1 if a gate failed, 3 if a measurement does not decide, 4 if a step failed.

    Examples:
        engineworks build recipes/digits.yaml
        engineworks build recipes/digits.yaml --only '*/int8/cpu' --compare ort-cpu
    """
    from engineworks.builds.command import build_plans
    from engineworks.builds.results import worst_exit_code
    from engineworks.report.progress_text import progress
    from engineworks.report.results_text import print_results

    settings = read_settings()
    plans = read_plans(settings, recipes, any_of(only), compare, mode)
    with progress(settings, quiet=quiet or as_json, verbose=verbose):
        results = build_plans(plans, settings, only=any_of(only))
        blames = blame_failures(plans, results, settings) if blame else []
    if as_json:
        values = [r.to_json() | ({"blame": [b.to_json() for b in blames]} if blame else {}) for r in results]
        terminal.print_json(values[0] if len(values) == 1 else {"recipes": values})
    else:
        print_results(results, settings, quiet=quiet, every=every, verbose=verbose)
        for found in blames:
            print_blame(found)
    raise typer.Exit(worst_exit_code(results, require_verdict=require_verdict))


@app.command()
def inspect(
    engine: Annotated[
        str,
        typer.Argument(
            help="An engine's id, its file, its folder in the store, or an ONNX file.", autocompletion=engine_ids
        ),
    ],
    as_json: Json = False,
) -> None:
    """Describe an engine or an ONNX file.

    Examples:
        engineworks inspect recipes/models/digits_cnn.onnx
        engineworks inspect recipes/models/digits_cnn.onnx --json
    """
    from engineworks.commands.inspect import facts_text, inspect_engine

    facts = inspect_engine(engine, read_settings())
    terminal.print_json(facts) if as_json else terminal.print_facts(facts_text(facts))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show what is installed, what this host can build and run, and which versions conflict.

    Examples:
        engineworks doctor
    """
    from engineworks.commands.doctor import examine, print_findings

    settings = read_settings()
    findings = examine(settings, Path("recipes"))
    terminal.print_json(findings.to_json()) if as_json else print_findings(findings)
    if findings.conflicts:
        raise typer.Exit(errors.EXIT_BAD_INPUT)


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; delete nothing.")] = False,
    keep_hours: Annotated[
        float, typer.Option("--keep-hours", callback=finite, help="Keep what is younger than this.")
    ] = 24.0,
    as_json: Json = False,
) -> None:
    """Delete results that no run in MLflow refers to, and what killed builds left.

    Examples:
        engineworks gc --dry-run
    """
    from engineworks.commands.garbage import collect_garbage

    freed = collect_garbage(read_settings(), keep_hours=keep_hours, dry_run=dry_run)
    if as_json:
        terminal.print_json(freed.to_json())
    else:
        terminal.echo(freed.summary())


app.command()(init)
app.command()(generate)
app.command()(why)
app.command()(limits)
app.command()(rehearse)
app.command("blame")(blame_engine)
app.command("list")(list_things)
app.command()(report)
app.command()(release)
app.command()(rollback)
app.command()(package)
app.command()(serve)
app.command()(verify)
app.command()(sync)
app.command()(keygen)
app.command()(changed)
app.command()(sensitivity)
app.command()(deploy)
app.command(hidden=True)(manual)
for command in app.registered_commands:
    command.cls = Command


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: run the command and exit with its code; users never see a traceback."""
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # looking for some reads all installed metadata
    garbage.set_threshold(200_000, 10, 100)  # imports leave no cycles; looking for some took 10% of a quick command
    code = run_command(arguments)
    garbage.freeze()  # the interpreter looks for cycles once more while it ends, for nothing
    sys.exit(code)


def run_command(arguments: Sequence[str] | None) -> int:
    try:
        code = _narrowed(arguments)(args=arguments, prog_name="engineworks", standalone_mode=False)
        if code == errors.EXIT_INTERRUPTED:  # how typer returns a KeyboardInterrupt
            terminal.print_error(INTERRUPTED)
        return code if isinstance(code, int) else 0
    except errors.EngineworksError as error:
        terminal.print_error(str(error))
        return error.exit_code
    except typer.Exit as exit_:
        return exit_.exit_code
    except (typer.Abort, KeyboardInterrupt):
        terminal.print_error(INTERRUPTED)
        return errors.EXIT_INTERRUPTED
    except BrokenPipeError:
        return errors.EXIT_UNREAD
    except SystemExit as exit_:  # typer makes an exit of 1, a failed gate, of a broken pipe
        if isinstance(exit_.__context__, BrokenPipeError):
            return errors.EXIT_UNREAD
        raise
    except Exception as error:  # noqa: BLE001 - the outer boundary
        return _last_word(error)


def _narrowed(arguments: Sequence[str] | None) -> typer.Typer:
    """The app with the command that is called alone: typer makes every parameter of all commands before it runs one."""
    called = next(iter(sys.argv[1:] if arguments is None else arguments), "")
    named = [c for c in app.registered_commands if called == (c.name or getattr(c.callback, "__name__", ""))]
    if not named:
        return app
    narrowed = copy.copy(app)
    narrowed.registered_commands = named
    return narrowed


def _last_word(error: Exception) -> int:
    """Print usage errors by their own method; what the host refuses is one sentence; anything else is an internal
    error, whose traceback goes to a file."""
    show = getattr(error, "show", None)
    if callable(show):
        show()
        return int(getattr(error, "exit_code", errors.EXIT_BAD_INPUT))
    try:
        artifacts = read_settings().artifacts
    except errors.InputError as gone:
        terminal.print_error(str(gone))
        return gone.exit_code
    if (refusal := refusal_of_host(error, artifacts)) is not None:
        terminal.print_error(str(refusal))
        return refusal.exit_code
    file = artifacts / "defects" / "last.txt"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        where = f"the traceback is in {file}"
    except OSError:
        where = "".join(traceback.format_exception_only(error)).strip()
    terminal.print_error(f"a defect of Engineworks: {type(error).__name__}: {error}; please report it, {where}")
    return errors.EXIT_DEFECT


def _recipes(given: list[Path] | None) -> list[Path]:
    from engineworks.recipe.load import find_recipes

    if given:  # a shell's recipes/*.yaml names _targets.yaml and _defaults.yaml too
        return [path for path in given if not path.name.startswith("_")] or given
    paths = find_recipes(Path("recipes"))
    if not paths:
        raise errors.InputError("there are no recipes in recipes/", hint="name the recipe files")
    return paths


def _problem(problem: errors.Problem) -> dict[str, Any]:
    place = problem.place
    return {
        "file": place.file, "line": place.line, "column": place.column,
        "message": problem.message, "hint": problem.hint,
    }  # fmt: skip
