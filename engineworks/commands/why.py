"""`engineworks why`: why two runs or engines differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from engineworks.commands.completion import recorded_names
from engineworks.commands.options import Json
from engineworks.report import terminal
from engineworks.report.words import age
from engineworks.settings import read_settings

if TYPE_CHECKING:
    from engineworks.report.why.why import Explanation

Name = "Run id of a build or an engine, an engine's id, or a recipe's name (both: the newest run)."


def why(
    first: Annotated[str, typer.Argument(metavar="A", help=Name, autocompletion=recorded_names)],
    second: Annotated[
        str | None, typer.Argument(metavar="B", help="The same; default: A's newest, and A the one before.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show which inputs of two runs or engines differ, and the effect.

    Examples:
        engineworks why digits/int8/cpu
        engineworks why digits/fp32/cpu digits/int8/cpu
    """
    from engineworks.report.why.runs import explain_runs

    explanations = explain_runs(first, second, read_settings())
    if as_json:
        terminal.print_json({"engines": [explanation.to_json() for explanation in explanations]})
        return
    for explanation in explanations:
        _print(explanation)


def _print(explanation: Explanation) -> None:
    before, after = explanation.before, explanation.after
    name = after.engine if before.engine == after.engine else f"{before.engine} → {after.engine}"
    terminal.echo(f"{name}: {before.verdict} → {after.verdict}")
    terminal.echo(f"  A: run {before.run}, {age(before.started_at)}")
    terminal.echo(f"  B: run {after.run}, {age(after.started_at)}")
    if before.run == after.run:
        terminal.echo("  A and B are the same run")
        return
    if not explanation.differences:
        terminal.echo("  no input differs" + ("" if explanation.rebuilt else ": every step has the same fingerprint"))
    for difference in explanation.differences:
        read_by = f" [{', '.join(difference.steps)}]" if difference.steps else ""
        place = f"  ({difference.place})" if difference.place else ""
        terminal.echo(f"  {difference.kind:9} {difference.what}{read_by}{place}")
    if explanation.differences and not explanation.rebuilt and explanation.complete:
        terminal.echo("  no step of this engine reads that: nothing was rebuilt")
    if explanation.rebuilt:
        terminal.echo(f"  so these steps ran again: {', '.join(explanation.rebuilt)}")
    if not explanation.complete:
        terminal.echo("  (an older run did not record all of its steps, and the store has them no more)")
    if explanation.effects:
        terminal.echo("  effect:")
    for effect in explanation.effects:
        note = f"; {effect.note}" if effect.note else ""
        terminal.echo(f"    {effect.name}: {effect.before} → {effect.after}{note}")
