"""The result of a build: one frozen value per engine and one for the build, as JSON and as an exit code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from engineworks.builds.calibration_health import CalibrationHealth
from engineworks.builds.comparison import Comparison
from engineworks.builds.step_facts import StepFact
from engineworks.engines.engine_files import LOG_FILE
from engineworks.engines.sidecar import Sidecar
from engineworks.errors import EXIT_BAD_INPUT, EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_PASSED, EXIT_STEP_FAILED
from engineworks.measure.accuracy_report import Accuracy
from engineworks.measure.champion_report import ChampionComparison
from engineworks.measure.check import Check
from engineworks.measure.gates.gates import Verdict, evaluate_gates, with_checks
from engineworks.measure.gates.regression import regression_checks
from engineworks.measure.gates.serving import serving_checks
from engineworks.measure.ladder.ladder import TargetLadder
from engineworks.measure.latency_report import Latency
from engineworks.measure.layers import Layers
from engineworks.measure.served_checks import synthetic_warnings
from engineworks.measure.serving_report import ServingReport
from engineworks.measure.sweep import Recommendation, recommend
from engineworks.measure.waivers import apply_waivers, idle_waivers
from engineworks.plan.kinds import StepName
from engineworks.plan.plan import Plan, PlannedEngine, Refused
from engineworks.recipe.release import is_served
from engineworks.store.artifact import Artifact
from engineworks.store.store import Store
from engineworks.typed_json import Record

EngineVerdict = Literal["pass", "fail", "inconclusive", "unmeasured", "failed"]
"""A verdict, or `failed` if a step of the engine failed, which leaves nothing to evaluate."""

LONGEST_LIST = 64
"""In summaries, the length replaces any longer list of a report (raw samples)."""


@dataclass(frozen=True)
class Failure:
    """A failed step: its id, the message for the user, the log for the record, and the error's exit code. inapplicable:
    why the model cannot be computed in the engine's precision, if that failed."""

    step: str
    message: str
    log: str = ""
    exit_code: int = EXIT_STEP_FAILED
    inapplicable: str = ""


@dataclass(frozen=True)
class EngineResult:
    """One engine: its path, measurements and verdict. `path` is None if it was not built. Then there is no `passport`,
    which is a file in the store, in a folder named by its key."""

    id: str
    verdict: EngineVerdict
    checks: tuple[Check, ...]
    path: Path | None = None
    sidecar: Sidecar | None = None
    accuracy: Accuracy | None = None
    latency: Latency | None = None
    champion_comparison: ChampionComparison | None = None
    serving: ServingReport | None = None
    log: str = ""
    keys: Mapping[StepName, str] = field(default_factory=dict)
    failure: Failure | None = None
    recommendation: Recommendation | None = None
    passport: Path | None = None
    layers: Layers | None = None

    @property
    def waived(self) -> tuple[str, ...]:
        """What waivers accepted: the name of each waived check and the waiver's text."""
        return tuple(f"{c.name} {c.waived}" for c in self.checks if c.waived)

    @property
    def status(self) -> str:
        """The verdict as text; a pass that needed a waiver looks different from any other."""
        return f"{self.verdict} (waived)" if self.waived and self.verdict == "pass" else self.verdict

    @property
    def digest(self) -> str | None:
        """The engine's sha256, None if it was not built."""
        return self.sidecar.sha256 if self.sidecar else None

    @property
    def bytes(self) -> int | None:
        """The size of all its files, None if it was not built."""
        return self.sidecar.bytes if self.sidecar else None

    @property
    def metric(self) -> float | None:
        """The engine's task metric."""
        return self.accuracy.metric.engine if self.accuracy and self.accuracy.metric else None

    def to_json(self) -> dict[str, Any]:
        latency, first = self.latency, self.latency.first if self.latency else None
        return {
            "id": self.id,
            "path": str(self.path) if self.path else None,
            "passport": str(self.passport) if self.passport else None,
            "digest": self.digest,
            "bytes": self.bytes,
            "verdict": self.verdict,
            "waived": list(self.waived),
            "checks": [c.to_json() for c in self.checks],
            "accuracy": self.accuracy.to_json() if self.accuracy else {},
            **{k: getattr(first, k, None) for k in _HEADLINE},
            "served": self.serving.summary() if self.serving else None,
            "champion": self.champion_comparison.summary() if self.champion_comparison else None,
            "load_ms": latency.load_ms if latency else None,
            "latency": {name: s.without_samples() for name, s in latency.shapes.items()} if latency else {},
            "sweep": self._sweep(),
            "serving": dict(latency.serving) if latency else None,
            "facts": dict(latency.facts) if latency else {},
            "notes": list(latency.notes) if latency else [],
            "complaints": list(latency.device.complaints) if latency else [],
            "error": self.failure.message if self.failure else None,
        }

    def _sweep(self) -> dict[str, Any] | None:
        if self.latency is None or not self.latency.sweep:
            return None
        points = [point.without_samples() for point in self.latency.sweep]
        return {**(self.recommendation.to_json() if self.recommendation else {}), "points": points}


_HEADLINE = ("latency_ms_p50", "latency_ms_p90", "latency_ms_p99", "throughput_per_s", "memory_mib")


@dataclass(frozen=True)
class StepCounts(Record):
    run: int = 0
    reused: int = 0
    failed: int = 0


@dataclass(frozen=True)
class RanStep(Record):
    """A step that this build ran: its duration to the millisecond, and why the store lacked its result."""

    id: str
    seconds: float
    reason: str


@dataclass(frozen=True)
class BuildResult:
    """One recipe's build. `run`: id of its parent run in MLflow. `report`: path of the HTML page. `ran`: the steps that
    were not reused. `ladder`: with `precisions: auto`, one per target. `dag`: every step and its outcome.
    `not_selected`: ids of the recipe's engines that `--only` excluded from this build."""

    recipe: str
    run: str
    engines: tuple[EngineResult, ...]
    refused: tuple[Refused, ...]
    steps: StepCounts
    report: Path | None = None
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    comparison: Comparison | None = None
    calibration: tuple[CalibrationHealth, ...] = ()
    ran: tuple[RanStep, ...] = ()
    ladder: tuple[TargetLadder, ...] = ()
    dag: tuple[StepFact, ...] = ()
    not_selected: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe,
            "run": self.run,
            "engines": [e.to_json() for e in self.engines],
            "refused": [r.to_json() for r in self.refused],
            "not_selected": list(self.not_selected),
            "steps": self.steps.to_json(),
            "report": str(self.report) if self.report else None,
            "seconds": round(self.seconds, 3),
            "warnings": list(self.warnings),
            "comparison": self.comparison.to_json() if self.comparison else None,
            "calibration": [c.to_json() for c in self.calibration],
            "ran": [s.to_json() for s in self.ran],
            "ladder": [ladder.to_json() for ladder in self.ladder] if self.ladder else None,
        }

    @property
    def decisive(self) -> tuple[EngineResult, ...]:
        """The engines whose verdicts count: a candidate that a ladder dropped fails no build."""
        dropped = {engine for ladder in self.ladder for engine in ladder.forgiven}
        return tuple(e for e in self.engines if e.id not in dropped)

    @property
    def dropped(self) -> dict[str, str]:
        """By engine, why a ladder of `precisions: auto` dropped it. Dropped engines are not released."""
        return {r.engine: r.dropped for ladder in self.ladder for r in ladder.candidates if r.engine and r.dropped}

    @property
    def verdict(self) -> EngineVerdict:
        """The most severe of the engines' verdicts. Engines that this host cannot run decide only where none ran."""
        order: tuple[EngineVerdict, ...] = ("failed", "fail", "inconclusive", "pass")
        verdicts = {e.verdict for e in self.decisive}
        return next((verdict for verdict in order if verdict in verdicts), "unmeasured")

    def exit_code(self, *, require_verdict: bool = False) -> int:
        """Return the exit code. A failed step outranks a failed gate, because the gate of that engine never ran."""
        failures = [e.failure.exit_code for e in self.decisive if e.failure]
        verdicts = {e.verdict for e in self.decisive}
        if failures:
            return EXIT_STEP_FAILED if EXIT_STEP_FAILED in failures else max(failures)
        if "fail" in verdicts:
            return EXIT_GATE_FAILED
        if "inconclusive" in verdicts or (require_verdict and "unmeasured" in verdicts):
            return EXIT_INCONCLUSIVE
        return EXIT_PASSED


def worst_exit_code(results: Iterable[BuildResult], *, require_verdict: bool = False) -> int:
    """Return one exit code for several builds: the most severe."""
    return most_severe(r.exit_code(require_verdict=require_verdict) for r in results)


def most_severe(codes: Iterable[int]) -> int:
    """Return the most severe of several exit codes."""
    order = (EXIT_PASSED, EXIT_INCONCLUSIVE, EXIT_GATE_FAILED, EXIT_BAD_INPUT, EXIT_STEP_FAILED)
    return max(codes, key=lambda c: order.index(c) if c in order else len(order), default=EXIT_PASSED)


def engine_result(
    plan: Plan, engine: PlannedEngine, store: Store, failures: Mapping[str, Failure], *, samples: bool = True
) -> EngineResult:
    """Read an engine's reports from the store and evaluate it. `failures`: by key of the failed step.

    samples: whether `latency` holds the raw samples, which neither the verdict nor `to_json` needs, or only their
    number.
    """
    built = store.get(engine.steps["build"])
    failure = _failure_of(plan, engine, failures)
    compared = store.get(engine.steps["compare"])
    accuracy = compared.read(Accuracy) if compared else None
    latency = _latency(store.get(engine.steps["measure"]), samples) if "measure" in engine.steps else None
    against = store.get(engine.steps["compare_champion"]) if "compare_champion" in engine.steps else None
    comparison = against.read(ChampionComparison) if against else None
    serve = store.get(engine.steps["serve"]) if "serve" in engine.steps else None
    served = serve.read(ServingReport) if serve else None
    sidecar = built.read(Sidecar) if built else None
    verdict = _evaluate(plan, engine, accuracy, latency, comparison, served)
    sweep = plan.loaded.recipe.performance.sweep
    return EngineResult(
        id=engine.id,
        verdict="failed" if failure else verdict.verdict,
        checks=() if failure else verdict.checks,
        path=built.file(sidecar.engine) if built and sidecar else None,
        sidecar=sidecar,
        accuracy=accuracy,
        latency=latency,
        champion_comparison=comparison,
        serving=served,
        log=_log(built),
        keys=engine.steps,
        failure=failure,
        recommendation=recommend(latency, sweep.latency_ms) if sweep and sweep.batch and latency else None,
        layers=_layers(store.get(engine.steps["measure"])) if "measure" in engine.steps else None,
    )


def build_notes(engines: Iterable[EngineResult]) -> tuple[str, ...]:
    """Return the builders' notes on engines that could not be made as usual."""
    return tuple(f"{e.id}: {note}" for e in engines if e.sidecar for note in e.sidecar.details.get("notes", ()))


def waiver_notes(plan: Plan, engines: Iterable[EngineResult]) -> tuple[str, ...]:
    """Return notes on the recipe's waivers that accepted nothing."""
    evaluated = [(e.id, e.checks) for e in engines if e.verdict not in ("failed", "unmeasured")]
    return tuple(idle_waivers(plan.loaded.recipe.waivers, evaluated, plan.today))


def synthetic_notes(plan: Plan, engines: Iterable[EngineResult]) -> tuple[str, ...]:
    """Return what lowering costs on synthetic rows if the recipe sets no limit for it: once per lowering."""
    precisions, limits = {e.id: e.precision for e in plan.engines}, plan.loaded.recipe.accuracy.limits
    notes = []
    for engine in engines:
        given = next((v for k, v in limits.items() if k == precisions[engine.id]), None)
        served = engine.accuracy.served if engine.accuracy else None
        if served and (given is None or given.synthetic_cosine is None):
            name = f"{plan.recipe}/{precisions[engine.id]}"
            notes += [f"{name}: {line}" for line in synthetic_warnings(served, given.cosine if given else None)]
    return tuple(dict.fromkeys(notes))


def _evaluate(
    plan: Plan,
    engine: PlannedEngine,
    accuracy: Accuracy | None,
    latency: Latency | None,
    comparison: ChampionComparison | None,
    served: ServingReport | None,
) -> Verdict:
    recipe = plan.loaded.of(engine.target).recipe
    limits = next(v for k, v in recipe.accuracy.limits.items() if k == engine.precision)
    verdict = evaluate_gates(
        accuracy, latency, limits, recipe.performance.budget, unmeasured_because=engine.unmeasured_because
    )
    against_champion = regression_checks(
        recipe.performance.regression, engine.champion, comparison=comparison, latency=latency, accuracy=accuracy,
        compare=plan.steps[engine.steps["compare"]].document, unmeasured_because=engine.unmeasured_because,
        champion_unknown=engine.champion_unknown, champion_lost=engine.champion_lost,
    )  # fmt: skip
    checks = [*against_champion]
    if is_served(recipe) and accuracy is not None:
        load = recipe.performance.serving.load
        checks += serving_checks(served, load.model_dump(mode="json") if load else None, engine.unserved_because)
    return apply_waivers(with_checks(verdict, checks), recipe.waivers, engine.id, plan.today)


def _failure_of(plan: Plan, engine: PlannedEngine, failures: Mapping[str, Failure]) -> Failure | None:
    """Return the first failed step among those that the engine needs."""
    steps = plan.needed(engine.steps.values()) if failures else ()
    return next((failures[step.key] for step in steps if step.key in failures), None)


def _latency(artifact: Artifact | None, samples: bool) -> Latency | None:
    if artifact is None:
        return None
    return artifact.read(Latency) if samples else artifact.read_measurements(Latency, LONGEST_LIST)


def _layers(artifact: Artifact | None) -> Layers | None:
    return artifact.read(Layers) if artifact is not None and Layers.FILE in artifact.files else None


def _log(artifact: Artifact | None) -> str:
    if artifact is None or LOG_FILE not in artifact.files:
        return ""
    return artifact.file(LOG_FILE).read_text(encoding="utf-8", errors="replace")
