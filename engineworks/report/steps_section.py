"""The steps of the build: drawn as a graph with times and what was reused, and as a table."""

from __future__ import annotations

from collections.abc import Sequence

from engineworks.builds.results import BuildResult
from engineworks.builds.step_facts import StepFact
from engineworks.report.blocks import Block, Cell, Column, Fold, Plot, Section, Text, blocks_of, number, table
from engineworks.report.graph import graph_svg

STATES = ("run", "reused", "failed", "skipped", "needs another GPU", "not needed")
TITLES = {"needs another GPU": "cannot run here"}
"""A step for other hardware: this build does not know whether another host runs it."""

_TONES = {"run": "pass", "failed": "failed", "skipped": "inconclusive", "needs another GPU": "unmeasured"}


def steps_section(result: BuildResult, *, plots: bool) -> Section | None:
    if not result.dag:
        return None
    drawn: Block | None = None
    if plots:
        drawn = Plot(
            graph_svg(result.dag),
            "filled: run by this build; outlined: reused from the store; dashed: not run",
            wide=True,
        )
    return Section("steps", "Steps", blocks_of(_summary(result), drawn, _table(result)))


def _summary(result: BuildResult) -> Text:
    states = [s.state for s in result.dag]
    counted = ", ".join(f"{states.count(s)} {TITLES.get(s, s)}" for s in STATES if s in states)
    spent = sum(s.seconds for s in result.dag)
    return Text(f"{counted}; {spent:.1f} s of steps in {result.seconds:.1f} s.", strong=f"{len(states)} steps:")


def _table(result: BuildResult) -> Fold | None:
    longest = max(s.seconds for s in result.dag) or 1.0
    columns = [Column("step"), Column("state"), Column("seconds", number=True), Column("why")]
    rows = [
        [_names((s, *others)),
         Cell(TITLES.get(s.state, s.state), tone=_TONES.get(s.state, "muted"), sort=STATES.index(s.state)),
         number(s.seconds, 2, share=s.seconds / longest) if s.state == "run" else Cell(""),
         Cell(s.reason, tone="muted")]
        for s, *others in _grouped(result.dag)
    ]  # fmt: skip
    steps = table(columns, rows)
    return Fold((Cell("every step"),), (steps,)) if steps else None


def _grouped(steps: Sequence[StepFact]) -> list[list[StepFact]]:
    """Steps that nothing was done for, together by kind, state and reason; every other step alone."""
    groups: dict[object, list[StepFact]] = {}
    for step in steps:
        idle = step.state in ("needs another GPU", "not needed")
        groups.setdefault((step.kind, step.state, step.reason) if idle else step.id, []).append(step)
    return list(groups.values())


def _names(steps: Sequence[StepFact]) -> Cell:
    if len(steps) == 1:
        return Cell(steps[0].id, code=True)
    return Cell(f"{steps[0].kind.replace('_', '-')} of {len(steps)} engines")
