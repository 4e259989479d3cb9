"""Who is to blame: the node that a failure comes from, for engines where it was searched for."""

from __future__ import annotations

from collections.abc import Iterator

from engineworks.builds.blame_result import Blame
from engineworks.builds.results import BuildResult
from engineworks.report.background import Background
from engineworks.report.blocks import Block, Bullets, Cell, Column, Section, Text, blocks_of, table

FAILED = ("fail", "failed")

MOST_NAMED = 3
"""Maximum number of commands that the section lists."""

TONES = {"engine": "fail", "lowered": "fail", "nothing": "pass", "unknown": "unmeasured"}


def blame_section(result: BuildResult, background: Background) -> Section | None:
    found = (block for blame in background.blames.values() for block in _blocks(blame))
    blocks = blocks_of([*found, *_not_searched(result, background)])
    return Section("blame", "Where the failures come from", blocks, brief="Blame") if blocks else None


def _not_searched(result: BuildResult, background: Background) -> Iterator[Block]:
    """The command for each failure that was not searched for yet."""
    failed = [
        e.id for e in result.engines
        if e.verdict in FAILED and "build" in e.keys and not (e.accuracy and e.accuracy.decoder)
    ]  # fmt: skip
    if left := [name for name in failed if name not in background.blames]:
        commands = ", ".join(f"engineworks blame {name}" for name in left[:MOST_NAMED])
        yield Text(f"To find the nodes that a failure comes from: {commands}.", tone="muted")


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
