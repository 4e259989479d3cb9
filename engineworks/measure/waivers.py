"""Waivers: a named failure that a recipe accepts until a day. Pure: today is an argument.

The check keeps its verdict `fail` and its reason, and gets the waiver's text next to it. The engine's verdict depends
on the checks that are not waived. An expired waiver changes no verdict: the check's reason states that it expired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from fnmatch import fnmatchcase

from engineworks.measure.check import Check, worst
from engineworks.measure.gates.gates import Verdict
from engineworks.recipe.recipe import Waiver


def apply_waivers(verdict: Verdict, waivers: Sequence[Waiver], engine: str, today: date) -> Verdict:
    """The verdict with every waiver applied that is in force today. engine: its id, recipe/precision/target.

    Only failures can be waived: an inconclusive or unmeasured check is not known to be wrong, so no owner can accept
    it. If several waivers name a check, the one that lasts longest counts.
    """
    mine = [w for w in waivers if fnmatchcase(engine.partition("/")[2], w.engine)]
    checks = tuple(_apply(check, mine, today) for check in verdict.checks)
    return Verdict(worst(checks), checks)


def idle_waivers(waivers: Sequence[Waiver], engines: Sequence[tuple[str, Sequence[Check]]], today: date) -> list[str]:
    """A message for every waiver that covers no failure.

    A misspelt waiver protects nothing, and a leftover one would hide the next failure. engines: id and checks of the
    engines with a verdict; others give no evidence.
    """
    messages = []
    for waiver in waivers:
        mine = [checks for id_, checks in engines if checks and fnmatchcase(id_.partition("/")[2], waiver.engine)]
        named = [check for checks in mine for check in checks if names_check(waiver.check, check.name)]
        who = f"waiver of '{waiver.check}' for '{waiver.engine}' by {waiver.owner}"
        if mine and not named:
            names = ", ".join(dict.fromkeys(check.name for checks in mine for check in checks))
            messages.append(f"{who}: no check has this name; there are {names}")
        elif named and all(check.verdict == "pass" for check in named):
            over = f" and expired on {waiver.expires}" if today > waiver.expires else ""
            messages.append(f"{who} is not needed{over}: what it names passes; take it out of the recipe")
        elif named and not any(check.verdict in ("pass", "fail") for check in named):
            messages.append(f"{who} changes nothing: only a fail can be waived, and this is {named[0].verdict}")
    return messages


def names_check(pattern: str, name: str) -> bool:
    """Whether the waiver's pattern matches this check; brackets are literal, as in `cosine[logits]`."""
    return pattern == name or fnmatchcase(name, pattern.replace("[", "[[]"))


def _apply(check: Check, waivers: Sequence[Waiver], today: date) -> Check:
    named = sorted((w for w in waivers if names_check(w.check, check.name)), key=lambda w: w.expires)
    if check.verdict != "fail" or not named:
        return check
    last = named[-1]
    if today > last.expires:
        return replace(check, message=f"{check.message} The waiver by {last.owner} expired on {last.expires}.")
    return replace(check, waived=f"waived by {last.owner} until {last.expires}: {last.reason}")
