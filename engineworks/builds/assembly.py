"""A plan, its evaluated engines and stored step results → the build's result, with its comparison with peers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from engineworks.builds.calibration_health import calibration_health
from engineworks.builds.comparison import Comparison, ComparisonRow
from engineworks.builds.ladders import ladders
from engineworks.builds.results import (
    BuildResult,
    EngineResult,
    Failure,
    RanStep,
    StepCounts,
    build_notes,
    synthetic_notes,
    waiver_notes,
)
from engineworks.builds.step import Outcome
from engineworks.builds.step_facts import step_facts
from engineworks.engines.backends import backend
from engineworks.measure.accuracy import OutputAccuracy
from engineworks.measure.latency_report import Latency, PeerLatency
from engineworks.plan.peers import PlannedPeer
from engineworks.plan.plan import Plan
from engineworks.plan.prepared import notes_of_data, notes_of_lowering
from engineworks.store.store import Store


def assemble_result(
    plan: Plan, engines: Sequence[EngineResult], store: Store, *,
    run: str, failures: Mapping[str, Failure], outcomes: Sequence[Outcome] = (), seconds: float = 0.0,
) -> BuildResult:  # fmt: skip
    """Assemble the result. run: id of the build's run in MLflow. failures: by key of the step. outcomes: of the steps
    that this build ran or found in the store; none for a recorded build. seconds: the build's duration."""
    calibration = calibration_health(plan, store)
    warnings = (
        *notes_of_data(plan, store), *notes_of_lowering(plan, store),
        *(warning for health in calibration for warning in health.report.warnings),
        *build_notes(engines), *synthetic_notes(plan, engines), *waiver_notes(plan, engines),
    )  # fmt: skip
    ran = tuple(RanStep(o.id, round(o.seconds, 3), plan.steps[o.key].reason) for o in outcomes if o.how == "run")
    return BuildResult(
        recipe=plan.recipe,
        run=run,
        engines=tuple(engines),
        refused=plan.refused,
        steps=count_steps(plan, outcomes, failures),
        seconds=seconds,
        warnings=warnings,
        comparison=compare_with_peers(plan, engines, store, failures),
        calibration=calibration,
        ran=ran,
        ladder=ladders(plan, engines, store),
        dag=step_facts(plan, outcomes, failures),
        not_selected=plan.not_selected,
    )


def count_steps(plan: Plan, outcomes: Sequence[Outcome], failures: Mapping[str, Failure]) -> StepCounts:
    """Count the steps by outcome. A failure of a step that only a peer needs fails no build, and is not counted."""
    cached = sum(1 for step in plan.steps.values() if step.state == "cached")
    ran = sum(1 for outcome in outcomes if outcome.how == "run")
    needed = plan.closure(key for engine in plan.engines for key in engine.steps.values())
    return StepCounts(ran, cached + len(outcomes) - ran, len(needed & failures.keys()))


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
