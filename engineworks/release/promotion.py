"""Engines that passed → versions in MLflow's registry. The champion changes only on a pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from engineworks.builds.results import BuildResult, EngineResult
from engineworks.engines.backends._feeds import narrowed_feeds
from engineworks.engines.engine_files import NOT_SHIPPED, PASSPORT_FILE
from engineworks.engines.passport import read_passport
from engineworks.engines.sidecar import Sidecar
from engineworks.engines.signing import SIGNATURE, Trust
from engineworks.errors import EXIT_INCONCLUSIVE, EXIT_PASSED, InputError
from engineworks.host.lazy import Array
from engineworks.host.packages import installed_version
from engineworks.plan.plan import Plan
from engineworks.plan.prepared import stored_evaluation
from engineworks.recipe.load import LoadedRecipe
from engineworks.recipe.profiles import evaluation_batches
from engineworks.recipe.selection import refuse_unmatched, select
from engineworks.release.issuer import Issuer, read_issuer
from engineworks.tracking.aliases import Slot, registered_name, slot_of
from engineworks.tracking.champion_list import Standing
from engineworks.tracking.engine_model import EngineModel
from engineworks.tracking.registry import Registry
from engineworks.tracking.runs import Tracking
from engineworks.typed_json import Record

Action = Literal["promoted", "already champion", "kept", "overtaken"]

OPTIONAL_TAGS = frozenset({"engineworks.waived", "engineworks.signed_by"})
EXAMPLE_ROWS = 2


@dataclass(frozen=True)
class EngineRelease(Record):
    """The result for one engine. version: its own in the registry, None where it did not pass; before: version of the
    champion that it was compared with."""

    id: str
    action: Action
    version: int | None
    before: int | None
    uri: str
    message: str


@dataclass(frozen=True)
class ReleaseResult:
    """A build and its releases."""

    build: BuildResult
    model: str
    engines: tuple[EngineRelease, ...]

    def to_json(self) -> dict[str, Any]:
        return {**self.build.to_json(), "model": self.model, "releases": [e.to_json() for e in self.engines]}

    def exit_code(self) -> int:
        """0 only if every engine is champion now; an engine overtaken by another release must be evaluated again."""
        code = self.build.exit_code(require_verdict=True)
        overtaken = any(e.action == "overtaken" for e in self.engines)
        return EXIT_INCONCLUSIVE if code == EXIT_PASSED and overtaken else code


def registered_model(loaded: LoadedRecipe) -> str:
    """Return the name of the recipe's registered model."""
    return registered_name(loaded.recipe.release.model, loaded.name)


def slots_of(loaded: LoadedRecipe, only: str | None) -> dict[str, Slot]:
    """Return the registry slot of each engine that `only` selects."""
    return {engine: slot_of(registered_model(loaded), engine) for engine in select_engines(loaded, only)}


def champions_before(loaded: LoadedRecipe, registry: Registry) -> dict[str, int | None]:
    """Return the champion's version for every engine's slot. Call it before planning: the plan holds the champion that
    engines are compared with.

    Raises `TrackingError`, and `InputError` where the release could not be signed: better known before a build.
    """
    read_issuer(loaded.name)
    slots = slots_of(loaded, None)
    champions = registry.versions_at("champion", list(slots.values()))
    return {engine: champions[slot] for engine, slot in slots.items()}


def release_build(
    plan: Plan, result: BuildResult, tracking: Tracking, champions: Mapping[str, int | None]
) -> ReleaseResult:
    """Release every engine of a recorded build. champions: result of `champions_before`."""
    registry = tracking.registry()
    released = [
        release_engine(plan, e, result.run, tracking, registry, champions[e.id], dropped=result.dropped.get(e.id, ""))
        for e in result.engines
    ]
    return ReleaseResult(result, registered_model(plan.loaded), tuple(released))


def release_engine(
    plan: Plan, engine: EngineResult, run: str, tracking: Tracking, registry: Registry, champion: int | None,
    *, dropped: str = "",
) -> EngineRelease:  # fmt: skip
    """Register an engine that passed and promote it, unless the champion has changed since. dropped: why `precisions:
    auto` dropped it; such an engine is not registered."""
    slot = slot_of(registered_model(plan.loaded), engine.id)
    alias, lost = slot.alias("champion"), registry.standings([slot])[slot].lost
    if dropped or engine.verdict != "pass":
        stays = f"{alias} stays at version {champion}" if champion else f"there is no {alias}"
        stays = f"{alias} is missing: {lost}" if lost else stays
        why = f"dropped, {dropped}" if dropped else engine.verdict
        return EngineRelease(engine.id, "kept", None, champion, slot.uri(), f"{why}: {stays}")
    issuer = read_issuer(plan.recipe)
    version = registry.register(engine_model(plan, engine, slot, _run_of(tracking, engine, run))).version
    issue = issuer.promotion(slot, _sidecar(engine).sha256)
    move = registry.promote(slot, version, expected=champion, issue=issue, passport=engine.passport)
    if move != "overtaken":
        issuer.remember(registry.statements(slot), slot)
    waived = f", waived: {'; '.join(engine.waived)}" if engine.waived else ""
    if move == "overtaken":
        message = f"version {version} passed, but another release moved {alias} meanwhile: run the release again"
        message += f" ({lost})" if lost else ""
        return EngineRelease(engine.id, "overtaken", version, champion, slot.uri(), message)
    if move == "already":
        message = f"version {version} is {alias} already{waived}"
        return EngineRelease(engine.id, "already champion", version, champion, slot.uri(), message)
    came = f"moved from version {champion} to version {version}" if champion else f"is version {version}, the first"
    came = f"is version {version}; before it, {lost}" if lost else came
    message = f"{alias} {came}{waived}"
    return EngineRelease(engine.id, "promoted", version, champion, slot.uri(), message)


def roll_back(loaded: LoadedRecipe, registry: Registry, only: str | None) -> list[EngineRelease]:
    """Move champions back to the previous versions in the list of champions. A champion without a predecessor stays,
    with the reason; so does a slot without releases. Raises `InputError` if no champion moves."""
    model = registered_model(loaded)
    slots, issuer = slots_of(loaded, only), read_issuer(loaded.name)
    standings = registry.standings(list(slots.values()))
    if not any(standing.listed or standing.lost for standing in standings.values()) and not registry.exists(model):
        what = f"there is no registered model '{model}' in MLflow: nothing was released"
        raise InputError(what, hint="nothing was changed")
    outcomes = [_roll_back(engine, slot, standings[slot], registry, issuer) for engine, slot in slots.items()]
    if all(outcome.action == "kept" for outcome in outcomes):
        which = f" that '{only}' selects" if only else ""
        notable = [
            f"{outcome.id}: {outcome.message}" for outcome in outcomes if not outcome.message.endswith(NONE_BEFORE)
        ]
        why = ": " + "; ".join(notable) if notable else ""
        raise InputError(f"no champion of {loaded.name}{which} has one before it{why}", hint="nothing was changed")
    return outcomes


NONE_BEFORE = "there is none before it"


def _roll_back(engine: str, slot: Slot, standing: Standing, registry: Registry, issuer: Issuer) -> EngineRelease:
    alias, last = slot.alias("champion"), standing.last
    move = registry.rollback(slot, issuer.rollback(slot)) if last else None
    if move is not None:
        issuer.remember(registry.statements(slot), slot)
        lost = f"; {standing.lost}" if standing.lost else ""
        skipped = takewhile(lambda version: version != move[1], reversed(standing.listed[:-1]))
        lost += "".join(f"; passed over: {registry.why_unfit(slot, version)}" for version in skipped)
        message = f"{alias} moved back from version {move[0]} to version {move[1]}{lost}"
        return EngineRelease(engine, "promoted", move[1], move[0], slot.uri(), message)
    if last is None:
        message = f"there is no {alias}: " + (standing.lost or "it was never released")
        return EngineRelease(engine, "kept", None, None, slot.uri(), message)
    unfit = [registry.why_unfit(slot, v) for v in reversed(standing.listed[:-1])]
    message = f"{alias} is missing ({standing.lost})" if standing.lost else f"{alias} stays at version {last}"
    message += f": no version before it is left ({'; '.join(unfit)})" if unfit else f": {NONE_BEFORE}"
    message += "; run 'engineworks release'" if standing.lost else ""
    return EngineRelease(engine, "kept", None, standing.current, slot.uri(), message)


def select_engines(loaded: LoadedRecipe, only: str | None) -> list[str]:
    """Return ids of the recipe's engines that the globs select. Raises `TargetError` for a glob that selects none."""
    refuse_unmatched(only, loaded.engine_ids, loaded.name)
    return select(only, loaded.engine_ids, loaded.name)


def _sidecar(engine: EngineResult) -> Sidecar:
    assert engine.sidecar is not None  # it passed
    return engine.sidecar


def engine_model(plan: Plan, engine: EngineResult, slot: Slot, run_id: str) -> EngineModel:
    """Return the engine to register: its files with sidecar and passport, and an example from the evaluation data."""
    assert engine.path is not None  # it passed, so both exist
    assert engine.passport is not None
    sidecar = _sidecar(engine)
    files = {f.name: f for f in engine.path.parent.iterdir() if f.name not in NOT_SHIPPED}
    decoder = engine.accuracy.decoder if engine.accuracy else None
    prompts = tuple(p.prompt for p in decoder.prompts) if decoder else ()
    return EngineModel(
        slot=slot,
        recipe=plan.recipe,
        engine=engine.id,
        digest=sidecar.sha256,
        run_id=run_id,
        files={**files, PASSPORT_FILE: engine.passport},
        inputs=sidecar.inputs,
        outputs=sidecar.outputs,
        example={} if prompts else narrowed_feeds(sidecar.inputs, example_feeds(plan)),
        prompts=prompts,
        requirements=requirements(sidecar.versions, text=bool(prompts)),
        tags=_version_tags(engine),
        optional_tags=OPTIONAL_TAGS,
    )


def example_feeds(plan: Plan) -> dict[str, Array]:
    """Return evaluation data for one run, one array [rows, …] per input: 2 rows if the profiles allow it, otherwise
    their minimum batch."""
    allowed = evaluation_batches(plan.loaded.recipe)
    rows = EXAMPLE_ROWS if allowed[0] < EXAMPLE_ROWS <= allowed[-1] else allowed[0]
    return dict(next(stored_evaluation(plan.loaded).batches([rows])))


def requirements(versions: Mapping[str, str], *, text: bool = False) -> list[str]:
    """Return what a host needs to load the engine, as pip requirements: the versions that built it. text: whether it
    generates text, with its tokenizer."""
    names = ("engineworks", "numpy", "cryptography", *(("tokenizers",) if text else ()))
    installed = {name: installed_version(name) for name in names}
    pinned: Iterable[tuple[str, str | None]] = [*installed.items(), *versions.items()]
    return [f"{name}=={version}" for name, version in pinned if version]


def _version_tags(engine: EngineResult) -> dict[str, str]:
    assert engine.passport is not None
    signature = read_passport(engine.passport, Trust()).body.get(SIGNATURE) or {}
    tags = {
        "engineworks.verdict": engine.verdict,
        "engineworks.build_key": engine.keys["build"],
        "engineworks.waived": "; ".join(engine.waived),
        "engineworks.signed_by": signature.get("key_id", ""),
    }
    return {name: value[:TAG_CHARS] for name, value in tags.items() if value}


TAG_CHARS = 5000


def _run_of(tracking: Tracking, engine: EngineResult, parent: str) -> str:
    """Return the engine's own run in the build."""
    runs: Sequence[Any] = tracking.find_runs(engine=engine.id, parent_run_id=parent, kind="engine", limit=1)
    if not runs:
        raise InputError(f"{engine.id}: run {parent} holds no record of it", hint="run 'engineworks build' again")
    return str(runs[0].run_id)
