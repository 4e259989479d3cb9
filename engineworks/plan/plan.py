"""Recipe × targets → plan: every step with its key, whether the store has it, and why not.

Pure except for reading the store: runs nothing and imports nothing heavy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from functools import partial
from itertools import product
from typing import Any

from engineworks.engines.backends import backend_facts
from engineworks.errors import TargetError
from engineworks.fingerprint import canonical_json, digest_of
from engineworks.host.file_digests import FileDigests
from engineworks.measure.champion import NONE, Champion, Champions
from engineworks.plan.champion_comparison import champion_comparison_document
from engineworks.plan.decoder_documents import every_document
from engineworks.plan.differences import changes
from engineworks.plan.documents import Documents
from engineworks.plan.kinds import StepName
from engineworks.plan.peers import PlannedPeer, plan_peers
from engineworks.plan.precisions import known_unsupported, known_uses, lower_id, refusal
from engineworks.plan.remeasure import measured_again
from engineworks.plan.served import served_again
from engineworks.plan.steps import Step, StepTable, closure
from engineworks.recipe.computation import computation
from engineworks.recipe.load import LoadedRecipe
from engineworks.recipe.selection import refuse_unmatched, select
from engineworks.recipe.targets import NamedTarget
from engineworks.store.store import Store
from engineworks.typed_json import Record


@dataclass(frozen=True)
class PlannedEngine:
    """One engine of the plan. `steps`: its last steps by kind. `unmeasured_because`: why it cannot run here, or ''.
    `computes`: the plain precisions that its own consists of, such as int8 with fp16 for unquantized nodes."""

    id: str
    recipe: str
    precision: str
    target: NamedTarget
    steps: Mapping[StepName, str]
    unmeasured_because: str = ""
    champion: Champion | None = None
    computes: tuple[str, ...] = ()
    champion_unknown: str = ""
    """Why the champion lookup failed, or ''."""
    champion_lost: str = ""
    """Why MLflow lacks the champion that its list of champions names, or ''."""
    unserved_because: str = ""
    """Why the recipe's wish to serve the package cannot be met here, or ''."""

    def to_json(self) -> dict[str, object]:
        return {
            "id": self.id, "precision": self.precision, "target": self.target.name,
            "computes": list(self.computes), "steps": dict(self.steps), "unmeasured_because": self.unmeasured_because,
            "champion": self.champion.to_json() if self.champion else None,
            **({"champion_lost": self.champion_lost} if self.champion_lost else {}),
        }  # fmt: skip


@dataclass(frozen=True)
class Refused(Record):
    """An engine that its target cannot run and that is not built. message: the reason."""

    id: str
    message: str


@dataclass(frozen=True)
class Plan:
    """Everything that a build of one recipe will do. `steps` follow their inputs. `peers`: requested baselines to
    compare the engines with. `today`: the UTC day of evaluation, because waivers expire; all hosts use the same."""

    loaded: LoadedRecipe
    engines: tuple[PlannedEngine, ...]
    refused: tuple[Refused, ...]
    steps: Mapping[str, Step] = field(default_factory=dict)
    peers: tuple[PlannedPeer, ...] = ()
    today: date = field(default_factory=lambda: datetime.now(UTC).date())
    not_selected: tuple[str, ...] = ()
    """Ids of the recipe's engines that `--only` left out."""

    @property
    def recipe(self) -> str:
        return self.loaded.name

    @property
    def to_do(self) -> tuple[Step, ...]:
        return tuple(s for s in self.steps.values() if s.state == "to do")

    @property
    def build_key(self) -> str:
        """Digest of what this build decides: its engines' steps, their limits and waivers."""
        limits = self.loaded.recipe.model_dump(mode="json", include={"accuracy", "performance"})
        waivers = [w.model_dump(mode="json") for w in self.loaded.recipe.waivers if self.today <= w.expires]
        if waivers:
            limits["waivers"] = waivers
        peers = {"peers": {p.id: p.step for p in self.peers}} if self.peers else {}
        champions = {e.id: e.champion.to_json() for e in self.engines if e.champion}
        unknown = {e.id: "unknown" for e in self.engines if e.champion_unknown}
        unknown |= {e.id: e.champion_lost for e in self.engines if e.champion_lost}
        rivals = {"champions": champions | unknown} if champions or unknown else {}
        ladder = {"ladder": True} if self.loaded.auto else {}
        return digest_of(
            {"engines": {e.id: dict(e.steps) for e in self.engines}, "limits": limits, **peers, **rivals, **ladder}
        )

    @property
    def goals(self) -> set[str]:
        """Keys of the engines' and the peers' last steps."""
        return {k for e in self.engines for k in e.steps.values()} | {p.step for p in self.peers if p.step}

    def closure(self, keys: Iterable[str]) -> set[str]:
        """Return these keys and all their direct and indirect inputs."""
        return closure(keys, lambda key: self.steps[key].inputs.values())

    def needed(self, keys: Iterable[str]) -> list[Step]:
        """Return the steps of these keys and of all their inputs, in the plan's order."""
        needed = self.closure(keys)
        return [step for key, step in self.steps.items() if key in needed]

    def to_json(self) -> dict[str, object]:
        return {
            "recipe": self.recipe,
            "file": self.loaded.shown,
            "resolved": self.loaded.recipe.model_dump(mode="json"),
            "auto": self.loaded.auto is not None,
            "targets": {t.name: t.to_json() for t in self.loaded.targets},
            "engines": [e.to_json() for e in self.engines],
            "refused": [r.to_json() for r in self.refused],
            "not_selected": list(self.not_selected),
            "peers": [p.to_json() for p in self.peers],
            "steps": [s.to_json() for s in self.steps.values()],
        }


def plan_recipe(
    loaded: LoadedRecipe,
    store: Store,
    digests: FileDigests,
    *,
    only: str | None = None,
    compare: Sequence[str] = (),
    champions: Champions = NONE,
) -> Plan:
    """Plan one recipe. `only`: globs over the engine ids to plan. `compare`: names of peers. `champions`: those that
    its engines are compared with, by `champion_lookup.find_champions`.

    Raises `TargetError` if `only` selects nothing, or only engines that their targets refuse.
    """
    pairs = product(loaded.recipe.precisions, loaded.targets)
    ids = dict(zip(loaded.engine_ids, pairs, strict=True))
    chosen = {i: ids[i] for i in select(only, list(ids), loaded.name)}
    made, table = every_document(loaded, digests), StepTable()
    uses = known_uses(made[loaded.targets[0].context], store)
    refused = {
        i: s
        for i, (p, t) in chosen.items()
        if (s := refusal(loaded.recipe, p, t, uses, grows=loaded.files.grows)) is not None
    }
    engines = []
    for engine_id, (precision, target) in chosen.items():
        if engine_id not in refused:
            engine = _plan_engine(made[target.context], table, engine_id, precision, target, champions, store)
            if message := known_unsupported(store, f"{engine_id}/build", engine.steps["build"]):
                refused[engine_id] = message
            else:
                engines.append(engine)
    if not engines:
        raise none_left(refused)
    table.by_key = _needed(table.by_key, engines)
    peers = plan_peers(made[max(made)], compare, table.add)
    limits: dict[str, float] = loaded.recipe.time_limits.model_dump(exclude_none=True)
    limited = {key: _limited(step, limits) for key, step in table.by_key.items()}
    refusals = tuple(Refused(i, s) for i, s in refused.items())
    left_out = tuple(i for i in ids if i not in chosen)
    return with_states(Plan(loaded, tuple(engines), refusals, limited, peers, not_selected=left_out), store)


def with_states(plan: Plan, store: Store) -> Plan:
    """Return the plan with every step's state. To do are goals and their inputs that the store lacks."""
    stored = {key for key in plan.steps if store.has(key)}
    foreign = {s for e in plan.engines if e.unmeasured_because for k, s in e.steps.items() if k != "build"}

    def inputs(key: str) -> Iterable[str]:
        return () if key in stored or key in foreign else plan.steps[key].inputs.values()

    needed = closure(plan.goals, inputs)

    def settled(key: str, step: Step) -> Step:
        if key in stored:
            return replace(step, state="cached", reason="")
        if key not in needed:
            return replace(step, state="not needed", reason="nothing that is to do reads it")
        if key in foreign:
            because = "this host cannot run the engine; see 'engineworks doctor'"
            return replace(step, state="needs another GPU", reason=because)
        return replace(step, state="to do", reason=_why(step, store))

    return replace(plan, steps={key: settled(key, step) for key, step in plan.steps.items()})


def _why(step: Step, store: Store) -> str:
    before = store.latest(step.id)
    if before is None:
        return "never built"
    changed = list(changes(before, json.loads(canonical_json(step.document))))  # as stored: no tuples
    return "; ".join(changed[:3]) if changed else "no longer in the store"


def none_left(refused: Mapping[str, str]) -> TargetError:
    """Make the error to raise where every engine is refused. refused: reasons by engine id."""
    return TargetError("\n".join(f"{i}: {s}" for i, s in refused.items()))


def _needed(steps: dict[str, Step], engines: Sequence[PlannedEngine]) -> dict[str, Step]:
    """Drop the steps of refused engines."""
    needed = closure((key for e in engines for key in e.steps.values()), lambda key: steps[key].inputs.values())
    return {key: step for key, step in steps.items() if key in needed or step.kind == "prepare"}


def verify_stored(plan: Plan, store: Store) -> bool:
    """Check the contents of every stored result that the plan uses. True if a damaged one was removed."""
    used = {key for step in plan.to_do for key in step.inputs.values()}
    used |= plan.goals
    stored = [key for key in used if plan.steps[key].state == "cached"]
    return any([store.get(key) is None for key in stored])  # noqa: C419 - every one is looked at


def plan_recipes(
    loaded: Sequence[LoadedRecipe],
    store: Store,
    digests: FileDigests,
    *,
    only: str | None = None,
    compare: Sequence[str] = (),
    champions: Callable[[LoadedRecipe], Champions] = lambda _: NONE,
) -> list[Plan]:
    """Plan several recipes; every glob of `only` must match in at least one of them."""
    names = " and ".join(recipe.name for recipe in loaded)
    refuse_unmatched(only, [engine for recipe in loaded for engine in recipe.engine_ids], names)
    plans, reasons = [], []
    for recipe in loaded:
        try:
            plans.append(plan_recipe(recipe, store, digests, only=only, compare=compare, champions=champions(recipe)))
        except TargetError as error:
            if len(loaded) == 1:
                raise
            reasons.append(str(error))
    if not plans:
        raise TargetError("no engine can be built:\n" + "\n".join(reasons))
    digests.save()
    return plans


def _plan_engine(
    documents: Documents,
    table: StepTable,
    engine_id: str,
    precision: str,
    target: NamedTarget,
    champions: Champions,
    store: Store,
) -> PlannedEngine:
    """Add the engine's steps and their inputs to `table`."""
    add, once = table.add, table.add_once
    recipe, branch, variant = documents.name, f"{documents.name}/{precision}", documents.variant
    export = once("export", f"{recipe}/export{variant}", documents.export)
    for part, data in documents.prepared():
        once("prepare", f"{recipe}/prepare-{part}{variant}", partial(documents.prepare, data))
    fold = once("fold", f"{recipe}/fold{variant}", partial(documents.fold, export))
    computes = computation(documents.recipe, precision, target.target.backend)
    ranges = add("calibrate", f"{branch}/calibrate", *documents.calibrate(fold)) if computes.calibrated else None
    lowered_id = lower_id(branch, computes) + variant
    lower = add("lower", lowered_id, *documents.lower(precision, computes, fold, ranges))
    build = add("build", f"{engine_id}/build", *documents.build(precision, computes, target, lower))
    reference = once("reference", f"{recipe}/reference{variant}", partial(documents.reference, fold))
    chosen: dict[StepName, str] = {"build": build}
    name = f"{branch}/lowered-reference" + lowered_id.removeprefix(f"{branch}/lower")
    lowered = add("lowered_reference", name, *documents.lowered_reference(computes, lower, reference))
    chosen["compare"] = add("compare", f"{engine_id}/compare", *documents.compare(target, build, reference, lowered))
    champion, regression = champions.by_engine.get(engine_id), documents.recipe.performance.regression
    comparison = None
    if champion is not None and regression is not None and regression.latency is not None:
        measured = documents.measure(target, build, lower)
        comparison = champion_comparison_document(measured, champion, champions, regression.model_dump(), store)
    if documents.recipe.performance.at:
        chosen["measure"] = add(
            "measure", f"{engine_id}/measure", *_measure(documents, target, (build, lower), comparison, store)
        )
    if comparison is not None:
        chosen["compare_champion"] = add("compare_champion", f"{engine_id}/compare-champion", *comparison)
    unserved = _serve(documents, chosen, table, engine_id, target, store)
    why = backend_facts(target.target.backend).why_not_run(target.target.compute_capability) or ""
    parts, unknown = computes.parts, champions.unknown_because
    lost = champions.lost.get(engine_id, "")
    return PlannedEngine(engine_id, recipe, precision, target, chosen, why, champion, parts, unknown, lost, unserved)


def _serve(
    documents: Documents, chosen: dict[StepName, str], table: StepTable, engine_id: str, target: NamedTarget,
    store: Store,
) -> str:  # fmt: skip
    """Add the serving step if the recipe wants one. Returns why this host has no server for it, or ''."""
    server, why = documents.server
    if server is not None:
        compared = (chosen["compare"], dict(table.by_key[chosen["compare"]].document))
        document, unkeyed = documents.serve(target, chosen["build"], compared, dict(server))
        chosen["serve"] = table.add("serve", f"{engine_id}/serve", served_again(document, store), unkeyed)
    return why


def _measure(
    documents: Documents,
    target: NamedTarget,
    made: tuple[str, str],
    comparison: tuple[Mapping[str, Any], Mapping[str, Any]] | None,
    store: Store,
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the measuring step's document and unkeyed inputs; the next attempt's if the stored one was noisy. made:
    keys of the build and of what it was lowered to."""
    document, unkeyed = documents.measure(target, *made)
    by_history = comparison is not None and comparison[1]["by_history"]
    return measured_again(document, documents.recipe.performance.budget, store, by_history=by_history), unkeyed


def _limited(step: Step, limits: Mapping[str, float]) -> Step:
    """Apply the recipe's time limit in seconds for the step's kind; it shapes no result and no key."""
    limit_s = limits.get(step.kind)
    return step if limit_s is None else replace(step, unkeyed={**step.unkeyed, "time_limit_s": limit_s})
