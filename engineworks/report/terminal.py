"""Lines and tables on a terminal, plain lines in a pipe or in CI. stdout holds results only."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

from engineworks.report.words import many

PIPE_WIDTH = 200
"""Characters of a line where neither a terminal nor COLUMNS sets the width."""

PLAIN, GREEN, YELLOW, CYAN, DIM, RED = "\x1b[0m", "\x1b[32m", "\x1b[33m", "\x1b[36m", "\x1b[2m", "\x1b[1;31m"
STYLES = {
    "pass": GREEN, "fail": RED, "failed": RED, "unmeasured": YELLOW, "inconclusive": YELLOW, "refused": YELLOW,
    "cached": GREEN, "to do": CYAN, "needs another GPU": YELLOW, "not needed": DIM,
}  # fmt: skip

NARROWEST = 12
"""Characters that a wrapped column keeps."""

_NUMBER = re.compile(r"-?[\d,]+(\.\d+)?")


def echo(line: str) -> None:
    """One plain line on stdout."""
    sys.stdout.write(line + "\n")


def echo_wrapped(line: str, indent: str = "") -> None:
    """One sentence on stdout: on a terminal broken between words, with its further lines indented; in a pipe whole."""
    if _width() == PIPE_WIDTH:
        echo(line)
    else:
        echo("\n".join(textwrap.wrap(line, _width(), subsequent_indent=indent, break_long_words=False,
                                    break_on_hyphens=False)) or line)  # fmt: skip


def echo_valid(file: str, precisions: int, targets: int) -> None:
    echo(f"{file}: {many(precisions, 'precision')} × {many(targets, 'target')}, valid")


def print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")


def print_error(message: str) -> None:
    """An error on stderr, verbatim: rich would read brackets in paths as markup."""
    sys.stderr.write(f"error: {message}\n" if "\n" not in message else f"{message}\n")


def print_facts(facts: Mapping[str, str]) -> None:
    """Names and values in two columns."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        echo_wrapped(f"{name:{width}}  {value}", " " * (width + 2))


def print_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    marked: int | None = None,
    optional: Sequence[str] = (),
    styles: Mapping[int, str] | None = None,
) -> None:
    """Plain cells under their headings; columns of numbers are aligned to the right, long texts are wrapped.

    optional: headings of columns to leave out on a narrow terminal, the least important first. marked: index of the row
    that stands out. styles: style of the second cell, by row.
    """
    cells = [list(row) for row in rows]
    kept = fitting(headings, cells, optional, _width())
    shown = [[row[i] for i in kept] for row in ([*headings], *cells)]
    widths, right = _widths(shown), [_is_number(column) for column in zip(*shown, strict=True)]
    colors = _has_colors()
    echo("")
    for index, row in enumerate(shown, -1):
        for parts in _wrapped(row, widths):
            texts = [f"{t:>{w}}" if r else f"{t:{w}}" for t, w, r in zip(parts, widths, right, strict=True)]
            if colors and styles and index in styles:
                texts[1] = f"{styles[index]}{texts[1]}{PLAIN}"
            line = f" {'   '.join(texts)}".rstrip()
            echo(f"{GREEN}{line}{PLAIN}" if colors and index == marked and index >= 0 else line)
        if index < 0:
            echo(" " + "─" * (sum(widths) + 3 * (len(widths) - 1)))
    echo("")


def fitting(
    headings: Sequence[str], rows: Sequence[Sequence[str]], optional: Sequence[str], width: int
) -> tuple[int, ...]:
    """Return the indices of the columns that fit side by side, without blank columns.

    optional: columns to leave out, the first one first.
    """
    kept = [i for i in range(len(headings)) if not rows or i == 0 or any(row[i] for row in rows)]
    widths = {i: max(map(len, (headings[i], *(row[i] for row in rows)))) + 3 for i in kept}
    for name in optional:
        if sum(widths[i] for i in kept) <= width:
            break
        kept = [i for i in kept if headings[i] != name]
    return tuple(kept)


def _width() -> int:
    """Characters of a line: COLUMNS, else the terminal's."""
    if os.environ.get("COLUMNS", "").isdigit() or sys.stdout.isatty():
        return shutil.get_terminal_size().columns
    return PIPE_WIDTH


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """Characters of each column; the widest texts give way until a line fits."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for _ in range(sum(widths) + 3 * (len(widths) - 1) + 1 - _width()):
        if (widest := max(widths[1:], default=0)) <= NARROWEST:
            break
        widths[widths.index(widest, 1)] -= 1
    return widths


def _wrapped(row: Sequence[str], widths: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """The lines of one row."""
    pairs = zip(row, widths, strict=True)
    cells = [textwrap.wrap(t, w, break_on_hyphens=False) if len(t) > w else [t] for t, w in pairs]
    yield from itertools.zip_longest(*cells, fillvalue="")


def _is_number(column: Sequence[str]) -> bool:
    """Whether all cells below the heading are numbers or blank."""
    texts = [text for text in column[1:] if text]
    return bool(texts) and all(_NUMBER.fullmatch(text) for text in texts)


def _has_colors() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def style_of(status: str) -> str:
    """The terminal's code for a verdict or a state, '' for none."""
    return STYLES.get(status, "")
