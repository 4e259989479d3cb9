"""What changed: against the champion, and since the build before this one."""

from __future__ import annotations

from collections.abc import Iterator

from engineworks.builds.results import BuildResult, EngineResult
from engineworks.measure.regression import Comparison
from engineworks.report.background import Background, ChampionValues, Point
from engineworks.report.blocks import (
    Block,
    Bullets,
    Cell,
    Column,
    Section,
    Text,
    blocks_of,
    engine_cell,
    number,
    significant,
    table,
)
from engineworks.report.palette import SEVERITY, short
from engineworks.report.words import age, day


def changes_section(result: BuildResult, background: Background) -> Section:
    blocks = blocks_of(
        [Text(message, tone="inconclusive") for message in (*background.missing, *background.lost)],
        _champions(result, background), _champion_comparisons(result),
        list(_earlier(result)), list(_before(background)),
    )  # fmt: skip
    return Section("changes", "What changed", blocks, brief="Changes")


def _champions(result: BuildResult, background: Background) -> Block:
    known = [(e, background.champions[e.id]) for e in result.engines if e.id in background.champions]
    if not known:
        return Text("No engine of this build has a champion.", strong="Since the champion:")
    columns = [
        Column("engine"), Column("champion"), Column("verdict"), Column("p50 ms", number=True, hint="champion → now"),
        Column("change", number=True, hint="of the median, as each run recorded it; interleaved: below"),
        Column("metric", number=True), Column("engine MiB", number=True),
    ]  # fmt: skip
    return table(columns, [_champion(e, c) for e, c in known], title="Since the champion") or Text("")


def _champion(engine: EngineResult, champion: ChampionValues) -> list[Cell]:
    then = champion.point
    shapes = engine.latency.shapes if engine.latency else {}
    shape = next(iter(shapes), "")
    now = shapes[shape].latency_ms_p50 if shape else None
    was = then.p50_ms.get(shape) if then else None
    label, name = engine_cell(engine.id), Cell(f"{champion.model} version {champion.version}")
    if then and then.digest and then.digest == engine.digest:
        same = Cell("the same engine, byte for byte", tone="pass")
        return [label, name, same, number(now, 4), Cell(""), number(engine.metric, 5), Cell("")]
    verdicts = [c for c in engine.checks if c.name.startswith("regression")]
    worst = min((c.verdict for c in verdicts), key=SEVERITY.index, default="")
    size = engine.bytes
    return [
        label, name, Cell(worst or "not requested", tone=worst or "muted"), _pair(was, now, 3),
        _change(was, now), _pair(then.metric if then else None, engine.metric, 5),
        _pair(_mib(then), size / 2**20 if size else None, 3),
    ]  # fmt: skip


def _mib(point: Point | None) -> float | None:
    return point.bytes / 2**20 if point and point.bytes else None


def _pair(was: float | None, now: float | None, digits: int) -> Cell:
    if was is None or now is None:
        return Cell(significant(now, digits), sort=now)
    shown = [significant(v, digits) for v in (was, now)]
    return Cell(shown[0] if shown[0] == shown[1] else " → ".join(shown), sort=now)


def _change(was: float | None, now: float | None) -> Cell:
    if not was or now is None:
        return Cell("")
    return Cell(f"{now / was - 1:+.1%}", sort=now / was)


def _champion_comparisons(result: BuildResult) -> Block | None:
    """Candidate and champion, interleaved."""
    columns = [
        Column("engine"), Column("shape"), Column("verdict"), Column("candidate / champion", number=True),
        Column("interval", number=True), Column("confidence", number=True),
        Column("limit", number=True), Column("rounds", number=True),
        Column("disturbed", number=True), Column("processes", number=True), Column("reason"),
    ]  # fmt: skip
    rows = []
    for engine in result.engines:
        comparison = engine.champion_comparison
        for name, s in comparison.shapes.items() if comparison else ():
            check = next((c for c in engine.checks if c.name == f"regression.latency[{name}]"), None)
            assert comparison is not None
            attempts = comparison.attempts
            disturbed = sum(bool(r.disturbances) for r in attempts[-1].rounds)
            rows.append([
                engine_cell(engine.id), Cell(name), Cell(s.verdict, tone=s.verdict),
                number(s.ratio, 4),
                Cell(_interval(s)), Cell(f"{100 * comparison.confidence:.10g}%"),
                number(1 + comparison.limit, 4),
                number(s.rounds, 0), number(disturbed, 0),
                number(len(attempts), 0), Cell(check.text if check else "", tone="muted"),
            ])  # fmt: skip
    return table(columns, rows, title="Champion and candidate, interleaved")


def _interval(compared: Comparison) -> str:
    """'1.0040 to 1.0210', '' where there is none."""
    interval = compared.interval
    return f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else ""


def _earlier(result: BuildResult) -> Iterator[Block]:
    """Champion comparisons of this candidate that did not decide."""
    for engine in result.engines:
        for turn, comparison in enumerate(engine.champion_comparison.earlier if engine.champion_comparison else (), 1):
            shapes = comparison.shapes.items()
            text = ", ".join(f"{name} {_interval(s) or 'no interval'} ({s.rounds} rounds)" for name, s in shapes)
            yield Text(text, tone="muted", strong=f"{short(engine.id)}, attempt {turn}, without a decision:")


def _before(background: Background) -> Iterator[Block]:
    before = background.before
    if before is None:
        if not background.missing:
            yield Text("This is the recipe's first build on record.", strong="Since the build before:")
        return
    yield Text(f"{day(before.at)}, {age(before.at, background.at)}:", strong="Since the build of")
    if before.changes:
        yield Bullets(tuple(Text(message, tone=_tone(message)) for message in before.changes))
    else:
        yield Text("No change: the same verdicts, engines and metrics, and medians within 5%.")
    yield from (Text(message, tone="muted") for message in before.apart)
    if before.causes:
        yield Text("", strong="Changed inputs:")
        yield Bullets(tuple(Text(cause) for cause in before.causes))


def _tone(message: str) -> str:
    """The new verdict that the sentence names, '' for none."""
    head = message.partition(": ")[2]
    new = head.partition(" → ")[2].partition(":")[0]
    return new if new in SEVERITY else ""
