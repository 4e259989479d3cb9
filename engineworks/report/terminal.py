"""Tables and progress on a terminal, plain lines in a pipe or in CI. stdout holds results only."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import sys
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineworks.builds.progress import listen

if TYPE_CHECKING:
    from rich.console import Console

    from engineworks.builds.results import BuildResult, EngineResult
    from engineworks.plan.plan import Plan, Step
    from engineworks.report.blocks import Table
    from engineworks.settings import Settings

PIPE_WIDTH = 200
"""Characters of a line where no terminal sets the width."""

STYLES = {
    "pass": "green", "fail": "bold red", "failed": "bold red", "unmeasured": "yellow", "inconclusive": "yellow",
    "refused": "yellow", "cached": "green", "to do": "cyan", "needs another GPU": "yellow", "not needed": "dim",
}  # fmt: skip


def say(line: str) -> None:
    """One plain line on stdout."""
    sys.stdout.write(line + "\n")


def say_valid(file: str, precisions: int, targets: int) -> None:
    say(f"{file}: {many(precisions, 'precision')} × {many(targets, 'target')}, valid")


def many(count: int, thing: str) -> str:
    """'1 step', '2 steps'."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")


def print_error(message: str) -> None:
    """An error on stderr, verbatim: rich would read brackets in paths as markup."""
    sys.stderr.write(f"error: {message}\n" if "\n" not in message else f"{message}\n")


def print_plans(plans: Sequence[Plan], *, quiet: bool, verbose: bool) -> None:
    console = _console()
    for plan in plans:
        states = [step.state for step in plan.steps.values()]
        if not quiet:
            table = _table("step", "state", "why")
            for step in plan.steps.values():
                if step.state != "not needed" or verbose:
                    key = f" [{step.key[:12]}]" if verbose else ""
                    table.add_row(step.id + _escape(key), _styled(step.state), _escape(step.reason))
            for refused in plan.refused:
                table.add_row(refused.id, _styled("refused"), _escape(refused.sentence))
            console.print(table)
        say(
            f"{plan.recipe}: {many(len(plan.engines), 'engine')}, {many(states.count('to do'), 'step')} to do, "
            f"{states.count('cached')} cached, {states.count('needs another GPU')} for other hardware, "
            f"{many(len(plan.refused), 'engine')} refused"
        )


def print_results(results: Sequence[BuildResult], settings: Settings, *, quiet: bool) -> None:
    """The table of engines and verdicts, then where everything is."""
    from engineworks.report.rows import HEADINGS, NUMBERS, rows

    console = _console()
    for result in results:
        table = _table(*HEADINGS, numbers=NUMBERS)
        for row in rows(result):
            table.add_row(row.cells[0], _styled(row.verdict, row.cells[1]), *map(_escape, row.cells[2:]))
        console.print(table)
        for engine in result.engines:
            _print_figures(console, engine)
        _print_ladder(console, result)
        _print_comparison(console, result)
        steps = result.steps
        say(
            f"{result.recipe}: {many(steps.run, 'step')} run, {steps.reused} reused, {steps.failed} failed, "
            f"in {result.seconds:.1f} s"
        )
        if result.not_selected:
            say(f"{result.recipe}: {many(len(result.not_selected), 'engine')} not part of this run (--only)")
        for line in result.warnings:
            say(f"note: {line}")
        if result.report:
            say(f"report: {result.report}")
    if not quiet:
        _print_pages(settings)


def _print_ladder(console: Console, result: BuildResult) -> None:
    """One table per target of `precisions: auto`; the chosen candidate stands out."""
    from engineworks.report.ladder import ladder_tables

    for shown in ladder_tables(result.ladder):
        say(f"{result.recipe}, ladder of {shown.ladder.sentence}")
        _print_shown(console, shown.table)
        for note in shown.notes:
            say(note)


def _print_comparison(console: Console, result: BuildResult) -> None:
    """One table per named shape; the fastest correct row stands out."""
    from engineworks.report.comparison import comparison_tables

    for table in comparison_tables(result.comparison):
        say(f"{result.recipe}, {table.title}")
        _print_shown(console, table)


def _print_figures(console: Console, engine: EngineResult) -> None:
    """What the verdict table does not hold: the device's own time, streams, the batch sweep, and warnings."""
    from engineworks.report import figures

    latency = figures.latency_table(engine) if figures.has_device_figures(engine) else None
    for table in (latency, figures.streams_table(engine), figures.sweep_table(engine)):
        if table is not None:
            say(engine.id)
            _print_shown(console, table)
            if table.below:
                say(table.below)
    for warning in figures.warnings(engine):
        say(f"note: {engine.id}: {warning}")


def _print_shown(console: Console, table: Table) -> None:
    """A table of a report; the marked row stands out."""
    from engineworks.report.rows import NUMBERS

    printed = _table(*table.headings, numbers=NUMBERS)
    for column, printed_column in zip(table.columns, printed.columns, strict=True):
        printed_column.justify = "right" if column.number else "left"
    for index, row in enumerate(table.rows):
        cells = (_escape(cell.text) for cell in row)
        printed.add_row(*cells, style="green" if index == table.marked else None)
    console.print(printed)


def _print_pages(settings: Settings) -> None:
    from engineworks.tracking.runs import open_tracking

    mlflow = open_tracking(settings.artifacts, settings.tracking_uri).ui_hint()
    home = f"DO_NOT_TRACK=true PREFECT_SERVER_ANALYTICS_ENABLED=false PREFECT_HOME={settings.artifacts / 'prefect'}"
    typed = f" {_program('mlflow')} "
    say(f"MLflow's pages (http://127.0.0.1:5000):  {mlflow.replace(' mlflow ', typed)}")
    say(f"Prefect's pages (http://127.0.0.1:4200): {home} {_program('prefect')} server start")


def _program(name: str) -> str:
    """The command to type: a path where the virtual environment is not active."""
    return name if shutil.which(name) else str(Path(sys.executable).parent / name)


def print_facts(facts: Mapping[str, Any]) -> None:
    texts = ((key, value if isinstance(value, str) else json.dumps(value)) for key, value in facts.items())
    print_table(("fact", "value"), texts)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Plain cells under their headings."""
    from engineworks.report.rows import NUMBERS

    table = _table(*headings, numbers=NUMBERS)
    for row in rows:
        table.add_row(*map(_escape, row))
    _console().print(table)


@contextlib.contextmanager
def progress(*, quiet: bool, verbose: bool) -> Iterator[None]:
    """Show the progress of builds on stderr: a bar on a terminal, lines elsewhere, nothing if quiet."""
    if quiet:
        yield
        return
    if sys.stderr.isatty() and not verbose:
        with _Bar() as bar:
            listen(bar)
            yield
    else:
        listen(_Lines(verbose))
        yield


class _Lines:
    """Plain lines for a log."""

    def __init__(self, verbose: bool) -> None:
        self._verbose = verbose
        self._lock = threading.Lock()

    def planned(self, plan: Plan) -> None:
        cached = sum(1 for s in plan.steps.values() if s.state == "cached")
        engines, steps = many(len(plan.engines), "engine"), many(len(plan.to_do), "step")
        self.say(f"{plan.recipe}: {engines}, {steps} to do, {cached} cached")

    def started(self, step: Step) -> None:
        if self._verbose:
            self.say(f"{step.id}: started ({step.reason})")

    def finished(self, step: Step, seconds: float) -> None:
        self.say(f"{step.id}: done in {seconds:.2f} s")

    def failed(self, step: Step, message: str) -> None:
        self.say(f"{step.id}: FAILED: {message}")

    def say(self, line: str) -> None:
        with self._lock:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()


class _Bar:
    """One progress bar per recipe, failures above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.fields[recipe]}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("{task.description}"), console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def planned(self, plan: Plan) -> None:
        self._tasks[plan.recipe] = self._progress.add_task("", total=len(plan.to_do), recipe=plan.recipe)

    def started(self, step: Step) -> None:
        self._progress.update(self._task(step), description=step.id)

    def finished(self, step: Step, seconds: float) -> None:
        self._advance(step)

    def failed(self, step: Step, message: str) -> None:
        self._advance(step)
        self._progress.console.print(f"[bold red]failed[/] {_escape(step.id)}: {_escape(message)}", highlight=False)

    def say(self, line: str) -> None:
        self._progress.console.print(_escape(line), highlight=False)

    def _advance(self, step: Step) -> None:
        """After the last step, the bar says that the build evaluates and records."""
        task = self._task(step)
        self._progress.update(task, advance=1)
        if self._progress.tasks[task].finished:
            self._progress.update(task, description="judging and recording")

    def _task(self, step: Step) -> Any:
        return self._tasks[step.id.partition("/")[0]]


def _console() -> Console:
    from rich.console import Console

    if sys.stdout.isatty():
        return Console()
    return Console(file=_Trimmed(), width=PIPE_WIDTH, no_color=True, force_terminal=False)


class _Trimmed(io.StringIO):
    """stdout without trailing blanks of a table's lines."""

    def write(self, text: str) -> int:
        sys.stdout.write(re.sub(r"[ \t]+(?=\n)", "", text))
        return len(text)

    def flush(self) -> None:
        sys.stdout.flush()


def _table(*headings: str, numbers: Collection[str] = ()) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        number = heading in numbers
        no_wrap = number or heading in ("engine", "step")
        table.add_column(heading, justify="right" if number else "left", no_wrap=no_wrap)
    return table


def _styled(status: str, shown: str = "") -> str:
    return f"[{STYLES[status]}]{shown or status}[/]" if status in STYLES else shown or status


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
