"""Where the time goes: layers by operator with bars, fusions, and why an engine is not faster than another."""

from __future__ import annotations

from collections.abc import Iterator

from engineworks.builds.results import BuildResult, EngineResult
from engineworks.measure.layers import Layers, by_operator, fused, why_not_faster
from engineworks.report.background import Background
from engineworks.report.blocks import Block, Bullets, Cell, Column, Fold, Section, Text, blocks_of, number, table
from engineworks.report.palette import short, target_of

MOST_ROWS, MOST_FUSIONS = 15, 10


def layers_section(result: BuildResult, background: Background) -> Section | None:
    timed = [(engine, engine.layers) for engine in result.engines if engine.layers is not None]
    if not timed:
        return None
    blocks = blocks_of(_messages(timed, background), *(_engine(engine, layers) for engine, layers in timed))
    return Section("layers", "Where the time goes", blocks, brief="Layers")


def _messages(timed: list[tuple[EngineResult, Layers]], background: Background) -> Bullets | None:
    """Each engine against the fastest other one of its target, and against its champion."""
    lines = []
    for engine, layers in timed:
        others = [
            (e, t) for e, t in timed if e.id != engine.id and target_of(e.id) == target_of(engine.id) and t.layers
        ]
        if layers.layers and others:
            other, best = min(others, key=lambda pair: pair[1].total_ms)
            lines.append(Text(why_not_faster(short(engine.id), layers, short(other.id), best)))
        champion = background.champion_layers.get(engine.id)
        if champion is not None and layers.layers:
            lines.append(Text(why_not_faster(short(engine.id), layers, "its champion", champion)))
    lines = [line for line in lines if line.text]
    return Bullets(tuple(lines)) if lines else None


def _engine(engine: EngineResult, layers: Layers) -> Iterator[Block | None]:
    if layers.why:
        yield Text(f"{short(engine.id)}: no times of layers: {layers.why}", tone="muted")
        return
    blocks = blocks_of(_operators(layers), _fusions(layers))
    total = f"{layers.total_ms:.3g} ms in {len(layers.layers)} layers at {layers.shape}, by {layers.source}"
    yield Fold((Cell(engine.id, code=True), Cell(total, tone="muted")), blocks)


def _operators(layers: Layers) -> Block | None:
    columns = [
        Column("computes", hint="operators of the ONNX nodes in a layer"), Column("ms", number=True),
        Column("share", number=True), Column("layers", number=True), Column("nodes", number=True),
    ]  # fmt: skip
    operators = by_operator(layers)
    rows = [
        [
            Cell(o.label, code=True), number(o.ms, 4), Cell(f"{o.share:.1%}", sort=o.share, share=o.share),
            number(o.layers, 0), number(o.nodes, 0),
        ]
        for o in operators[:MOST_ROWS]
    ]  # fmt: skip
    rest = operators[MOST_ROWS:]
    below = f"{len(rest)} more operators: {sum(o.ms for o in rest):.3g} ms" if rest else ""
    return table(columns, rows, title="time by operator", below=below)


def _fusions(layers: Layers) -> Block | None:
    columns = [
        Column("layer"), Column("kind"), Column("ms", number=True), Column("ONNX nodes", number=True), Column("holds"),
        Column("kernel"),
    ]  # fmt: skip
    rows = [
        [
            Cell(layer.name, code=True), Cell(layer.kind), number(layer.ms, 4), number(len(layer.nodes), 0),
            Cell(", ".join(layer.nodes), tone="muted"), Cell(layer.kernel, code=True),
        ]
        for layer in fused(layers)[:MOST_FUSIONS]
    ]  # fmt: skip
    return table(columns, rows, title="fusions, the longest first")
