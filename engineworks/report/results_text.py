"""Results of builds on a terminal: the verdict first, then the table, the reasons, and what to do next."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engineworks.report.terminal import echo, echo_wrapped, print_table, style_of
from engineworks.report.words import many

if TYPE_CHECKING:
    from engineworks.builds.results import BuildResult, EngineResult
    from engineworks.report.blocks import Table
    from engineworks.settings import Settings

OPTIONAL = ("cosine", "p99 ms", "MiB", "samples/s", "p50 ms", "metric")
"""Columns that a narrow terminal leaves out, the first one first."""

NAMED = 6
"""Engines that share reasons and are named; the others are counted."""


def print_results(
    results: Sequence[BuildResult], settings: Settings, *, quiet: bool, every: bool = False, verbose: bool = False
) -> None:
    """The answer, the engines, the reasons, then what to do next.

    every: a row for each engine, also those that did not run here. verbose: also how to open MLflow's and Prefect's
    pages.
    """
    for result in results:
        _print_result(result, every)
    if not quiet and results:
        _print_next(results)
    if verbose:
        _print_pages(settings)


def _print_result(result: BuildResult, every: bool) -> None:
    from engineworks.report.answer import may_ship
    from engineworks.report.grouping import groups, never_run, refused_groups

    echo_wrapped(f"Ship {result.recipe}? {may_ship(result).text}", "  ")
    shown = [e for e in result.engines if every or not never_run(e)]
    _print_engines(result, shown, every)
    for line in _reasons(result, shown):
        echo_wrapped(line, "    ")
    if every:
        for group in refused_groups(result.refused):
            echo_wrapped(group.message, "  ")
    elif grouped := groups(result):
        for group in grouped[:-1]:
            echo_wrapped(group.message, "  ")
        echo_wrapped(f"{grouped[-1].message}; --all lists them", "  ")
    for engine in result.engines:
        _print_values(engine)
    for note in _notes_of_engines(result):
        echo_wrapped(f"note: {note}", "  ")
    _print_ladder(result)
    _print_comparison(result)
    _print_notes(result)


def _print_notes(result: BuildResult) -> None:
    steps = result.steps
    echo(
        f"{result.recipe}: {many(steps.run, 'step')} run, {steps.reused} reused, {steps.failed} failed, "
        f"in {result.seconds:.1f} s"
    )
    if result.not_selected:
        echo(f"{result.recipe}: {many(len(result.not_selected), 'engine')} not part of this run (--only)")
    for line in result.warnings:
        echo_wrapped(f"note: {line}", "  ")
    if result.report:
        echo(f"report: {result.report}")


def _print_engines(result: BuildResult, shown: Sequence[EngineResult], every: bool) -> None:
    """One row per engine, the most severe verdict first; the reasons follow the table."""
    from engineworks.report.palette import SEVERITY
    from engineworks.report.rows import COLUMNS

    columns = COLUMNS[:-1]
    listed = sorted(shown, key=lambda engine: SEVERITY.index(engine.verdict))
    rows = [[column.text(engine) for column in columns] for engine in listed]
    verdicts = [engine.verdict for engine in listed] + ["refused"] * len(result.refused if every else ())
    if every:
        rows += [[refused.id, "refused", *[""] * (len(columns) - 2)] for refused in result.refused]
    if rows:
        styles = {i: style for i, verdict in enumerate(verdicts) if (style := style_of(verdict))}
        print_table([column.name for column in columns], rows, optional=OPTIONAL, styles=styles)


def _reasons(result: BuildResult, shown: Sequence[EngineResult]) -> Iterator[str]:
    """Every check that did not pass. Engines with the same reasons share them."""
    from engineworks.measure.ladder.ladder import ladder_statements
    from engineworks.report.rows import grouped_reasons

    statements = ladder_statements(result.ladder)
    by_reasons: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for engine in shown:
        found = grouped_reasons(engine)
        if found and engine.id in statements:
            found = (statements[engine.id], *found)
        if found:
            by_reasons.setdefault((engine.status, found), []).append(engine.id)
    for (status, found), engines in by_reasons.items():
        more = f" and {len(engines) - NAMED} more" if len(engines) > NAMED else ""
        yield f"{', '.join(engines[:NAMED])}{more}: {status}"
        yield from (f"  - {line}" for line in found)


def _print_ladder(result: BuildResult) -> None:
    """One table per target of `precisions: auto`; the chosen candidate stands out."""
    from engineworks.report.ladder import ladder_tables

    for shown in ladder_tables(result.ladder):
        echo_wrapped(f"{result.recipe}, ladder of {shown.ladder.message}", "  ")
        _print_shown(shown.table)
        for note in shown.notes:
            echo_wrapped(note)


def _print_comparison(result: BuildResult) -> None:
    """One table per named shape; the fastest correct row stands out."""
    from engineworks.report.comparison import comparison_tables

    for table in comparison_tables(result.comparison):
        echo(f"{result.recipe}, {table.title}")
        _print_shown(table)


def _print_values(engine: EngineResult) -> None:
    """What the verdict table does not hold: the device's own time, streams and the batch sweep."""
    from engineworks.report import values

    latency = values.latency_table(engine) if values.has_device_measurements(engine) else None
    for table in (latency, values.streams_table(engine), values.sweep_table(engine)):
        if table is not None:
            echo(engine.id)
            _print_shown(table)
            if table.below:
                echo_wrapped(table.below)


def _notes_of_engines(result: BuildResult) -> Iterator[str]:
    """The first complaint about a device, with the number of others; how engines ran differently from the recipe."""
    from engineworks.report.values import complaints

    every = [f"{engine.id}: {text}" for engine in result.engines for text in complaints(engine)]
    if every:
        yield every[0] + (f" ({len(every) - 1} more in the report)" if len(every) > 1 else "")
    by_note: dict[str, list[str]] = {}
    for engine in result.engines:
        for note in engine.latency.notes if engine.latency else ():
            by_note.setdefault(note, []).append(engine.id)
    yield from (f"{', '.join(engines)}: {note}" for note, engines in by_note.items())


def _print_shown(table: Table) -> None:
    """A table of a report; the marked row stands out."""
    print_table(table.headings, ([cell.text for cell in row] for row in table.rows), marked=table.marked)


def _print_next(results: Sequence[BuildResult]) -> None:
    """Three commands to type next."""
    result = results[0]
    bad = [engine.id for r in results for engine in r.decisive if engine.verdict in ("fail", "failed", "inconclusive")]
    some = next((engine.id for engine in result.engines if engine.verdict == "pass"), result.recipe)
    second = ("why", bad[0], "inputs that changed") if bad else ("inspect", some, "inputs, profiles, digest")
    engineworks = _program("engineworks")
    commands = (
        (f"{engineworks} report {result.recipe} --open", "all metrics and checks"),
        (f"{engineworks} {second[0]} {second[1]}", second[2]),
        (f"{engineworks} init model.onnx", "a recipe for your model"),
    )
    width = max(len(command) for command, _ in commands)
    echo("next:")
    for command, meaning in commands:
        echo_wrapped(f"  {command:{width}}  {meaning}", " " * 6)


def _print_pages(settings: Settings) -> None:
    from engineworks.tracking.runs import open_tracking

    mlflow = open_tracking(settings.artifacts, settings.tracking_uri).ui_hint()
    home = f"DO_NOT_TRACK=true PREFECT_SERVER_ANALYTICS_ENABLED=false PREFECT_HOME={settings.artifacts / 'prefect'}"
    typed = f" {_program('mlflow')} "
    echo(f"MLflow's pages (http://127.0.0.1:5000):  {mlflow.replace(' mlflow ', typed)}")
    echo(f"Prefect's pages (http://127.0.0.1:4200): {home} {_program('prefect')} server start")


def _program(name: str) -> str:
    """The command to type: a path where the virtual environment is not active."""
    if shutil.which(name):
        return name
    path = Path(sys.executable).parent / name
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
