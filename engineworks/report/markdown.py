"""Rows and tables of Markdown."""

from __future__ import annotations

from collections.abc import Iterable


def cell(text: str) -> str:
    """The text in one line; a bar in it separates no columns."""
    return " ".join(text.split()).replace("|", "\\|")


def line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table_lines(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    names = list(headings)
    return [line(names), line(["---"] * len(names)), *(line(map(cell, row)) for row in rows)]
