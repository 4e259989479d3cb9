"""Plans as Markdown, for a comment on a pull request: the steps to do and why; cached steps are counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engineworks.plan.plan import Plan
from engineworks.report.markdown import cell, table_lines

TITLES = {"needs another GPU": "for other hardware"}

SHOWN = 40
"""Listed steps of one recipe: a comment holds 65,536 characters on GitHub."""


def render_plans(plans: Sequence[Plan]) -> str:
    to_do = sum(len(plan.to_do) for plan in plans)
    engines = sum(len(plan.engines) for plan in plans)
    lines = [f"# Plan: {to_do} steps to do", "", f"{len(plans)} recipes, {engines} engines."]
    for plan in plans:
        lines += ["", *_recipe(plan)]
    return "\n".join(lines) + "\n"


def _recipe(plan: Plan) -> Iterable[str]:
    states = [step.state for step in plan.steps.values()]
    counts = ", ".join(
        f"{states.count(s)} {TITLES.get(s, s)}" for s in ("to do", "cached", "needs another GPU") if s in states
    )
    yield f"## {plan.recipe}: {counts or 'nothing'}"
    if plan.to_do:
        yield ""
        yield from table_lines(("step", "why"), ((step.id, step.reason) for step in plan.to_do[:SHOWN]))
        if len(plan.to_do) > SHOWN:
            yield f"| and {len(plan.to_do) - SHOWN} more | |"
    if plan.refused:
        yield ""
        yield from (f"- **refused** {cell(refused.id)}: {cell(refused.message)}" for refused in plan.refused)
