"""Plans as Markdown, for a comment on a pull request: what will be built and why; what is there already is counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engineworks.plan.plan import Plan

WORDS = {"needs another GPU": "for other hardware"}

SHOWN = 40
"""Steps of one recipe that are listed: a comment takes 65,536 characters on GitHub."""


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
        f"{states.count(s)} {WORDS.get(s, s)}" for s in ("to do", "cached", "needs another GPU") if s in states
    )
    yield f"## {plan.recipe}: {counts or 'nothing'}"
    if plan.to_do:
        yield from ("", "| step | why |", "| --- | --- |")
        yield from (f"| {_cell(step.id)} | {_cell(step.reason)} |" for step in plan.to_do[:SHOWN])
        if len(plan.to_do) > SHOWN:
            yield f"| and {len(plan.to_do) - SHOWN} more | |"
    if plan.refused:
        yield ""
        yield from (f"- **refused** {_cell(one.id)}: {_cell(one.sentence)}" for one in plan.refused)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
