"""Every engine's verdict with its reasons; failures come first."""

from __future__ import annotations

from collections.abc import Iterator

from engineworks.builds.results import BuildResult, EngineResult
from engineworks.measure.ladder.ladder import ladder_statements
from engineworks.report.blocks import (
    Block,
    Bullets,
    Cell,
    Column,
    Files,
    Fold,
    Log,
    Section,
    Table,
    Text,
    blocks_of,
    table,
)
from engineworks.report.grouping import groups, never_run
from engineworks.report.palette import SEVERITY, short
from engineworks.report.raw import attachments
from engineworks.report.rows import COLUMNS, notes_of, rows
from engineworks.report.words import many

ROWS = ("failed", "fail", "inconclusive", "pass", "unmeasured")
"""The order in which engines are listed; the engines that a ladder dropped come last."""


def verdict_section(result: BuildResult, *, files: bool = True) -> Section:
    """files: with the reports and raw samples within the page, which only HTML shows."""
    blocks = blocks_of(_table(result), _groups(result), _notes(result), _folds(result, files))
    return Section("verdicts", "Engines and verdicts", blocks, brief="Verdicts")


def _table(result: BuildResult) -> Table | None:
    columns = [Column(column.name, number=column.number, hint=column.hint) for column in COLUMNS]
    dropped = result.dropped
    built = zip(result.engines, rows(result), strict=False)  # rows of refused ones follow
    run = (pair for pair in built if not never_run(pair[0]))
    listed = sorted(run, key=lambda pair: (pair[0].id in dropped, ROWS.index(pair[0].verdict)))
    cells_of_rows = []
    for engine, row in listed:
        _, verdict, *values, why = row.cells
        cells = [Cell(short(engine.id), code=True, link=f"#{anchor(engine.id)}")]
        cells += [Cell(verdict, tone=row.verdict, sort=SEVERITY.index(row.verdict)), *map(Cell, values)]
        cells_of_rows.append([*cells, Cell(why, tone="muted")])
    return table(columns, cells_of_rows)


def _groups(result: BuildResult) -> Bullets | None:
    """Engines that no host has run, and refused ones: those that share a reason share a line."""
    lines = []
    for group in groups(result):
        names = "" if group.verdict == "refused" else f": {', '.join(map(short, group.engines))}"
        lines.append(Text(group.message + names, tone=group.verdict, strong=group.verdict))
    return Bullets(tuple(lines)) if lines else None


def anchor(engine: str) -> str:
    """The id of the engine's own part of the page."""
    return "engine-" + "".join(c if c.isalnum() or c == "-" else "-" for c in engine)


def _notes(result: BuildResult) -> Bullets | None:
    notes = notes_of(result)
    return Bullets(tuple(Text(line, tone="inconclusive", strong="note") for line in notes)) if notes else None


def _folds(result: BuildResult, files: bool) -> Iterator[Fold]:
    """Failed engines are open; the checks of the others are one click away."""
    statements = ladder_statements(result.ladder)
    folds = [(e, _fold(e, statements.get(e.id, ""), files)) for e in result.engines if not never_run(e)]
    loud = [fold for e, fold in folds if fold and e.verdict in ("failed", "fail") and e.id not in result.dropped]
    yield from loud
    rest = tuple(fold for _, fold in folds if fold and fold not in loud)
    if rest:
        what = "Checks of the other engines" if loud else "Every check, by engine"
        yield Fold((Cell(what), Cell(many(len(rest), "engine"), tone="muted")), rest)


def _fold(engine: EngineResult, ladder: str, with_files: bool) -> Fold | None:
    files = tuple(attachments(engine)) if with_files else ()
    blocks = blocks_of(_messages(engine, ladder), Files(files) if files else None)
    summary = (Cell(engine.id, code=True), Cell(engine.status, tone=engine.verdict), Cell(_count(engine), tone="muted"))
    return Fold(summary, blocks, open=True) if blocks else None


def _count(engine: EngineResult) -> str:
    if not engine.checks:
        return ""
    passed = sum(c.verdict == "pass" for c in engine.checks)
    return f"{passed} of {len(engine.checks)} checks passed"


def _messages(engine: EngineResult, ladder: str) -> Iterator[Block]:
    if engine.failure:
        where = engine.failure.step or "a step"
        yield Text(engine.failure.message, tone="failed", strong=f"failed in {where}")
        if engine.failure.log.strip():
            yield Log(engine.failure.log.rstrip("\n"))
    if ladder:
        yield Text(ladder, tone="muted", strong="ladder")
    order = sorted(engine.checks, key=lambda c: SEVERITY.index(c.verdict))
    if order:
        yield Bullets(tuple(Text(f"{c.name}: {c.text}", tone=c.verdict, strong=c.verdict) for c in order))


def counts(result: BuildResult) -> list[tuple[str, str, int]]:
    """(status, tone, count) of the engines, most severe first; refused ones last."""
    statuses = [(e.status, e.verdict) for e in result.engines] + [("refused", "refused") for _ in result.refused]
    counted = [(status, tone, statuses.count((status, tone))) for status, tone in dict.fromkeys(statuses)]
    return sorted(counted, key=lambda entry: [*ROWS, "refused"].index(entry[1]))
