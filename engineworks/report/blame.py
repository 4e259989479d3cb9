"""Who is to blame: the node that a failure comes from, for engines where it was searched for."""

from __future__ import annotations

from collections.abc import Iterator

from engineworks.builds.blame_result import Blame
from engineworks.report.background import Background
from engineworks.report.blocks import Block, Bullets, Cell, Column, Section, Text, blocks_of, table

TONES = {"engine": "fail", "lowered": "fail", "nothing": "pass", "unknown": "unmeasured"}


def blame_section(background: Background) -> Section | None:
    blocks = blocks_of(block for blame in background.blames.values() for block in _blocks(blame))
    return Section("blame", "Where the failures come from", blocks, brief="Blame") if blocks else None


def _blocks(blame: Blame) -> Iterator[Block | None]:
    yield Text(blame.message, tone=TONES[blame.culprit], strong=blame.culprit)
    details = [*blame.details, *([f"Without Engineworks: run.py in {blame.bundle}"] if blame.bundle else [])]
    yield Bullets(tuple(Text(line, tone="muted") for line in details)) if details else None
    columns = [
        Column("piece of the lowered model"),
        Column("error of outputs", number=True, hint="of the fp32 model, with this piece alone lowered"),
        Column("own error", number=True),
        Column("tensor"),
        Column("nodes"),
    ]
    rows = [
        [
            Cell(p["node"], code=True), _error(p.get("effect")), _error(p["error"]), Cell(p["tensor"], code=True),
            Cell(", ".join(p["nodes"]), tone="muted"),
        ]
        for p in blame.pieces
    ]  # fmt: skip
    yield table(
        columns,
        rows,
        title="pieces of the lowered model, each alone on fp32's values; what ruins the outputs most is first",
    )


def _error(error: float | None) -> Cell:
    return Cell("" if error is None else shown_error(error), sort=error)


def shown_error(error: float) -> str:
    from engineworks.steps.blame.values import WORST

    return "NaN, infinity or another shape" if error >= WORST else f"{error:.2g}"
