"""The jobs of `engineworks serve`: each serves one engine's package in a child and evaluates its report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engineworks.builds.step import STEP_FUNCTION, alone_on_this_host
from engineworks.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_PASSED, RunError
from engineworks.host.child import ChildPool
from engineworks.host.file_digests import FileDigests
from engineworks.measure.check import Check, worst
from engineworks.measure.gates.serving import serving_checks
from engineworks.measure.gates.shadow import shadow_checks, shadow_limits
from engineworks.measure.gates.together import together_checks
from engineworks.measure.serving_report import ServingReport
from engineworks.package.package import PackagedEngine
from engineworks.plan.documents import Documents
from engineworks.plan.kinds import SHADOW_FILE, TOGETHER_FILE
from engineworks.plan.plan import Plan
from engineworks.recipe.datasets.preparation import find_made
from engineworks.release.sources import LeftOut, built_engines, champion_engines
from engineworks.report import terminal
from engineworks.settings import Settings
from engineworks.store.json_files import read_json_file
from engineworks.store.store import Store
from engineworks.tracking.runs import open_tracking

Job = dict[str, Any]

TOGETHER_S = 10.0
"""Seconds that each model is asked alone, and all at once."""


@dataclass(frozen=True)
class Served:
    """A served engine: its checks and its report."""

    id: str
    checks: Sequence[Check]
    report: Mapping[str, Any]

    @property
    def exit_code(self) -> int:
        return {"pass": EXIT_PASSED, "fail": EXIT_GATE_FAILED}.get(worst(self.checks), EXIT_INCONCLUSIVE)

    def to_json(self) -> dict[str, Any]:
        checks = [check.to_json() for check in self.checks]
        return {"id": self.id, "verdict": worst(self.checks), "checks": checks, "report": self.report}

    def echo(self) -> None:
        more = ""
        if "ready_s" in self.report:
            more = f", ready in {self.report['ready_s']:.2f} s by Triton's backend {self.report['backend']}"
        terminal.echo(f"{self.id}: {worst(self.checks)}{more}")
        for check in self.checks:
            terminal.echo(f"  {check.verdict:<12} {check.name}: {check.message}")


@dataclass(frozen=True)
class Selected:
    """Engines of a plan to serve, their champions by id where candidates are to be compared, and those left out."""

    plan: Plan
    engines: Sequence[PackagedEngine]
    champions: Mapping[str, PackagedEngine]
    left: Sequence[LeftOut]


class Server:
    """Serves engines, one after the other. quiet: without the jobs' lines."""

    def __init__(self, settings: Settings, store: Store, folder: Path, pool: ChildPool, *, quiet: bool) -> None:
        self._settings, self._store, self._folder, self._pool = settings, store, folder, pool
        self._quiet = quiet

    def select(self, plan: Plan, only: str | None, *, champions: bool, shadow: bool) -> Selected:
        """Select what was built here, or the champions. shadow: what was built here and has a champion."""
        fetched, left = list[PackagedEngine](), list[LeftOut]()
        if champions or shadow:
            registry = open_tracking(self._settings.artifacts, self._settings.tracking_uri).registry()
            fetched, left = champion_engines(plan.loaded, registry, only, self._folder / plan.recipe)
        if champions:
            return Selected(plan, fetched, {}, left)
        built, more = built_engines(plan, self._store, unmeasured=False)
        without = {engine.id for engine in left}
        engines = [engine for engine in built if engine.passport.id not in without]
        return Selected(plan, engines, {engine.passport.id: engine for engine in fetched}, [*more, *left])

    def serve(self, selected: Selected, more: Job, limits: Job | None) -> Iterator[Served]:
        """Run the step `serve` for each. more: parameters that replace the recipe's; limits: of the load."""
        for engine in selected.engines:
            job = job_of(selected.plan, self._store, engine, "serve")
            job["params"] |= more
            job["inputs"] |= {"build": str(engine.folder)}
            job["unkeyed"] |= {"passport": str(engine.passport.source)}
            report = ServingReport.from_json(self._run(job, ServingReport.FILE))
            yield Served(engine.passport.id, serving_checks(report, limits, ""), report.to_json())

    def shadow(self, selected: Selected, requests: Path | None, seconds: float | None) -> Iterator[Served]:
        """Serve each candidate beside its champion. requests: recorded ones. seconds: that timing may take, by default
        the recipe's `performance.regression.max_s`."""
        recipe = selected.plan.loaded.recipe
        regression = recipe.performance.regression
        for candidate in selected.engines:
            champion = selected.champions[candidate.passport.id]
            cosine = next(v.cosine for k, v in recipe.accuracy.limits.items() if k == candidate.precision)
            limits = shadow_limits(regression, cosine)
            job = job_of(selected.plan, self._store, candidate, "shadow")
            job["params"] |= {
                "champion": "the champion", "limit": limits["latency"],
                "max_s": seconds or (regression.max_s if regression else None),
            }  # fmt: skip
            for side, engine in {"candidate": candidate, "champion": champion}.items():
                paths = {f"{side} folder": str(engine.folder), f"{side} passport": str(engine.passport.source)}
                job["unkeyed"] |= paths
            job["unkeyed"] |= {"requests": str(requests.resolve())} if requests else {}
            report = self._run(job, SHADOW_FILE)
            yield Served(candidate.passport.id, shadow_checks(report, limits), report)

    def together(
        self, several: Sequence[Selected], memory_mib: float | None, seconds: float | None
    ) -> Iterator[Served]:
        """Serve all engines on one server at once. memory_mib: the budget of all."""
        parts, limits = list[Job](), dict[str, float | None]()
        for selected in several:
            load = selected.plan.loaded.recipe.performance.serving.load
            for engine in selected.engines:
                job = job_of(selected.plan, self._store, engine, "together")
                names = ("samples", "labels", "package", "batches")
                made = job["inputs"].get("evaluation")
                evaluation = str(find_made(Path(made))) if made else job["unkeyed"]["evaluation"]
                parts.append({
                    **{name: job["params"][name] for name in names}, "folder": str(engine.folder),
                    "passport": str(engine.passport.source),
                    "evaluation": [evaluation] if isinstance(evaluation, str) else evaluation,
                })  # fmt: skip
                limits[engine.passport.id] = load.p99_ms if load else None
        params = {"parts": parts, "seconds": seconds or TOGETHER_S}
        report = self._run(
            {"kind": "together", "id": "together", "params": params, "inputs": {}, "unkeyed": {}}, TOGETHER_FILE
        )
        p99 = {model: limits[engine] for model, engine in report["engines"].items()}
        yield Served("together", together_checks(report, memory_mib, p99), report)

    def _run(self, job: Job, report: str) -> Mapping[str, Any]:
        out = self._folder / f"served{len(list(self._folder.iterdir()))}"
        out.mkdir()
        with alone_on_this_host():
            self._pool.run(
                STEP_FUNCTION, {**job, "out": str(out)}, fresh=True, what=job["id"], error=RunError,
                on_line=None if self._quiet else terminal.echo,
            )  # fmt: skip
        value: Mapping[str, Any] = read_json_file(out / report)
        return value


def job_of(plan: Plan, store: Store, engine: PackagedEngine, kind: str) -> Job:
    """Return the job of a kind for an engine, with what the step `serve` of its plan has."""
    documents = Documents(plan.loaded, FileDigests(None))
    planned = next(e for e in plan.engines if e.id == engine.passport.id)
    compare = plan.steps[planned.steps["compare"]]
    compared = (compare.key, dict(compare.document))
    document, unkeyed = documents.serve(planned.target, planned.steps["build"], compared, {})
    stored = {role: store.get(key) for role, key in document["inputs"].items() if role != "build"}
    return {
        "kind": kind, "id": f"{engine.passport.id}/{kind}", "params": dict(document["params"]),
        "inputs": {role: str(artifact.path) for role, artifact in stored.items() if artifact is not None},
        "unkeyed": {k: [str(p) for p in v] if isinstance(v, list | tuple) else str(v) for k, v in unkeyed.items()},
    }  # fmt: skip
