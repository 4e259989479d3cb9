"""What a report is made of: sections of tables, sentences and plots, which the HTML page and Markdown share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from engineworks.report.palette import short
from engineworks.report.raw import Attachment

Tone = str
"""'' or the name of a cell's color: pass, fail, failed, inconclusive, unmeasured, refused, muted."""


@dataclass(frozen=True)
class Cell:
    """text: what is read. sort: the sort key where the text is none. share: 0 to 1, drawn as a
    bar behind the text. heat: 0 to 1, how strongly the cell is shaded."""

    text: str
    tone: Tone = ""
    sort: float | None = None
    share: float | None = None
    heat: float | None = None
    link: str = ""
    code: bool = False


@dataclass(frozen=True)
class Column:
    """number: aligned to the right and sorted by value. hint: what the heading means."""

    name: str
    number: bool = False
    hint: str = ""


@dataclass(frozen=True)
class Table:
    """marked: index of the row that stands out, None for none."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    below: str = ""
    marked: int | None = None

    @property
    def headings(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)


@dataclass(frozen=True)
class Text:
    """One sentence; `strong` is set before it."""

    text: str
    tone: Tone = ""
    strong: str = ""


@dataclass(frozen=True)
class Bullets:
    items: tuple[Text, ...]


@dataclass(frozen=True)
class Plot:
    """svg: a whole <svg> element that this package made. Markdown omits it: tables hold the same data."""

    svg: str
    caption: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Log:
    """Text as it is."""

    text: str


@dataclass(frozen=True)
class Files:
    """Files within the page. Markdown has none of them."""

    items: tuple[Attachment, ...]


@dataclass(frozen=True)
class Fold:
    """Blocks that can be opened and closed."""

    summary: tuple[Cell, ...]
    blocks: tuple[Block, ...]
    open: bool = False


Block = Table | Text | Bullets | Plot | Log | Files | Fold


@dataclass(frozen=True)
class Section:
    """anchor: its id in the page. open: whether it is unfolded when the page opens."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]
    open: bool = True
    brief: str = ""
    """Its name where there is little room; '' for the title."""


def table(
    columns: Sequence[Column],
    rows: Iterable[Sequence[Cell]],
    *,
    title: str = "",
    below: str = "",
    marked: int | None = None,
) -> Table | None:
    """A table without the columns that are blank in every row; None where there is no row."""
    cells = [tuple(row) for row in rows]
    if not cells:
        return None
    used = [i for i in range(len(columns)) if any(row[i].text for row in cells)]
    kept = tuple(tuple(row[i] for i in used) for row in cells)
    return Table(tuple(columns[i] for i in used), kept, title, below, marked)


def text_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, texts: Collection[str], below: str = ""
) -> Table | None:
    """A table of plain texts. texts: the columns that hold no numbers."""
    columns = [Column(name, number=name not in texts) for name in headings]
    return table(columns, ([Cell(text) for text in row] for row in rows), below=below)


def blocks_of(*parts: Block | Iterable[Block | None] | None) -> tuple[Block, ...]:
    """All blocks of the parts in their order, without None."""
    return tuple(_flat(parts))


def _flat(parts: Iterable[Block | Iterable[Block | None] | None]) -> Iterator[Block]:
    for part in parts:
        if isinstance(part, Block):
            yield part
        elif part is not None:
            yield from _flat(part)


def engine_cell(engine: str) -> Cell:
    """The engine's name within its recipe."""
    return Cell(short(engine), code=True)


def number(value: float | None, digits: int = 3, **more: object) -> Cell:
    """A figure with thousands separated; blank for None."""
    if value is None:
        return Cell("")
    return Cell(f"{value:,.{digits}f}", sort=float(value), **more)  # type: ignore[arg-type]


def significant(value: float | None, digits: int = 3) -> str:
    """'0.0269', '1,340': so many significant digits, without an exponent."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    from math import floor, log10

    places = max(0, digits - 1 - floor(log10(abs(value))))
    return f"{value:,.{min(places, 9)}f}"
