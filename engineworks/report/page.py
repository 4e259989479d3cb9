"""The build as one HTML file that needs no network."""

from __future__ import annotations

from importlib import resources

from engineworks.report.comparison import comparison_tables
from engineworks.report.figures import remarks, tables
from engineworks.report.ladder import ladder_tables
from engineworks.report.raw import attachments
from engineworks.report.rows import HEADINGS, notes_of, rows
from engineworks.results import BuildResult


def render_html(result: BuildResult) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = resources.files("engineworks.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        result=result, headings=HEADINGS, rows=rows(result), tables=tables, remarks=remarks,
        attachments=attachments,
        ladders=list(ladder_tables(result.ladder, plots=True)),
        comparisons=list(comparison_tables(result.comparison)),
        notes=notes_of(result),
    )  # fmt: skip
