"""Charts as inline SVG in the page's own colours: light, dark and on paper, with text as text.

Drawn here, because Matplotlib takes a hundred times as long: a quarter of a second for each plot of a night. Lengths
are points of a drawing `WIDTH` wide, which the page scales.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, FONT, SMALL = 620, 9.5, 8.5
SERIES = 8
"""Colours of lines and areas: the page's variables --c0 to --c7."""

TEXT, MUTED, LINE, PAGE = "var(--text)", "var(--muted)", "var(--line)", "var(--page)"
LONG_DASHES, DASHES, DOTS = "7 3", "5 3", "2 1.5"
LABEL_ROW, LEGEND_ROW = 16.0, 16.0
"""Height of a row of text."""

Points = Sequence[tuple[float, float]]


def series(index: int) -> str:
    """Return the colour of the n-th line; they come round after SERIES."""
    return f"var(--c{index % SERIES})"


def text_width(text: str, size: float = FONT) -> float:
    """Return about how wide it is: the page's font is the reader's."""
    return 0.56 * size * len(text)


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` as places from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> dict[float, str]:
        """Return round values with their texts."""
        return _log_ticks(self.low, self.high) if self.log else _linear_ticks(self.low, self.high)


def padded(values: Iterable[float], share: float) -> tuple[float, float]:
    """Return the least and greatest value, with so much of their distance around; equal ones are kept apart."""
    values = list(values)
    low, high = min(values), max(values)
    around = share * ((high - low) or abs(high) * 0.1 or 1.0)
    return low - around, high + around


def _linear_ticks(low: float, high: float) -> dict[float, str]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(s for s in (1, 2, 2.5, 5, 10) if rough <= s * power * 1.000001)
    digits = next((d for d in range(20) if abs(round(step, d) - step) < step * 1e-6), 20)
    ticks = [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return {tick: f"{tick:,.{digits}f}".replace("-", "−") for tick in ticks}


def _log_ticks(low: float, high: float) -> dict[float, str]:
    """1, 2, 5 and more steps instead of powers of ten."""
    steps: tuple[float, ...] = (1, 2, 5) if high / low < 300 else (1,)
    if high / low < 5:
        steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return {t: f"{t:g}" for d in decades for s in steps if low <= (t := s * 10.0**d) <= high}


class Chart:
    """A drawing that grows by its parts; what is drawn later lies above."""

    def __init__(self, height: float, title: str) -> None:
        """title: what it shows, for those who do not see it."""
        self.height, self._title, self._parts = height, title, list[str]()

    def svg(self) -> str:
        size = f'viewBox="0 0 {WIDTH} {self.height:.0f}" width="{WIDTH}" height="{self.height:.0f}"'
        parts = "\n".join(self._parts)
        return f'<svg role="img" aria-label="{escape(self._title)}" {size} fill="none">\n{parts}\n</svg>'

    def line(self, points: Points, color: str, width: float = 1.6, dash: str = "") -> None:
        if points:
            dashes = f' stroke-dasharray="{dash}"' if dash else ""
            self._parts.append(f'<path d="{_path(points)}" stroke="{color}" stroke-width="{width:g}"{dashes}/>')

    def area(self, points: Points, color: str) -> None:
        self._parts.append(f'<path d="{_path(points)}z" fill="{color}" fill-opacity=".55"/>')

    def dot(self, x: float, y: float, radius: float, fill: str, stroke: str = "none", width: float = 1.6) -> None:
        look = f'fill="{fill}" stroke="{stroke}" stroke-width="{width:g}" opacity=".85"'
        self._parts.append(f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{radius:.2f}" {look}/>')

    def bar(self, x: float, y: float, width: float, height: float, fill: str, stroke: str) -> None:
        place = f'x="{x:.2f}" y="{y:.2f}" width="{max(width, 0):.2f}" height="{height:.2f}"'
        self._parts.append(f'<rect {place} fill="{fill}" stroke="{stroke}"/>')

    def text(
        self, x: float, y: float, words: str, color: str = TEXT, anchor: str = "start", size: float = FONT,
        *, bold: bool = False,
    ) -> None:  # fmt: skip
        """Write words on the baseline y; anchor: start, middle or end, the part of them that is at x."""
        if not words:
            return
        weight = ' font-weight="600"' if bold else ""
        look = f'fill="{color}" text-anchor="{anchor}" font-size="{size:g}"{weight}'
        self._parts.append(f'<text x="{x:.2f}" y="{y:.2f}" {look}>{escape(words, quote=False)}</text>')

    def axes(
        self, x: Scale, y: Scale, x_ticks: Mapping[float, str], y_ticks: Mapping[float, str], title: str = "",
        *, names: bool = False, left_line: bool = True,
    ) -> None:  # fmt: skip
        """Draw two axes with their ticks, grid and a title above. names: the texts of y are names, without a grid."""
        for value, words in x_ticks.items():
            self.line([(x(value), y.start), (x(value), y.end)], LINE, 0.6)
            self.text(x(value), y.start + FONT + 4, words, MUTED, "middle")
        for value, words in y_ticks.items():
            if not names:
                self.line([(x.start, y(value)), (x.end, y(value))], LINE, 0.6)
            self.text(x.start - 5, y(value) + FONT / 3, words, TEXT if names else MUTED, "end")
        self.line([(x.start, y.start), (x.end, y.start)], LINE, 0.8)
        if left_line:
            self.line([(x.start, y.start), (x.start, y.end)], LINE, 0.8)
        if title:
            self.text(x.start, y.end - 6, title, bold=True)

    def legend(self, names: Mapping[str, str], y: float) -> None:
        """Write names with their colours in rows from y on, each in the middle; `legend_height` tells how high."""
        for number, row in enumerate(_legend_rows(names)):
            x = (WIDTH - sum(map(_entry_width, row))) / 2
            for name in row:
                self.line([(x, y + number * LEGEND_ROW - 3), (x + 16, y + number * LEGEND_ROW - 3)], names[name])
                self.dot(x + 8, y + number * LEGEND_ROW - 3, 2, names[name])
                self.text(x + 21, y + number * LEGEND_ROW, name)
                x += _entry_width(name)


def legend_height(names: Iterable[str]) -> float:
    """Return the height of a legend; one name needs none."""
    rows = _legend_rows(list(names))
    return LEGEND_ROW * len(rows) if sum(map(len, rows)) > 1 else 0.0


def _legend_rows(names: Iterable[str]) -> list[list[str]]:
    rows: list[list[str]] = [[]]
    for name in names:
        if rows[-1] and sum(map(_entry_width, (*rows[-1], name))) > WIDTH - 20:
            rows.append([])
        rows[-1].append(name)
    return rows


def _entry_width(name: str) -> float:
    return text_width(name) + 38


def _path(points: Points) -> str:
    return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)
