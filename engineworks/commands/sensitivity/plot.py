"""The ranking as a picture: the noise of each part, in the ranking's order, with excluded parts marked."""

from __future__ import annotations

from pathlib import Path

from engineworks.measure.sensitivity_report import Part, SensitivityReport

MOST_BARS = 30

_KEPT, _QUANTIZED = "#c44e52", "#4c72b0"


def write_plot(report: SensitivityReport, title: str, file: Path) -> Path | None:
    """Write the picture (SVG, or the format of the file's suffix); None if matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        return None
    parts = report.parts[:MOST_BARS]
    figure = Figure(figsize=(9, 1.4 + 0.26 * len(parts)), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    kept = set(report.kept_nodes)
    noise = [p.noise or 1e-12 for p in parts]
    colours = [_KEPT if kept.issuperset(p.nodes) else _QUANTIZED for p in parts]
    axes.barh(range(len(parts)), noise, color=colours, log=True)
    axes.set_yticks(range(len(parts)), labels=[_label(p) for p in parts], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("noise / signal of the outputs with this part alone quantized (red: to keep out)")
    axes.set_title(title, fontsize=10)
    axes.grid(visible=True, axis="x", alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    try:
        figure.savefig(partial, format=file.suffix.lstrip(".") or "svg", metadata={"Date": None})
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    return file


def _label(part: Part) -> str:
    count = len(part.nodes)
    return part.name if count == 1 else f"{part.name} ({count} nodes)"
