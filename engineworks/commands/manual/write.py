"""Writes the generated parts of docs/: whole pages, and text between two markers of a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engineworks.commands.manual.recipe_reference import recipe_reference
from engineworks.commands.manual.target_tables import target_tables
from engineworks.errors import InputError

BEGIN = "<!-- generated: engineworks manual -->\n"
END = "<!-- end of what is generated -->\n"


def manual_pages(folder: Path) -> Mapping[Path, str]:
    """Return the pages of `folder` as they should be. Raises `InputError` if a page or a marker is missing."""
    return {
        folder / "recipe-reference.md": recipe_reference(),
        folder / "targets.md": _between_markers(folder / "targets.md", target_tables()),
    }


def write_manual(folder: Path) -> list[Path]:
    """Write outdated pages and return their paths."""
    stale = {path: text for path, text in manual_pages(folder).items() if _text(path) != text}
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")
    return list(stale)


def _between_markers(path: Path, made: str) -> str:
    text = _text(path)
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{path}: has not both lines '{BEGIN.strip()}' and '{END.strip()}'", hint="write them")
    return f"{before}{begin}\n{made}\n{end}{after}"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
