"""The build as one HTML page that needs nothing but itself, and as Markdown, written into a folder."""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from engineworks.builds.results import BuildResult
from engineworks.host.atomic_write import write_atomically
from engineworks.report.answer import may_ship
from engineworks.report.background import NOTHING, Background
from engineworks.report.sections import sections
from engineworks.report.text import render_markdown
from engineworks.report.verdict_section import anchor, counts
from engineworks.report.words import day

if TYPE_CHECKING:
    from jinja2 import Template


HTML_FILE, MARKDOWN_FILE = "report.html", "report.md"


def write_report(result: BuildResult, folder: Path, background: Background = NOTHING) -> Path:
    """Write both pages into the folder, each at once and whole. Returns the path of the HTML page."""
    write_atomically(folder / HTML_FILE, render_html(result, background).encode())
    write_atomically(folder / MARKDOWN_FILE, render_markdown(result, background).encode())
    return folder / HTML_FILE


def render_html(result: BuildResult, background: Background = NOTHING) -> str:
    script = part("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()  # no other script may run
    return template("page.html.j2").render(
        result=result, background=background, sections=sections(result, background, plots=True), counts=counts(result),
        answer=may_ship(result),
        recorded=day(background.at) if background.at else "", style=part("page.css"), script=script,
        script_digest=digest, anchor=anchor,
    )  # fmt: skip


@functools.cache
def template(name: str) -> Template:
    """Compile a page once: that takes longer than filling it in."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(part(name))


@functools.cache
def part(name: str) -> str:
    return resources.files("engineworks.report").joinpath(name).read_text(encoding="utf-8")
