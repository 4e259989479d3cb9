"""Recipe → the cost of each part of its model in a precision, and the `keep` list that meets its limits.

Folding, ranges, lowering, engine and comparison are the steps of a build, taken from the store if it has them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engineworks.builds.step import run_heard, run_needed
from engineworks.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_PASSED, InputError, did_you_mean
from engineworks.fingerprint import digest_of
from engineworks.host.file_digests import FileDigests
from engineworks.measure.accuracy_report import Accuracy
from engineworks.measure.check import Check
from engineworks.measure.gates.gates import Verdict, evaluate_gates
from engineworks.measure.sensitivity_report import SensitivityReport
from engineworks.plan.decoder_documents import documents_of
from engineworks.plan.plan import Plan, plan_recipe
from engineworks.plan.steps import Step
from engineworks.recipe.batch import fixed_batch
from engineworks.recipe.computation import computation
from engineworks.recipe.load import LoadedRecipe, load_recipe, load_targets, refuse_decoders
from engineworks.recipe.recipe import CALIBRATED, Limits
from engineworks.recipe.targets import NamedTarget
from engineworks.settings import Settings
from engineworks.store.leases import Lease
from engineworks.store.shared import open_store
from engineworks.store.store import Store


@dataclass(frozen=True)
class Sensitivity:
    """The measured sensitivity. verdict: of the engine with that list, if any."""

    loaded: LoadedRecipe
    id: str
    found: SensitivityReport
    verdict: Verdict | None

    @property
    def proven(self) -> bool:
        """Whether no check failed for the engine of this list."""
        return self.verdict is not None and self.verdict.verdict in ("pass", "unmeasured")

    @property
    def exit_code(self) -> int:
        if not self.found.limits:
            return EXIT_PASSED
        if self.verdict is None or self.verdict.verdict == "fail":
            return EXIT_GATE_FAILED
        return EXIT_PASSED if self.verdict.verdict == "pass" else EXIT_INCONCLUSIVE

    def to_json(self) -> dict[str, Any]:
        verdict = self.verdict
        return {
            "id": self.id, **self.found.to_json(),
            "verdict": verdict.verdict if verdict else None,
            "verdict_checks": [c.to_json() for c in verdict.checks] if verdict else [],
        }  # fmt: skip


def measure_sensitivity(
    recipe: Path, settings: Settings, *, precision: str, target: str, samples: int | None = None
) -> Sensitivity:
    """Try the groups, find the list, build its engine and compare it on all evaluation data.

    `samples`: how many of the evaluation samples the search uses, default all. The recipe's own `keep` is ignored.
    Raises `RecipeError`, `InputError` for invalid requests, and the errors of the steps.
    """
    loaded = load_recipe(recipe, data_roots=settings.data_roots)
    refuse_decoders([loaded], "sensitivity")
    wanted = _narrowed(loaded, precision, _find_target(loaded, target), keep=())
    store, digests = open_store(settings), FileDigests(settings.artifacts / "digests.db")
    plan = plan_recipe(wanted, store, digests)
    lease = Lease(store.root, plan.steps)
    step = _sensitivity_step(wanted, plan, digests, samples)
    run_needed(plan, step.inputs.values(), store)
    run_heard(step, store)
    report = store.require(step.key).read(SensitivityReport)
    verdict = None
    if report.keep is not None:
        kept = _narrowed(loaded, precision, wanted.targets[0], keep=report.keep)
        verdict = _evaluate_engine(plan_recipe(kept, store, digests), store)
    digests.save()
    lease.end()
    return Sensitivity(loaded, plan.engines[0].id, report, verdict)


def _find_target(loaded: LoadedRecipe, name: str) -> NamedTarget:
    """Return a target of the recipe, or any other of the file next to it."""
    own = next((t for t in loaded.targets if t.name == name), None)
    if own is not None:
        return own
    known = load_targets(loaded.path.parent)
    if name not in known:
        raise InputError(f"--target: there is no target '{name}'", hint=did_you_mean(name, known))
    return NamedTarget(name, known[name])


def _narrowed(loaded: LoadedRecipe, precision: str, target: NamedTarget, *, keep: tuple[str, ...]) -> LoadedRecipe:
    """Return the recipe with one precision, one target and this `keep`. Raises `InputError` if it has no use."""
    recipe = loaded.recipe
    if precision not in (*CALIBRATED, *recipe.mixtures):
        possible = (*CALIBRATED, *recipe.mixtures)
        hint = f"say one that does: {', '.join(possible)}"
        raise InputError(f"--precision: '{precision}' quantizes no activations", hint=hint)
    if not computation(recipe, precision, target.target.backend).calibrated:
        raise InputError(
            f"--precision: the mixture '{precision}' quantizes no activations", hint="'keep' is not for it"
        )
    if loaded.files.calibration is None:
        raise InputError(f"{loaded.shown}: {precision} needs calibration data", hint="data: {calibration: {npz: FILE}}")
    calibration = recipe.calibration.model_copy(update={"keep": keep})
    updates = {"precisions": (precision,), "targets": (target.name,), "calibration": calibration}
    return replace(loaded, recipe=recipe.model_copy(update=updates), targets=(target,))


def _sensitivity_step(loaded: LoadedRecipe, plan: Plan, digests: FileDigests, samples: int | None) -> Step:
    data = loaded.files.evaluation
    if samples is not None:
        if not 1 <= samples <= data.total:
            raise InputError(f"--samples: {samples} are asked for, the evaluation data has {data.total}")
        fixed = fixed_batch(data.specs) or 1
        if samples % fixed:
            raise InputError(
                f"--samples: {samples}, and the model takes {fixed} at a time", hint=f"a multiple of {fixed}"
            )
        data = replace(data, count=samples)
    precision, target = loaded.recipe.precisions[0], loaded.targets[0]
    computes = computation(loaded.recipe, precision, target.target.backend)
    fold, ranges = (next(s.key for s in plan.steps.values() if s.kind == kind) for kind in ("fold", "calibrate"))
    document, unkeyed = documents_of(loaded, digests).sensitivity(precision, computes, target, fold, ranges, data)
    name = f"{loaded.name}/{precision}/sensitivity"
    return Step("sensitivity", name, digest_of(document), document, document["inputs"], unkeyed)


def _evaluate_engine(plan: Plan, store: Store) -> Verdict:
    """Build the engine and compare it, as a build does; nothing is timed."""
    engine = plan.engines[0]
    limits = {str(name): given for name, given in plan.loaded.recipe.accuracy.limits.items()}
    if engine.unmeasured_because:
        return evaluate_gates(None, None, Limits(), {}, unmeasured_because=engine.unmeasured_because)
    run_needed(plan, [engine.steps["compare"]], store)
    report = store.require(engine.steps["compare"]).read(Accuracy)
    return evaluate_gates(report, None, limits.get(engine.precision, Limits()), {})


def failures(verdict: Verdict) -> Iterable[Check]:
    """Return the checks that the engine failed or that had no result."""
    return (check for check in verdict.checks if check.verdict != "pass")
