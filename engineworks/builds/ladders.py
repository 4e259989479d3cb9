"""Engines' results → the candidates of `precisions: auto`, and one ladder per target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from engineworks.engines.backends import backend
from engineworks.errors import EXIT_STEP_FAILED
from engineworks.measure.gates.gates import ACCURACY_CHECKS
from engineworks.measure.ladder.estimate import DECODER_TIMES
from engineworks.measure.ladder.ladder import Candidate, LadderTarget, TargetLadder, choose

if TYPE_CHECKING:
    from engineworks.builds.results import EngineResult, Failure
    from engineworks.plan.plan import Plan, PlannedEngine
    from engineworks.recipe.targets import NamedTarget
    from engineworks.store.store import Store


def ladders(plan: Plan, engines: Sequence[EngineResult], store: Store) -> tuple[TargetLadder, ...]:
    """Return one ladder per target, in the recipe's order; none without `auto`. store: has the lowered models, whose
    sizes an estimate needs."""
    if plan.loaded.auto is None:
        return ()
    results = {e.id: e for e in engines}
    candidates = {t.name: _candidates(plan, t, results, store) for t in plan.loaded.targets}
    inaccurate: dict[str, str] = {}
    passed: dict[str, str] = {}
    for target, tried in candidates.items():
        for candidate in tried:
            if candidate.inaccurate:
                inaccurate.setdefault(candidate.precision, f"failed on {target}: {candidate.why}")
            if candidate.verdict == "pass":
                passed.setdefault(candidate.precision, target)
    return tuple(
        choose(
            LadderTarget(t.name, t.target.compute_capability, _relative_times(plan, t)),
            candidates[t.name], shape=next(iter(plan.loaded.of(t).recipe.performance.at), ""),
            recipe=plan.loaded.shown, inaccurate=inaccurate, passed_on=passed,
        )
        for t in plan.loaded.targets
        if any(r.verdict != "not tried" for r in candidates[t.name])
    )  # fmt: skip


def _relative_times(plan: Plan, target: NamedTarget) -> Mapping[str, float]:
    backends_own = backend(target.target.backend).TRAITS.relative_times
    return backends_own or (DECODER_TIMES if plan.loaded.recipe.model.decoder else {})


def _candidates(plan: Plan, target: NamedTarget, results: Mapping[str, EngineResult], store: Store) -> list[Candidate]:
    """Return every precision of `auto` on this target, tried or not."""
    auto = plan.loaded.auto
    assert auto is not None
    planned, refused = {e.id: e for e in plan.engines}, {r.id: r.message for r in plan.refused}
    candidates = []
    for precision in auto.tried:
        engine = f"{plan.recipe}/{precision}/{target.name}"
        if engine in results:
            candidate = _candidate_of(planned[engine], results[engine])
            lower = store.place(plan.steps[planned[engine].steps["build"]].inputs["lower"])
            size = sum(f.stat().st_size for f in lower.glob("model.onnx*")) or None  # with its weights
            candidates.append(replace(candidate, built_in_limits=precision in auto.built_in, model_bytes=size))
        elif engine in refused:
            candidates.append(Candidate(precision, "refused", why=refused[engine]))
        else:
            candidates.append(Candidate(precision, "not tried", why="--only left it out"))
    return candidates + [Candidate(p, "not tried", why=why) for p, why in auto.untried.items()]


def _candidate_of(planned: PlannedEngine, engine: EngineResult) -> Candidate:
    shape = engine.latency.first if engine.latency else None
    accuracy = engine.accuracy
    failing = [c for c in engine.checks if c.verdict != "pass" and not c.waived]
    bad = [c for c in failing if c.verdict == engine.verdict]
    return Candidate(
        precision=planned.precision,
        verdict="refused" if engine.failure and engine.failure.inapplicable else engine.verdict,
        engine=engine.id,
        computes=planned.computes,
        latency_ms=shape.latency_ms_p50 if shape else None,
        doubt=next(iter(shape.complaints if shape else ()), ""),
        bytes=engine.bytes,
        metric=engine.metric,
        cosine=accuracy.worst_cosine if accuracy else None,
        quality=accuracy.quality if accuracy else None,
        why=_why(engine.failure) if engine.failure else next((c.message for c in bad), ""),
        inaccurate=any(c.verdict == "fail" and c.name.partition("[")[0] in ACCURACY_CHECKS for c in failing),
        forgiven=engine.verdict in ("fail", "inconclusive") or _impossible(engine.failure),
    )  # fmt: skip


def _why(failure: Failure) -> str:
    """Return the failure's message without the advice to leave the precision out, which `auto` has followed."""
    return (failure.inapplicable or failure.message).splitlines()[0]


def _impossible(failure: Failure | None) -> bool:
    """Return whether the model cannot be computed in this precision. Other failures (data, a recipe's pattern, an
    internal error) are no verdict on it."""
    if failure is not None and failure.inapplicable:
        return True
    kind = failure.step.rpartition("/")[2].partition("-")[0] if failure else ""
    return failure is not None and kind in ("lower", "build") and failure.exit_code == EXIT_STEP_FAILED
