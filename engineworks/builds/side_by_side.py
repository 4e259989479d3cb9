"""Engines and their peers in one comparison, read from what their steps left in the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from engineworks.builds.comparison import Comparison, ComparisonRow
from engineworks.builds.results import EngineResult, Failure
from engineworks.engines.backends import backend
from engineworks.measure.accuracy import OutputAccuracy
from engineworks.measure.latency_report import Latency, PeerLatency
from engineworks.plan.peers import PlannedPeer
from engineworks.plan.plan import Plan
from engineworks.store.store import Store

BASES = ("pytorch-fp32", "ort-cpu-fp32")
"""Base of the speed-ups: the first of these that ran and is right."""

LEAST_COSINE = 0.99
"""A peer further from the reference is wrong: it gets no speed-up and cannot be the base."""


def compare_with_peers(
    plan: Plan, engines: Sequence[EngineResult], store: Store, failures: Mapping[str, Failure]
) -> Comparison | None:
    """Make the comparison that the plan asks for, None if it asks for none. Unmeasured engines have no row, because
    they run on another host."""
    if not plan.peers:
        return None
    shapes = tuple(plan.loaded.recipe.performance.at) or ("",)
    rows = [row for peer in plan.peers for row in _peer_rows(plan, peer, shapes, store, failures)]
    rows += [row for engine in engines for row in _engine_rows(plan, engine, shapes)]
    base = next((name for name in BASES if any(r.name == name and r.right for r in rows)), "")
    over = next((f"{r.framework} {r.precision}" for r in rows if r.name == base), "")
    order = {shape: i for i, shape in enumerate(shapes)}
    rows.sort(key=lambda row: (order[row.shape], row.latency_ms_p50 is None))
    return Comparison(over, shapes, tuple(_with_speedup(row, rows, base) for row in rows))


def _peer_rows(
    plan: Plan, peer: PlannedPeer, shapes: Sequence[str], store: Store, failures: Mapping[str, Failure]
) -> Iterator[ComparisonRow]:
    name = f"{peer.name}-{peer.precision}"
    artifact = store.get(peer.step) if peer.step else None
    if artifact is None:
        for shape in shapes:
            yield ComparisonRow(name, peer.title, peer.precision, shape, note=_why_not(plan, peer, failures))
        return
    report = artifact.read_measurements(PeerLatency, 1)
    right = _is_right(report.outputs)
    device = report.facts.get("device") if "," not in peer.title else None
    title = f"{peer.title}, {str(device).upper()}" if device else peer.title
    notes = list(report.notes) if right else ["its outputs differ from the fp32 reference: no speed-up is given"]
    row = ComparisonRow(name, title, peer.precision, "", right=right, note="; ".join(notes))
    yield from _at_shapes(row, report, report.outputs, shapes)


def _engine_rows(plan: Plan, engine: EngineResult, shapes: Sequence[str]) -> Iterator[ComparisonRow]:
    if not engine.latency:
        return
    planned = next(e for e in plan.engines if e.id == engine.id)
    title = f"{backend(planned.target.target.backend).TITLE} engine, {planned.target.name}"
    row = ComparisonRow(
        f"{planned.precision}/{planned.target.name}", title, planned.precision, "", engine=True,
        right=engine.verdict not in ("fail", "failed"),
        note="" if engine.verdict == "pass" else f"verdict: {engine.verdict}",
    )  # fmt: skip
    yield from _at_shapes(row, engine.latency, engine.accuracy.outputs if engine.accuracy else {}, shapes)


def _at_shapes(
    row: ComparisonRow, report: Latency | PeerLatency, outputs: Mapping[str, OutputAccuracy], shapes: Sequence[str]
) -> Iterator[ComparisonRow]:
    for shape in shapes:
        values = report.shapes.get(shape)
        if values:
            yield replace(
                row,
                shape=shape,
                note="; ".join([*filter(None, [row.note]), *values.complaints]),
                load_ms=report.load_ms,
                cosine={name: output.cosine for name, output in outputs.items()},
                **{field: getattr(values, field) for field in _FIGURES},
            )


_FIGURES = (
    "dims", "latency_ms_p50", "latency_ms_p99", "throughput_per_s", "memory_mib", "first_run_ms", "device_ms_p50",
)  # fmt: skip


def _is_right(outputs: Mapping[str, OutputAccuracy]) -> bool:
    return all(not o.nonfinite and o.cosine is not None and o.cosine >= LEAST_COSINE for o in outputs.values())


def _why_not(plan: Plan, peer: PlannedPeer, failures: Mapping[str, Failure]) -> str:
    """Return the reason of the plan, or the message of the first failed step that the peer needs."""
    if peer.step is None:
        return peer.why_not
    failure = next((failures[step.key] for step in plan.needed([peer.step]) if step.key in failures), None)
    return failure.message if failure else "it was not run"


def _with_speedup(row: ComparisonRow, rows: Sequence[ComparisonRow], base: str) -> ComparisonRow:
    over = next((r.latency_ms_p50 for r in rows if r.name == base and r.shape == row.shape), None)
    if not (over and row.latency_ms_p50 and row.right):
        return row
    return replace(row, speedup=over / row.latency_ms_p50)
