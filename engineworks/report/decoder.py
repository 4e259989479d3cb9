"""Decoders: prompts with fp32's and the engine's continuations side by side, how fast they generate, and what fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engineworks.builds.results import BuildResult, EngineResult
from engineworks.measure.decoder.report import Continuation
from engineworks.measure.decoder.texts import greedy_agreement
from engineworks.measure.ladder.ladder import FIDELITY, TIE
from engineworks.measure.latency_report import SweepMeasurement
from engineworks.report.blocks import (
    Block,
    Cell,
    Column,
    Fold,
    Plot,
    Section,
    Text,
    blocks_of,
    engine_cell,
    number,
    table,
)
from engineworks.report.plots import Curve, sweep_plot
from engineworks.report.values import shapes_of
from engineworks.tensors import dims_text

PARTING = " ⟨parts here⟩ "
"""Set into a continuation where it leaves fp32's."""


def decoder_section(result: BuildResult, *, plots: bool) -> Section | None:
    """None where no engine is a decoder that was compared or measured."""
    engines = [e for e in result.engines if e.accuracy and e.accuracy.decoder]
    measured = [e for e in result.engines if any(s.first_token_ms is not None for s in shapes_of(e).values())]
    most = max((len(_prompts(e)) for e in engines), default=0)
    swept = [_swept(engine, plots) for engine in measured if engine.latency and engine.latency.sweep]
    blocks = blocks_of(
        _speed(measured), _not_faster(measured), swept, _agreement(engines), [_prompt(engines, n) for n in range(most)]
    )
    return Section("generation", "Generated text", blocks, brief="Text") if blocks else None


def _speed(measured: list[EngineResult]) -> Block | None:
    columns = [
        Column("engine"), Column("shape"), Column("lengths"),
        Column("first token ms", number=True, hint="median, from the prompts to the first token of every stream"),
        Column("ms per token", number=True, hint="median of a step: one token of every stream"),
        Column("tokens/s a stream", number=True), Column("tokens/s", number=True, hint="of all streams together"),
        Column("prefill tokens/s", number=True), Column("cache KiB per token", number=True, hint="of one stream"),
        Column("cache MiB per stream", number=True), Column("streams that fit", number=True, hint="into the memory"),
    ]  # fmt: skip
    rows = [
        [
            engine_cell(engine.id), Cell(name), Cell(dims_text(shape.dims)), number(shape.first_token_ms, 2),
            number(shape.latency_ms_p50, 3), number(shape.tokens_per_s_stream, 1),
            number(shape.tokens_per_s, 1), number(shape.prefill_tokens_per_s, 0),
            number((shape.cache_bytes_per_token or 0) / 1024, 2), number(shape.cache_mib_per_stream, 2),
            number(shape.streams_that_fit, 0),
        ]
        for engine in measured for name, shape in shapes_of(engine).items()
    ]  # fmt: skip
    return table(columns, rows, title="speed and memory")


def _not_faster(measured: list[EngineResult]) -> Iterator[Text]:
    """A sentence for each engine that is not faster than one of its target in a more faithful precision."""
    for engine in measured:
        _, precision, target = engine.id.split("/")
        better = FIDELITY[: FIDELITY.index(precision)]
        rivals = [e for e in measured if e.id.split("/")[1] in better and e.id.split("/")[2] == target]
        for name, shape in list(shapes_of(engine).items())[:1]:
            times = {e.id: shapes_of(e)[name].latency_ms_p50 for e in rivals if name in shapes_of(e)}
            fastest = min(times, key=lambda rival: times[rival], default="")
            if fastest and shape.latency_ms_p50 * (1 + TIE) >= times[fastest]:
                yield Text(
                    f"is not faster than {fastest}: {shape.latency_ms_p50:.3g} ms per token at {name} against "
                    f"{times[fastest]:.3g}. Choose it for its size alone.", strong=f"{engine.id}:",
                )  # fmt: skip


def _swept(engine: EngineResult, plots: bool) -> Fold:
    """The sweep over streams and prompt of one engine, drawn and as a table."""
    points = engine.latency.sweep if engine.latency else ()
    ran = [point for point in points if isinstance(point, SweepMeasurement)]
    columns = [
        Column("streams", number=True), Column("prompt", number=True), Column("tokens/s", number=True),
        Column("ms per token", number=True), Column("first token ms", number=True), Column(""),
    ]  # fmt: skip
    rows = [
        [
            number(p.dims["streams"], 0), number(p.dims["prompt"], 0),
            *([number(p.tokens_per_s, 1), number(p.latency_ms_p50, 3), number(p.first_token_ms, 2), Cell("")]
              if isinstance(p, SweepMeasurement) else [Cell(""), Cell(""), Cell(""), Cell(p.error, tone="fail")]),
        ]
        for p in points
    ]  # fmt: skip
    title = f"{engine.id} by streams and prompt"
    drawn = sweep_plot(_curves(ran), title, by="streams", labels=("tokens/s of all streams", "first token, ms"))
    return Fold(
        (Cell("Streams × prompt"), Cell(engine.id, code=True)),
        blocks_of([Plot(drawn, title)] if plots and ran else None, table(columns, rows)),
    )


def _curves(points: Sequence[SweepMeasurement]) -> list[Curve]:
    """One curve for each length of a prompt."""
    prompts = sorted({point.dims["prompt"] for point in points})
    own = {prompt: [p for p in points if p.dims["prompt"] == prompt] for prompt in prompts}
    return [
        Curve(
            f"prompt {prompt}", color, [p.dims["streams"] for p in own[prompt]],
            [p.tokens_per_s or 0.0 for p in own[prompt]], [p.first_token_ms or 0.0 for p in own[prompt]],
        )
        for color, prompt in enumerate(prompts)
    ]  # fmt: skip


def _agreement(engines: list[EngineResult]) -> Block | None:
    columns = [
        Column("engine"), Column("next token as fp32's", number=True), Column("greedy text as fp32's", number=True),
        Column("tokens of text", number=True),
    ]  # fmt: skip
    rows = []
    for engine in engines:
        metric = engine.accuracy.metric if engine.accuracy else None
        rows.append([
            engine_cell(engine.id), number(metric.agreement if metric else None, 4),
            number(greedy_agreement(_prompts(engine)), 4), number(metric.samples if metric else None, 0),
        ])  # fmt: skip
    return table(columns, rows, title="agreement with fp32")


def _prompts(engine: EngineResult) -> tuple[Continuation, ...]:
    return engine.accuracy.decoder.prompts if engine.accuracy and engine.accuracy.decoder else ()


def _prompt(engines: list[EngineResult], index: int) -> Block | None:
    """One prompt: fp32's continuation, then each engine's, with the parting marked."""
    found = [(e, p) for e in engines for p in _prompts(e)[index : index + 1]]
    if not found:
        return None
    first = found[0][1]
    rows = [[Cell("fp32 reference"), Cell(""), Cell(first.reference_text)]]
    for engine, prompt in found:
        why = "" if prompt.parted is None else f"token {prompt.parted + 1}: {prompt.why}"
        tone = "fail" if prompt.why == "error" else ""
        rows.append([engine_cell(engine.id), Cell(why, tone=tone), *_text(prompt)])
    return table([Column("engine"), Column("parts"), Column("continuation")], rows, title=f"“{first.prompt}”")


def _text(prompt: Continuation) -> Iterator[Cell]:
    same, text = prompt.same_text, prompt.text
    if same is None or not text.startswith(same):
        yield Cell(text)
    else:
        yield Cell(same + PARTING + text[len(same) :])
