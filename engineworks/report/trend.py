"""Engines over their builds: latency, metric and size, with a mark where a version changed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from engineworks.builds.results import BuildResult
from engineworks.report.background import Background, Point
from engineworks.report.blocks import Block, Cell, Column, Plot, Section, Text, blocks_of, engine_cell, table
from engineworks.report.palette import colors, precision_of, short, target_of
from engineworks.report.plots import Mark, Panel, Track, trend_plot

LEAST = 2
"""Builds from which there is a trend."""


def trend_section(result: BuildResult, background: Background, *, plots: bool) -> Section | None:
    """One plot per target: what its engines share is where versions change."""
    known = {e: points for e, points in background.points.items() if len(points) >= LEAST}
    if not known:
        return None
    blocks: list[Block] = []
    for target in dict.fromkeys(map(target_of, known)):
        engines = {e: points for e, points in known.items() if target_of(e) == target}
        blocks += _target(target, engines, colors(result), plots=plots)
    return Section("trend", "Trend over builds", blocks_of(blocks), brief="Trend")


def _target(
    target: str, engines: Mapping[str, Sequence[Point]], color: Mapping[str, int], *, plots: bool
) -> Iterator[Block]:
    """Builds are aligned by their time: one column per build of any engine."""
    columns = _columns(engines)
    marks = list(_marks(columns))
    shape = next((name for points in engines.values() for p in reversed(points) for name in p.p50_ms), "")

    def track(engine: str, value: str) -> Track:
        values: list[float | None] = [None] * len(columns)
        for index, column in enumerate(columns):
            if engine in column:
                values[index] = _value(column[engine], value, shape)
        return Track(short(engine), color.get(precision_of(engine), 0), values)

    kinds = (("median at " + shape, "ms", "p50"), ("metric", "", "metric"), ("engine", "MiB", "mib"))
    panels = [Panel(title, unit, [track(e, key) for e in engines]) for title, unit, key in kinds]
    panels = [p for p in panels if any(v is not None for t in p.tracks for v in t.values)]
    if plots and panels:
        dates = [_date(column, columns) for column in columns]
        svg = trend_plot(panels, dates, [Mark(index, label) for index, label in marks], f"Trend on {target}")
        yield Plot(
            svg,
            f"{target}, {len(columns)} builds, oldest left" + ("; numbered lines: see below" if marks else ""),
            wide=True,
        )
    yield from _marked(target, marks, columns)
    yield from _summary(engines, shape)


def _marked(target: str, marks: Sequence[tuple[int, str]], columns: Sequence[Mapping[str, Point]]) -> Iterator[Block]:
    """The versions that changed, by build."""
    headings = [Column("", number=True), Column("build of"), Column("changed")]
    rows = [
        [Cell(str(number)), Cell(_date(columns[index], columns)), Cell(label)]
        for number, (index, label) in enumerate(marks, 1)
    ]
    none = f"{target}: no version of a library, the driver or the model changed over these builds."
    yield table(headings, rows, title=f"versions on {target}") or Text(none, tone="muted")


def _columns(engines: Mapping[str, Sequence[Point]]) -> list[dict[str, Point]]:
    """Points of one build together: its engines are recorded within seconds of each other, and each once. Two builds of
    some engines each (`--only`) are two."""
    listed = sorted(((p.at, e, p) for e, points in engines.items() for p in points), key=lambda x: x[0])
    columns: list[dict[str, Point]] = []
    for _, engine, point in listed:
        if not columns or engine in columns[-1] or any(p.build != point.build for p in columns[-1].values()):
            columns.append({})
        columns[-1][engine] = point
    return columns


def _marks(columns: Sequence[Mapping[str, Point]]) -> Iterator[tuple[int, str]]:
    """Index and sentence of the versions that changed, by any engine of the target, since its last record."""
    last: dict[str, Mapping[str, str]] = {}
    for index, column in enumerate(columns):
        changed: dict[str, str] = {}
        for engine, point in column.items():
            if not point.versions:
                continue
            before = last.get(engine)
            for name in point.versions if before is not None else ():
                was, now = (before or {}).get(name), point.versions[name]
                if was is not None and was != now:
                    changed.setdefault(name, f"{name} {was} → {now}")
            last[engine] = point.versions
        if changed:
            yield index, ", ".join(changed.values())


def _value(point: Point, key: str, shape: str) -> float | None:
    if key == "p50":
        return point.p50_ms.get(shape)
    return point.metric if key == "metric" else point.bytes / 2**20 if point.bytes else None


def _date(column: Mapping[str, Point], columns: Sequence[Mapping[str, Point]]) -> str:
    """The day; with the hour where the builds are of a few days."""
    at, first = (min(p.at for p in build.values()) for build in (column, columns[0]))
    last = max(p.at for p in columns[-1].values())
    return time.strftime("%Y-%m-%d" if last - first > 5 * 86400 else "%m-%d %H:%M", time.gmtime(at))


def _summary(engines: Mapping[str, Sequence[Point]], shape: str) -> Iterator[Block]:
    """In figures: first, best, last."""
    columns = [Column("engine"), Column("builds", number=True), Column("oldest p50 ms", number=True),
               Column("least", number=True), Column("most", number=True), Column("now", number=True),
               Column("verdicts", hint="oldest first")]  # fmt: skip
    rows = []
    for engine, points in engines.items():
        values = [v for p in points if (v := p.p50_ms.get(shape)) is not None]
        row_values = (values[0], min(values), max(values), values[-1]) if values else ()
        cells = [Cell(f"{v:.4g}", sort=v) for v in row_values] or [Cell("")] * 4
        rows.append([engine_cell(engine), Cell(str(len(points))), *cells, Cell(_verdicts(points))])
    yield from blocks_of(table(columns, rows))


def _verdicts(points: Sequence[Point]) -> str:
    """'3 × pass, fail, 2 × pass'."""
    runs = [(verdict, len(list(same))) for verdict, same in groupby(point.verdict for point in points)]
    return ", ".join(f"{count} × {verdict}" if count != 1 else verdict for verdict, count in runs)
