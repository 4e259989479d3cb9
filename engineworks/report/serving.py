"""Served packages: readiness, answers, load and what reloads leave behind, one row for each engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from engineworks.builds.results import BuildResult, EngineResult
from engineworks.report.blocks import Block, Cell, Column, Section, blocks_of, number, table


def serving_section(result: BuildResult) -> Section | None:
    """Return the section, None where nothing was served."""
    served = [(engine, engine.serving) for engine in result.engines if engine.serving]
    if not served:
        return None
    return Section("serving", "On a Triton server", blocks_of(_blocks(served)))


def _blocks(served: list[tuple[EngineResult, Mapping[str, Any]]]) -> Iterator[Block | None]:
    names = ("engine", "Triton's backend", "ready s", "answers", "equal", "queries/s", "p50 ms", "p99 ms", "errors")
    columns = [Column(name, number=name not in names[:2]) for name in names]
    below = "equal: answers with the engine's own bits; the rate that was answered, or the largest that was found."
    yield table(columns, [_row(engine.id, report) for engine, report in served], below=below)
    batches = [(engine.id, (report.get("load") or {}).get("batches", {})) for engine, report in served]
    rows = [[Cell(name, code=True), number(int(size), 0), number(n, 0)] for name, b in batches for size, n in b.items()]
    yield table(
        [Column("engine"), Column("batch", number=True), Column("executions", number=True)],
        rows,
        title="how requests were batched",
    )


def _row(name: str, report: Mapping[str, Any]) -> list[Cell]:
    answers, load = report["answers"].values(), report.get("load") or {}
    found = load.get("rate", load.get("completed_per_s"))
    return [
        Cell(name, code=True), Cell(str(report["backend"])), number(report["ready_s"], 2),
        number(sum(a["requests"] for a in answers), 0), number(sum(a["equal"] for a in answers), 0), number(found, 0),
        number(load.get("latency_ms_p50"), 2), number(load.get("latency_ms_p99"), 2), number(load.get("errors"), 0),
    ]  # fmt: skip
