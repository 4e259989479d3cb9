"""What matters first: every engine's verdict with its sentences."""

from __future__ import annotations

from collections.abc import Iterator

from engineworks.builds.results import BuildResult, EngineResult
from engineworks.measure.ladder.ladder import ladder_words
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
    Words,
    blocks_of,
    table,
)
from engineworks.report.palette import short
from engineworks.report.raw import attachments
from engineworks.report.rows import HEADINGS, notes_of, rows

NUMBERS = {"metric", "cosine", "p50 ms", "p99 ms", "samples/s", "MiB"}

_HINTS = {
    "metric": "task metric of the engine on the evaluation data",
    "cosine": "smallest over the outputs, to the fp32 reference",
    "p50 ms": "median latency at the recipe's first named shape", "p99 ms": "at the recipe's first named shape",
    "samples/s": "batch / median latency, at the recipe's first named shape", "MiB": "size of the engine",
}  # fmt: skip

GRAVITY = ("failed", "fail", "inconclusive", "unmeasured", "refused", "pass")
"""In which order the verdict column sorts."""


ROWS = ("failed", "fail", "inconclusive", "pass", "unmeasured")
"""In which order engines are listed; what a ladder chose comes before what it dropped."""


def verdict_section(result: BuildResult) -> Section:
    found = blocks_of(_table(result), _refused(result), _notes(result), _folds(result))
    return Section("verdicts", "Engines and verdicts", found, brief="Verdicts")


def _table(result: BuildResult) -> Table | None:
    columns = [Column(h, number=h in NUMBERS, hint=_HINTS.get(h, "")) for h in HEADINGS]
    dropped = result.dropped
    built = zip(result.engines, rows(result), strict=False)  # rows of refused ones follow
    listed = sorted(built, key=lambda pair: (pair[0].id in dropped, ROWS.index(pair[0].verdict)))
    found = []
    for engine, row in listed:
        _, verdict, *figures, why = row.cells
        cells = [Cell(short(engine.id), code=True, link=f"#{anchor(engine.id)}")]
        cells += [Cell(verdict, tone=row.verdict, sort=GRAVITY.index(row.verdict)), *map(Cell, figures)]
        found.append([*cells, Cell(why, tone="muted")])
    return table(columns, found)


def _refused(result: BuildResult) -> Bullets | None:
    """Engines that share a reason share a line."""
    by_sentence: dict[str, list[str]] = {}
    for one in result.refused:
        by_sentence.setdefault(one.sentence, []).append(short(one.id))
    lines = [Words(f"{', '.join(ids)}: {why}", tone="refused", strong="refused") for why, ids in by_sentence.items()]
    return Bullets(tuple(lines)) if lines else None


def anchor(engine: str) -> str:
    """The id of the engine's own part of the page."""
    return "engine-" + "".join(c if c.isalnum() or c == "-" else "-" for c in engine)


def _notes(result: BuildResult) -> Bullets | None:
    notes = notes_of(result)
    return Bullets(tuple(Words(line, tone="inconclusive", strong="note") for line in notes)) if notes else None


def _folds(result: BuildResult) -> Iterator[Fold]:
    """What failed stands open; the checks of all others are one click away."""
    words = ladder_words(result.ladder)
    folds = [(e, _fold(e, words.get(e.id, ""))) for e in result.engines]
    loud = [fold for e, fold in folds if fold and e.verdict in ("failed", "fail") and e.id not in result.dropped]
    yield from loud
    rest = tuple(fold for _, fold in folds if fold and fold not in loud)
    if rest:
        what = "Checks of the other engines" if loud else "Every check, by engine"
        yield Fold((Cell(what), Cell(f"{len(rest)} engines", tone="muted")), rest)


def _fold(engine: EngineResult, ladder: str) -> Fold | None:
    files = tuple(attachments(engine))
    found = blocks_of(_sentences(engine, ladder), Files(files) if files else None)
    summary = (Cell(engine.id, code=True), Cell(engine.word, tone=engine.verdict), Cell(_count(engine), tone="muted"))
    return Fold(summary, found, open=True) if found else None


def _count(engine: EngineResult) -> str:
    if not engine.checks:
        return ""
    passed = sum(c.verdict == "pass" for c in engine.checks)
    return f"{passed} of {len(engine.checks)} checks passed"


def _sentences(engine: EngineResult, ladder: str) -> Iterator[Block]:
    if engine.failure:
        where = engine.failure.step or "a step"
        yield Words(engine.failure.message, tone="failed", strong=f"failed in {where}")
        if engine.failure.log.strip():
            yield Log(engine.failure.log.rstrip("\n"))
    if ladder:
        yield Words(ladder, tone="muted", strong="ladder")
    order = sorted(engine.checks, key=lambda c: GRAVITY.index(c.verdict))
    if order:
        yield Bullets(tuple(Words(f"{c.name}: {c.words}", tone=c.verdict, strong=c.verdict) for c in order))


def counts(result: BuildResult) -> list[tuple[str, str, int]]:
    """(word, tone, how many) of the engines' words, most severe first; refused ones last."""
    words = [(e.word, e.verdict) for e in result.engines] + [("refused", "refused") for _ in result.refused]
    found = [(word, tone, words.count((word, tone))) for word, tone in dict.fromkeys(words)]
    return sorted(found, key=lambda f: [*ROWS, "refused"].index(f[1]))
