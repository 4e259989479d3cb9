"""The jobs of `engineworks serve`: each serves one engine's package in a child and judges its report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engineworks.builds.step import STEP_FUNCTION, alone_on_this_host
from engineworks.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_PASSED, RunError
from engineworks.fingerprint import FileDigests
from engineworks.host.child import ChildPool
from engineworks.measure.gates.gates import Check, worst
from engineworks.measure.gates.serving import serving_checks
from engineworks.measure.gates.shadow import shadow_checks, shadow_limits
from engineworks.package.package import PackagedEngine
from engineworks.plan.documents import Documents
from engineworks.plan.kinds import SERVING_FILE, SHADOW_FILE
from engineworks.plan.plan import Plan
from engineworks.report import terminal
from engineworks.store.json_files import read_json_file
from engineworks.store.store import Store

Job = dict[str, Any]


@dataclass(frozen=True)
class Judged:
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

    def say(self) -> None:
        more = ""
        if "ready_s" in self.report:
            more = f", ready in {self.report['ready_s']:.2f} s by Triton's backend {self.report['backend']}"
        terminal.say(f"{self.id}: {worst(self.checks)}{more}")
        for check in self.checks:
            terminal.say(f"  {check.verdict:<12} {check.name}: {check.message}")


class Server:
    """Serves engines of a plan, one after the other. quiet: without the jobs' lines."""

    def __init__(self, plan: Plan, store: Store, folder: Path, pool: ChildPool, *, quiet: bool) -> None:
        self._plan, self._store, self._folder, self._pool, self._quiet = plan, store, folder, pool, quiet

    def serve(self, engines: Sequence[PackagedEngine], more: Job, limits: Job | None) -> Iterator[Judged]:
        """Run the step `serve` for each. more: parameters that replace the recipe's; limits: of the load."""
        for engine in engines:
            job = self._job(engine, "serve")
            job["params"] |= more
            job["inputs"] |= {"build": str(engine.folder)}
            job["unkeyed"] |= {"passport": str(engine.passport.source)}
            report = self._run(job, SERVING_FILE)
            yield Judged(engine.passport.id, serving_checks(report, limits, ""), report)

    def shadow(
        self, pairs: Sequence[tuple[PackagedEngine, PackagedEngine]], requests: Path | None, seconds: float | None
    ) -> Iterator[Judged]:
        """Serve each candidate beside its champion. pairs: candidate and champion. requests: recorded ones. seconds:
        that timing may take, by default the recipe's `performance.regression.max_s`."""
        recipe = self._plan.loaded.recipe
        regression = recipe.performance.regression
        for candidate, champion in pairs:
            cosine = next(v.cosine for k, v in recipe.accuracy.limits.items() if k == candidate.precision)
            limits = shadow_limits(regression, cosine)
            job = self._job(candidate, "shadow")
            job["params"] |= {
                "champion": "the champion", "limit": limits["latency"],
                "max_s": seconds or (regression.max_s if regression else None),
            }  # fmt: skip
            for side, engine in {"candidate": candidate, "champion": champion}.items():
                paths = {f"{side} folder": str(engine.folder), f"{side} passport": str(engine.passport.source)}
                job["unkeyed"] |= paths
            job["unkeyed"] |= {"requests": str(requests.resolve())} if requests else {}
            report = self._run(job, SHADOW_FILE)
            yield Judged(candidate.passport.id, shadow_checks(report, limits), report)

    def _job(self, engine: PackagedEngine, kind: str) -> Job:
        """Return the job of a kind for an engine, with what the step `serve` of its plan has."""
        documents = Documents(self._plan.loaded, FileDigests(None))
        planned = next(e for e in self._plan.engines if e.id == engine.passport.id)
        compare = self._plan.steps[planned.steps["compare"]]
        compared = (compare.key, dict(compare.document))
        document, unkeyed = documents.serve(planned.target, planned.steps["build"], compared, {})
        stored = {role: self._store.get(key) for role, key in document["inputs"].items() if role != "build"}
        return {
            "kind": kind, "id": f"{engine.passport.id}/{kind}", "params": dict(document["params"]),
            "inputs": {role: str(artifact.path) for role, artifact in stored.items() if artifact is not None},
            "unkeyed": {k: [str(p) for p in v] if isinstance(v, list | tuple) else str(v) for k, v in unkeyed.items()},
        }  # fmt: skip

    def _run(self, job: Job, report: str) -> Mapping[str, Any]:
        out = self._folder / f"served{len(list(self._folder.iterdir()))}"
        out.mkdir()
        with alone_on_this_host():
            self._pool.run(
                STEP_FUNCTION, {**job, "out": str(out)}, fresh=True, what=job["id"], error=RunError,
                on_line=None if self._quiet else terminal.say,
            )  # fmt: skip
        value: Mapping[str, Any] = read_json_file(out / report)
        return value
