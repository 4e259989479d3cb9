"""The pages of a build, written into a folder."""

from __future__ import annotations

import os
from pathlib import Path

from engineworks.builds.results import BuildResult
from engineworks.report.background import NOTHING, Background
from engineworks.report.page import render_html
from engineworks.report.text import render_markdown

HTML_FILE, MARKDOWN_FILE = "report.html", "report.md"


def write_report(result: BuildResult, folder: Path, background: Background = NOTHING) -> Path:
    """Write both pages into the folder, each at once and whole. Returns the path of the HTML page."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        (HTML_FILE, render_html(result, background)),
        (MARKDOWN_FILE, render_markdown(result, background)),
    ):
        partial = folder / f".{name}.{os.getpid()}"
        partial.write_text(text, encoding="utf-8")
        partial.replace(folder / name)
    return folder / HTML_FILE
