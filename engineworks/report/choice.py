"""Precisions compared with each other: the ladders of `precisions: auto`, and accuracy against speed and size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from engineworks.builds.results import BuildResult, EngineResult
from engineworks.measure.ladder.ladder import TargetLadder
from engineworks.report.blocks import Block, Plot, Section, Text, blocks_of
from engineworks.report.ladder import ladder_tables
from engineworks.report.palette import by_target, colors, precision_of
from engineworks.report.plots import Choice, pareto_plot
from engineworks.report.values import shapes_of

CAPTION = "area: size of the engine; hollow: its gate did not pass; line: nothing that passed is better in all three"


def choice_section(result: BuildResult, *, plots: bool) -> Section:
    drawn = dict(_plots(result)) if plots else {}
    ladders = [t.target for t in result.ladder]
    rest = [plot for target, plot in drawn.items() if target not in ladders]
    blocks = blocks_of(_ladders(result, drawn), rest)
    return Section("precision", "Precision: accuracy, speed, size", blocks, brief="Precision")


def _ladders(result: BuildResult, drawn: dict[str, Plot]) -> Iterator[Block]:
    for shown in ladder_tables(result.ladder):
        target = shown.ladder.target
        yield Text(shown.ladder.message.partition(": ")[2], strong=f"Ladder of {target}:")
        if all(candidate.verdict in ("refused", "not tried") for candidate in shown.ladder.candidates):
            continue
        yield shown.table
        yield from (Text(note, tone="muted") for note in shown.notes)
        if target in drawn:
            yield drawn[target]


def _plots(result: BuildResult) -> Iterator[tuple[str, Plot]]:
    """By target: its ladder where there is one, else its engines."""
    ladders = {ladder.target: ladder for ladder in result.ladder}
    metric = any(e.accuracy and e.accuracy.metric for e in result.engines) or any(
        candidate.metric is not None for ladder in result.ladder for candidate in ladder.candidates
    )
    color = colors(result)
    for target, engines in by_target(result.engines):
        shape = next((name for e in engines for name in shapes_of(e)), "")
        choices = _of_ladder(ladders[target], color) if target in ladders else _of_engines(engines, shape, color)
        svg = pareto_plot(
            choices, f"Precisions on {target}", xlabel=f"median latency at {shape}, ms",
            ylabel="task metric relative to fp32's" if metric else "cosine to fp32",
        )  # fmt: skip
        if svg:
            yield target, Plot(svg, f"{target}; {CAPTION}")


def _of_ladder(ladder: TargetLadder, color: Mapping[str, int]) -> list[Choice]:
    return [
        Choice(
            r.precision, color.get(r.precision, index), r.latency_ms, r.quality, r.bytes, r.verdict, r.chosen, r.pareto
        )
        for index, r in enumerate(ladder.candidates)
        if r.latency_ms is not None and r.quality is not None and r.bytes is not None
    ]


def _of_engines(engines: Sequence[EngineResult], shape: str, color: Mapping[str, int]) -> list[Choice]:
    points = [(e, p) for e in engines if (p := _point(e, shape)) is not None]
    front = _front([p for e, p in points if e.verdict == "pass"])
    return [
        Choice(precision_of(e.id), color[precision_of(e.id)], *p, e.verdict, front=e.verdict == "pass" and p in front)
        for e, p in points
    ]


def _point(engine: EngineResult, shape: str) -> tuple[float, float, float] | None:
    """Latency in ms, quality, bytes."""
    latency = getattr(shapes_of(engine).get(shape), "latency_ms_p50", None)
    quality = engine.accuracy.quality if engine.accuracy else None
    size = engine.bytes
    return (latency, quality, float(size)) if latency and quality is not None and size else None


def _front(points: Sequence[tuple[float, float, float]]) -> set[tuple[float, float, float]]:
    """The points that no other point beats: at least as good in latency, quality and size, and better in one."""

    def beats(a: tuple[float, float, float], b: tuple[float, float, float]) -> bool:
        return a != b and a[0] <= b[0] and a[1] >= b[1] and a[2] <= b[2]

    return {p for p in points if not any(beats(o, p) for o in points)}
