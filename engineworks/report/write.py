"""The pages of a build, written into a folder."""

from __future__ import annotations

from pathlib import Path

from engineworks.builds.results import BuildResult
from engineworks.host.atomic_write import write_atomically
from engineworks.report.background import NOTHING, Background
from engineworks.report.page import render_html
from engineworks.report.text import render_markdown

HTML_FILE, MARKDOWN_FILE = "report.html", "report.md"


def write_report(result: BuildResult, folder: Path, background: Background = NOTHING) -> Path:
    """Write both pages into the folder, each at once and whole. Returns the path of the HTML page."""
    write_atomically(folder / HTML_FILE, render_html(result, background).encode())
    write_atomically(folder / MARKDOWN_FILE, render_markdown(result, background).encode())
    return folder / HTML_FILE
