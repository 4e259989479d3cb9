"""A rehearsal as one HTML page that needs nothing but itself."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from engineworks.builds.rehearsal import Rehearsal

SCORECARD_PAGE = "scorecard.html"

TONES = {"worse": "fail", "changed": "inconclusive", "better": "pass", "same": "muted"}


def write_scorecard(found: Rehearsal) -> Path:
    """Write the page beside the scorecard's JSON; returns its path."""
    page = found.file.with_name(SCORECARD_PAGE)
    page.write_text(render_scorecard(found), encoding="utf-8")
    return page


def render_scorecard(found: Rehearsal) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template, style = (
        resources.files("engineworks.report").joinpath(name).read_text(encoding="utf-8")
        for name in ("scorecard.html.j2", "page.css")
    )
    counts = [(tone, sum(change.tone == tone for change in found.changes)) for tone in TONES]
    return environment.from_string(template).render(found=found, style=style, tones=TONES, counts=counts)
