"""Lines and tables on a terminal, plain lines in a pipe or in CI. stdout holds results only."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engineworks.report.counting import many

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 200
"""Characters of a line where neither a terminal nor COLUMNS sets the width."""

STYLES = {
    "pass": "green", "fail": "bold red", "failed": "bold red", "unmeasured": "yellow", "inconclusive": "yellow",
    "refused": "yellow", "cached": "green", "to do": "cyan", "needs another GPU": "yellow", "not needed": "dim",
}  # fmt: skip

_NUMBER = re.compile(r"-?[\d,]+(\.\d+)?")


def say(line: str) -> None:
    """One plain line on stdout."""
    sys.stdout.write(line + "\n")


def say_wrapped(line: str, indent: str = "") -> None:
    """One sentence on stdout: on a terminal broken between words, with its further lines indented; in a pipe whole."""
    if _width() == PIPE_WIDTH:
        say(line)
    else:
        say("\n".join(textwrap.wrap(line, _width(), subsequent_indent=indent, break_long_words=False,
                                    break_on_hyphens=False)) or line)  # fmt: skip


def say_valid(file: str, precisions: int, targets: int) -> None:
    say(f"{file}: {many(precisions, 'precision')} × {many(targets, 'target')}, valid")


def print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")


def print_error(message: str) -> None:
    """An error on stderr, verbatim: rich would read brackets in paths as markup."""
    sys.stderr.write(f"error: {message}\n" if "\n" not in message else f"{message}\n")


def print_facts(facts: Mapping[str, str]) -> None:
    """Names and values in two columns."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        say_wrapped(f"{name:{width}}  {value}", " " * (width + 2))


def print_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    marked: int | None = None,
    optional: Sequence[str] = (),
    styles: Mapping[int, str] | None = None,
) -> None:
    """Plain cells under their headings; columns of numbers are aligned to the right.

    optional: headings of columns to leave out on a narrow terminal, the least important first. marked: index of the row
    that stands out. styles: style of the second cell, by row.
    """
    cells = [list(row) for row in rows]
    kept = fitting(headings, cells, optional, _width())
    table = _table([headings[i] for i in kept], [[row[i] for i in kept] for row in cells])
    for index, row in enumerate(cells):
        texts = [_escaped(row[i]) for i in kept]
        if styles and index in styles:
            texts[1] = f"[{styles[index]}]{texts[1]}[/]"
        table.add_row(*texts, style="green" if index == marked else None)
    _console().print(table)


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


def _console() -> Console:
    from rich.console import Console

    if sys.stdout.isatty():
        return Console()
    return Console(file=_Trimmed(), width=_width(), no_color=True, force_terminal=False)


class _Trimmed(io.StringIO):
    """stdout without trailing blanks of a table's lines."""

    def write(self, text: str) -> int:
        sys.stdout.write(re.sub(r"[ \t]+(?=\n)", "", text))
        return len(text)

    def flush(self) -> None:
        sys.stdout.flush()


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(headings):
        texts = [row[index] for row in rows if row[index]]
        number = bool(texts) and all(_NUMBER.fullmatch(text) for text in texts)
        table.add_column(heading, justify="right" if number else "left", overflow="fold", no_wrap=number or index == 0)
    return table


def style_of(status: str) -> str:
    return STYLES.get(status, "")


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
