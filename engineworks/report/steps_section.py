"""The steps of the build: drawn as a graph with times and what was reused, and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from engineworks.builds.results import BuildResult
from engineworks.builds.step_facts import StepFact
from engineworks.plan.kinds import STEP_KINDS, StepKind
from engineworks.report.blocks import Block, Cell, Column, Fold, Plot, Section, Text, blocks_of, number, table

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


KINDS: dict[str, StepKind] = {str(name): row for name, row in STEP_KINDS.items()}
"""By any name: an older record may hold kinds that do not exist any more, which stand last."""

BOX_W, BOX_H, GAP_X, GAP_Y, TOP = 156, 24, 34, 6, 22
LABEL = 23
"""Characters that fit into a box, its time included."""


def graph_svg(steps: Sequence[StepFact]) -> str:
    """Every step as a box with its seconds; colours come from the page's style sheet, by class.

    The steps of a recipe are nearly a tree that ends in engines, so that a layered drawing needs no solver: one row per
    engine, in the plan's order, and every other step next to the middle of its readers.
    """
    known = {s.key: s for s in steps}
    columns = _columns(steps)
    places = _places(steps, columns)
    width = (max(columns.values()) + 1) * (BOX_W + GAP_X) - GAP_X + 2
    height = max(y for _, y in places.values()) + BOX_H + 2
    lines = [_edge(places[a], places[s.key], known[a], s) for s in steps for a in s.inputs if a in places]
    boxes = [_box(s, *places[s.key]) for s in steps]
    heads = [
        f'<text class="head" x="{c * (BOX_W + GAP_X) + 1}" y="12">{escape(_heading(steps, columns, c))}</text>'
        for c in sorted(set(columns.values()))
    ]
    return (
        f'<svg class="graph" role="img" aria-label="Steps of the build" width="{width}" height="{height:.0f}" '
        f'viewBox="0 0 {width} {height:.0f}">' + "".join([*heads, *lines, *boxes]) + "</svg>"
    )


def _columns(steps: Sequence[StepFact]) -> dict[str, int]:
    """By key; columns that nothing is in are closed up."""
    last = max(row.column for row in KINDS.values()) + 1
    raw = {s.key: KINDS[s.kind].column if s.kind in KINDS else last for s in steps}
    used = {c: i for i, c in enumerate(sorted(set(raw.values())))}
    return {key: used[c] for key, c in raw.items()}


def _heading(steps: Sequence[StepFact], columns: Mapping[str, int], column: int) -> str:
    kinds = {s.kind for s in steps if columns[s.key] == column}
    return ", ".join(k for k in KINDS if k in kinds) or ", ".join(sorted(kinds))


def _places(steps: Sequence[StepFact], columns: Mapping[str, int]) -> dict[str, tuple[float, float]]:
    wish_y = _wish_ys(steps)
    placed: dict[str, tuple[float, float]] = {}
    for column in set(columns.values()):
        below = 0.0
        for key in sorted((k for k in columns if columns[k] == column), key=lambda k: wish_y[k]):
            y = max(below, wish_y[key] * (BOX_H + GAP_Y))
            placed[key] = (column * (BOX_W + GAP_X) + 1.0, TOP + y)
            below = y + BOX_H + GAP_Y
    return placed


def _wish_ys(steps: Sequence[StepFact]) -> dict[str, float]:
    """The row that each step would like: an engine's steps share one; others stand in the middle of those that read
    them; the reference, which every engine reads, stands below."""
    rows: dict[str, float] = {}
    wish_y: dict[str, float] = {}
    for step in steps:
        owner = KINDS[step.kind].owner if step.kind in KINDS else "command"
        if owner in ("engine", "peer"):
            name = "/".join(step.id.split("/")[:3]) if owner == "engine" else step.id
            wish_y[step.key] = rows.setdefault(name, float(len(rows)))
    for kind in (name for name, row in reversed(KINDS.items()) if row.owner == "recipe"):
        for step in (s for s in steps if s.kind == kind):
            readers = [
                wish_y[s.key] for s in steps if step.key in s.inputs and s.key in wish_y and s.kind != "reference"
            ]
            wish_y[step.key] = float(len(rows)) if kind == "reference" or not readers else sum(readers) / len(readers)
    return {s.key: wish_y.get(s.key, float(len(rows))) for s in steps}


def _box(step: StepFact, x: float, y: float) -> str:
    name = _short(step)
    time = f"{step.seconds:.1f} s" if step.seconds >= 0.05 else "0 s" if step.state == "run" else ""
    room = LABEL - len(time) - bool(time)
    label = name if len(name) <= room else name[: room - 1] + "…"
    state = step.state.replace(" ", "-")
    seconds = f", {step.seconds:.2f} s" if step.state == "run" else ""
    tip = escape(f"{step.id}: {step.state}{seconds}" + (f" ({step.reason})" if step.reason else ""))
    return (
        f'<g class="step {state}"><title>{tip}</title>'
        f'<rect x="{x:.0f}" y="{y:.1f}" width="{BOX_W}" height="{BOX_H}" rx="5"/>'
        f'<text x="{x + 7:.0f}" y="{y + 16:.1f}">{escape(label)}</text>'
        f'<text class="time" x="{x + BOX_W - 6:.0f}" y="{y + 16:.1f}">{time}</text></g>'
    )


def _short(step: StepFact) -> str:
    """Its name within its column."""
    parts = step.id.split("/")
    if len(parts) >= 4:
        return "/".join(parts[1:3])
    return "/".join(parts[1:]) if len(parts) == 2 else f"{parts[1]}{_variant(parts[2], step.kind)}"


def _variant(last: str, kind: str) -> str:
    rest = last.removeprefix(kind.replace("_", "-")).strip("-").replace("-", " ")
    return f" {rest}" if rest else ""


def _edge(a: tuple[float, float], b: tuple[float, float], source: StepFact, reader: StepFact) -> str:
    x1, y1, x2, y2 = a[0] + BOX_W, a[1] + BOX_H / 2, b[0], b[1] + BOX_H / 2
    middle = (x1 + x2) / 2
    ran = " ran" if source.state == "run" and reader.state == "run" else ""
    if x2 <= x1:
        return ""
    curve = f"C{middle:.0f} {y1:.1f} {middle:.0f} {y2:.1f} {x2:.0f} {y2:.1f}"
    return f'<path class="edge{ran}" d="M{x1:.0f} {y1:.1f}{curve}"/>'
