"""What matters first: every engine's verdict with its sentences."""

from __future__ import annotations

from collections.abc import Iterator

from engineworks.ladder import ladder_words
from engineworks.report.blocks import Block, Bullets, Cell, Column, Fold, Log, Section, Table, Words, blocks_of, number, table
from engineworks.report.rows import HEADINGS, rows
from engineworks.results import BuildResult, EngineResult

NUMBERS = {"metric", "cosine", "p50 ms", "p99 ms", "samples/s", "MiB"}

_HINTS = {
    "metric": "task metric of the engine on the evaluation data", "cosine": "smallest over the outputs, to the fp32 reference",
    "p50 ms": "median latency at the recipe's first named shape", "p99 ms": "at the recipe's first named shape",
    "samples/s": "batch / median latency, at the recipe's first named shape", "MiB": "size of the engine",
}  # fmt: skip

GRAVITY = ("failed", "fail", "inconclusive", "unmeasured", "refused", "pass")
"""In which order the verdict column sorts."""


def verdict_section(result: BuildResult) -> Section:
    found = blocks_of(_table(result), _warnings(result), _folds(result))
    return Section("verdicts", "Engines and verdicts", found)


def _table(result: BuildResult) -> Table | None:
    columns = [Column(h, number=h in NUMBERS, hint=_HINTS.get(h, "")) for h in HEADINGS]
    found = []
    for row in rows(result):
        name, verdict, *figures, why = row.cells
        rank = GRAVITY.index(row.verdict) if row.verdict in GRAVITY else len(GRAVITY)
        cells = [Cell(name, code=True, link=f"#{anchor(name)}" if _has_fold(result, name) else "")]
        cells += [Cell(verdict, tone=row.verdict, sort=rank), *map(Cell, figures), Cell(why, tone="muted")]
        found.append(cells)
    return table(columns, found)


def _has_fold(result: BuildResult, engine: str) -> bool:
    return any(e.id == engine for e in result.engines)


def anchor(engine: str) -> str:
    """The id of the engine's own part of the page."""
    return "engine-" + "".join(c if c.isalnum() or c == "-" else "-" for c in engine)


def _warnings(result: BuildResult) -> Iterator[Block]:
    if result.warnings:
        yield Bullets(tuple(Words(line, tone="inconclusive", strong="note") for line in result.warnings))


def _folds(result: BuildResult) -> Iterator[Fold]:
    words = ladder_words(result.ladder)
    for engine in result.engines:
        found = blocks_of(_sentences(engine, words.get(engine.id, "")))
        if found:
            summary = (Cell(engine.id, code=True), Cell(engine.word, tone=engine.verdict), Cell(_count(engine), tone="muted"))
            dropped = engine.id in result.dropped
            yield Fold(summary, found, open=engine.verdict in ("fail", "failed") and not dropped)


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
    """(word, tone, how many) of the engines' words, gravest first; refused ones last."""
    words = [(e.word, e.verdict) for e in result.engines] + [("refused", "refused") for _ in result.refused]
    found = [(word, tone, words.count((word, tone))) for word, tone in dict.fromkeys(words)]
    return sorted(found, key=lambda f: GRAVITY.index(f[1]))


__all__ = ["anchor", "counts", "number", "verdict_section"]
