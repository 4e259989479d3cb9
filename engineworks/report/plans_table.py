"""Plans on a terminal (the count first, then each step with its state), and as Markdown for a pull request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from engineworks.plan.plan import Plan
from engineworks.report.markdown import cell, table_lines
from engineworks.report.terminal import echo_wrapped, print_table, style_of
from engineworks.report.words import many

if TYPE_CHECKING:
    from engineworks.plan.steps import Step


def print_plans(plans: Sequence[Plan], *, quiet: bool, verbose: bool, every: bool) -> None:
    """every: also each step for another GPU and each refused engine. verbose: also keys, and steps without use."""
    for plan in plans:
        echo_wrapped(_counts(plan), "  ")
        if quiet:
            continue
        steps = list(_shown(plan, verbose, every))
        rows: list[tuple[str, str, str]] = [
            (step.id + (f" [{step.key[:12]}]" if verbose else ""), step.state, step.reason) for step in steps
        ]
        rows += [(refused.id, "refused", refused.message) for refused in plan.refused if every]
        if rows:
            print_table(("step", "state", "why"), rows, styles={i: style_of(row[1]) for i, row in enumerate(rows)})
        if not every and (lines := list(_grouped(plan))):
            for line in (*lines[:-1], f"{lines[-1]}; --all lists them"):
                echo_wrapped(line, "  ")


def _counts(plan: Plan) -> str:
    states = [step.state for step in plan.steps.values()]
    return (
        f"{plan.recipe}: {many(len(plan.engines), 'engine')}, {many(states.count('to do'), 'step')} to do, "
        f"{states.count('cached')} cached, {states.count('needs another GPU')} for other hardware, "
        f"{many(len(plan.refused), 'engine')} refused"
    )


def _shown(plan: Plan, verbose: bool, every: bool) -> Iterator[Step]:
    for step in plan.steps.values():
        if (step.state != "not needed" or verbose) and (step.state != "needs another GPU" or every):
            yield step


def _grouped(plan: Plan) -> Iterator[str]:
    """One line per reason."""
    from engineworks.report.grouping import refused_groups, shared_reason

    by_reason: dict[str, list[str]] = {}
    for engine in plan.engines:
        if engine.unmeasured_because:
            by_reason.setdefault(shared_reason(engine.unmeasured_because), []).append(engine.target.name)
    for reason, targets in by_reason.items():
        types = many(len(set(targets)), "GPU type")
        yield f"{many(len(targets), 'engine')} for {types}: build only ({reason})"
    yield from (group.message for group in refused_groups(plan.refused))


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
