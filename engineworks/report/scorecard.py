"""A rehearsal as one HTML page that needs nothing but itself."""

from __future__ import annotations

from pathlib import Path

from engineworks.builds.rehearsal import Rehearsal
from engineworks.report.write import part, template

SCORECARD_PAGE = "scorecard.html"

TONES = {"worse": "fail", "changed": "inconclusive", "better": "pass", "same": "muted"}


def write_scorecard(found: Rehearsal) -> Path:
    """Write the page beside the scorecard's JSON; returns its path."""
    page = found.file.with_name(SCORECARD_PAGE)
    page.write_text(render_scorecard(found), encoding="utf-8")
    return page


def render_scorecard(found: Rehearsal) -> str:
    counts = [(tone, sum(change.tone == tone for change in found.changes)) for tone in TONES]
    return template("scorecard.html.j2").render(found=found, style=part("page.css"), tones=TONES, counts=counts)
