"""Selects the engines of a package: built here, or champions of the registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engineworks.builds.ladders import ladders
from engineworks.builds.passport import recipe_origin, with_passport
from engineworks.builds.results import EngineResult, EngineVerdict, engine_result
from engineworks.engines.passport import read_passport, verify_files
from engineworks.engines.signing import Trust, read_trust
from engineworks.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_PASSED, EXIT_STEP_FAILED, InputError
from engineworks.measure.check import deciding
from engineworks.measure.ladder.ladder import ladder_statements
from engineworks.package.package import PackagedEngine
from engineworks.plan.plan import Plan
from engineworks.recipe.load import LoadedRecipe
from engineworks.release.promotion import slots_of
from engineworks.store.store import Store
from engineworks.tracking.registry import Registry

WAY_OUT = "'engineworks rollback' goes back to the one before, 'engineworks release' makes a new one"


@dataclass(frozen=True)
class LeftOut:
    """An engine that is not packaged, with the reason."""

    id: str
    verdict: EngineVerdict | str
    message: str

    @property
    def exit_code(self) -> int:
        codes = {
            "fail": EXIT_GATE_FAILED,
            "failed": EXIT_STEP_FAILED,
            "no champion": EXIT_PASSED,
            "dropped": EXIT_PASSED,
        }
        return codes.get(self.verdict, EXIT_INCONCLUSIVE)


def built_engines(plan: Plan, store: Store, *, unmeasured: bool) -> tuple[list[PackagedEngine], list[LeftOut]]:
    """Return the plan's stored engines that passed; with `precisions: auto`, only chosen ones. unmeasured: include
    engines that this host could not run."""
    origin = recipe_origin(plan)
    packaged, left = [], []
    evaluated = [engine_result(plan, planned, store, {}) for planned in plan.engines]
    statements = ladder_statements(ladders(plan, evaluated, store))
    for evaluated_engine in evaluated:
        engine = with_passport(plan, evaluated_engine, store, origin)
        if statements.get(engine.id, "").startswith("dropped"):
            left.append(LeftOut(engine.id, "dropped", statements[engine.id]))
        elif engine.path is None or engine.passport is None:
            left.append(LeftOut(engine.id, "unmeasured", "was not built: run 'engineworks build' first"))
        elif engine.verdict == "pass" or (unmeasured and engine.verdict == "unmeasured"):
            passport = verify_files(engine.path.parent, read_passport(engine.passport, Trust()))
            packaged.append(PackagedEngine(engine.path.parent, passport))
        else:
            left.append(LeftOut(engine.id, engine.verdict, _why(engine)))
    return packaged, left


def champion_engines(
    loaded: LoadedRecipe, registry: Registry, only: str | None, into: Path
) -> tuple[list[PackagedEngine], list[LeftOut]]:
    """Fetch the registry's champions, each into a folder under `into`, and hold them against their roles. Raises
    `TrustError`."""
    packaged, left = [], []
    trust = read_trust()
    slots = slots_of(loaded, only)
    standings = registry.standings(list(slots.values()))
    for number, (engine, slot) in enumerate(slots.items()):
        standing = standings[slot]
        if lost := standing.lost or (registry.why_unfit(slot, standing.current) if standing.current else ""):
            left.append(LeftOut(engine, "champion missing", f"has lost its champion: {lost}; {WAY_OUT}"))
            continue
        if standing.current is None:
            left.append(LeftOut(engine, "no champion", "has no champion: it was never released"))
            continue
        (into / str(number)).mkdir(parents=True)
        fetched = registry.fetch(slot.model, standing.current, slot.alias("champion"), into / str(number), trust)
        verify_files(fetched.folder, fetched.passport)
        packaged.append(PackagedEngine(fetched.folder, fetched.passport, fetched.statements))
    return packaged, left


def require_some(engines: list[PackagedEngine], left: list[LeftOut], echo: Callable[[LeftOut], str]) -> None:
    """Raises `InputError` if no engine can be packaged."""
    if not engines:
        raise InputError("there is no engine to package:\n" + "\n".join(map(echo, left)))


def _why(engine: EngineResult) -> str:
    if engine.failure:
        return f"failed: {engine.failure.message.splitlines()[0]}"
    check = deciding(engine.checks)
    return f"{engine.verdict}: {check.message if check else ''}"
