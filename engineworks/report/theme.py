"""Matplotlib's figures as inline SVG in the page's own colours: light, dark and on paper, with text as text."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = 8
"""Colours of lines and areas: the page's variables --c0 to --c7."""

_VARIABLES = {"#010101": "--text", "#020202": "--muted", "#030303": "--line", "#040404": "--page"}
_VARIABLES |= {f"#0a0b{i:02x}": f"--c{i}" for i in range(SERIES)}
"""Placeholder colors for Matplotlib → the page's variables."""

TEXT, MUTED, LINE, PAGE = list(_VARIABLES)[:4]

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.size": 9.5, "axes.titlesize": 10, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "text.color": TEXT, "axes.labelcolor": MUTED, "axes.edgecolor": LINE,
    "xtick.color": LINE, "ytick.color": LINE, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "axes.titlecolor": TEXT, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": LINE, "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False,
    "lines.linewidth": 1.6, "path.simplify": True, "axes.unicode_minus": True,
}  # fmt: skip


def series(index: int) -> str:
    """The colour of the n-th line; they come round after SERIES."""
    return f"#0a0b{index % SERIES:02x}"


@contextmanager
def drawing(salt: str, width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches at 72 points in the page's style; salt: what its ids are made from, one per plot."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE | {"svg.hashsalt": salt}):
        yield Figure(figsize=(width, height), layout="constrained")


def inline(figure: Figure, title: str) -> str:
    """The <svg> element alone, as HTML takes it; title: what it shows, for those who do not see it."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)  # it would style the whole page
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)  # the page's own font
    svg = re.sub(r"font: bold ([\d.]+px) [^;\"]*", r"font-weight: 600; font-size: \1", svg)
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda m: m.group(0) if m.group(1) in used else "", svg)
    svg = re.sub(
        r"#0[0-9a-f]{5}\b", lambda m: f"var({_VARIABLES[m.group()]})" if m.group() in _VARIABLES else m.group(), svg
    )
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag.group()), svg)  # hundredths of a point do
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title, quote=True)}" ', 1)
