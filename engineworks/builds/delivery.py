"""A worker's result for one engine, as a value in the store that the parent reads by its digest.

Only the worker knows its own hardware, and so the keys of its `compare` and `measure` steps. It publishes its last
steps, and the parent puts them into its own plan before evaluating. Only the digest passes through Prefect, in the
message of the flow run's state.
"""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

from engineworks.builds.results import Failure
from engineworks.builds.state import Build
from engineworks.builds.step import Outcome
from engineworks.errors import StoreError
from engineworks.fingerprint import canonical_json, digest_of
from engineworks.plan.kinds import STEP_KINDS, StepName
from engineworks.plan.plan import Plan, PlannedEngine
from engineworks.plan.steps import Step
from engineworks.recipe.selection import selects
from engineworks.store.store import Store

BODY_FILE = "body.json"
VERSION = 1

_DIGEST = re.compile(r"\b(?P<kind>delivery|verdicts) (?P<key>[0-9a-f]{64})\b")


@dataclass(frozen=True)
class Delivery:
    """A worker's result for one engine. `keys`: its last steps by kind; `steps`: those steps; `failures`: by key."""

    engine: str
    keys: Mapping[StepName, str]
    steps: tuple[Step, ...]
    outcomes: tuple[Outcome, ...]
    failures: Mapping[str, Failure]
    unmeasured_because: str
    host: str

    def to_json(self) -> dict[str, Any]:
        named = ("kind", "id", "key", "document", "state", "reason")
        return vars(self) | {
            "keys": dict(self.keys),
            "steps": [{name: getattr(s, name) for name in named} for s in self.steps],
            "outcomes": [asdict(o) for o in self.outcomes],
            "failures": {key: asdict(f) for key, f in self.failures.items()},
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Delivery:
        steps = tuple(Step(**s, inputs=s["document"]["inputs"], unkeyed={}) for s in value["steps"])
        outcomes = tuple(Outcome(**o) for o in value["outcomes"])
        failures = {key: Failure(**f) for key, f in value["failures"].items()}
        return Delivery(**{**value, "steps": steps, "outcomes": outcomes, "failures": failures})


def delivery_of(build: Build) -> Delivery:
    """Return the delivery of a build whose plan holds one engine."""
    (engine,) = build.plan.engines
    return Delivery(
        engine=engine.id,
        keys=dict(engine.steps),
        steps=tuple(build.plan.steps[key] for key in engine.steps.values()),
        outcomes=tuple(build.outcomes),
        failures=dict(build.failures),
        unmeasured_because=engine.unmeasured_because,
        host=platform.node(),
    )


def take_delivery(build: Build, delivery: Delivery) -> None:
    """Put the worker's steps into the parent's build, as if they had run here."""
    build.plan = merge_plan(build.plan, delivery)
    build.outcomes.extend(delivery.outcomes)
    build.failures.update(delivery.failures)


def merge_plan(plan: Plan, delivery: Delivery) -> Plan:
    """Return the plan with the engine's steps as they were on the worker's hardware."""
    engine = next(e for e in plan.engines if e.id == delivery.engine)
    delivered = replace(engine, steps=dict(delivery.keys), unmeasured_because=delivery.unmeasured_because)
    engines = tuple(delivered if e.id == engine.id else e for e in plan.engines)
    used = {key for e in engines for key in e.steps.values()}
    steps = {key: step for key, step in plan.steps.items() if key in used or key not in engine.steps.values()}
    missing = sorted({k for s in delivery.steps for k in s.inputs.values()} - steps.keys() - {*delivery.keys.values()})
    if missing:
        raise StoreError(
            f"{engine.id}: host {delivery.host} used other steps than this plan ({missing[0][:12]}…)",
            hint="are recipes and library versions the same on both hosts?",
        )
    return replace(plan, engines=engines, steps=steps | {step.key: step for step in delivery.steps})


def prepare_keys(plan: Plan, engines: Sequence[PlannedEngine]) -> set[str]:
    """Return keys of the steps on the CPU pool, which run before the engines' own."""
    keys = plan.closure(key for engine in engines for key in engine.steps.values())
    return {key for key in keys if _is_shared(plan.steps[key])}


def is_named(engine: PlannedEngine, glob: str | None) -> bool:
    """Return whether the glob over ids, if given, matches this engine."""
    return glob is not None and selects(glob, engine.id)


def is_unfinished(plan: Plan, engine: PlannedEngine) -> bool:
    """Return whether the store lacks one of the engine's own steps: to do here, or on other hardware."""
    return any(plan.steps[key].state != "cached" for key in engine.steps.values())


def unprepared(plan: Plan) -> Step | None:
    """Return the first prepare step that is still to do."""
    return next((step for step in plan.to_do if _is_shared(step)), None)


def publish_body(store: Store, kind: Literal["delivery", "verdicts"], name: str, body: Mapping[str, Any]) -> str:
    """Store a JSON value under the digest of its contents; returns its key."""
    body = _finite(body)
    document: dict[str, Any] = {"step": kind, "version": VERSION, "name": name, "sha256": digest_of(body), "inputs": {}}
    key = digest_of(document)
    with store.writing(key, document, f"{name}/{kind}") as writing:
        if writing.hit is None:
            (writing.folder / BODY_FILE).write_text(canonical_json(body), encoding="utf-8")
    return key


def read_body(store: Store, key: str) -> Mapping[str, Any]:
    """Read what `publish_body` stored. Raises `StoreError` if it is missing."""
    return cast(Mapping[str, Any], store.require(key).read_json(BODY_FILE))


def digest_in(message: str | None, kind: Literal["delivery", "verdicts"]) -> str | None:
    """Return the key in a flow run's final message, None if it has none."""
    return next((m["key"] for m in _DIGEST.finditer(message or "") if m["kind"] == kind), None)


def order_of(plan: Plan, engine: PlannedEngine) -> str:
    """Digest what a worker is asked to do for this engine: its steps without their hardware."""
    asked = {kind: _without_hardware(plan, key) for kind, key in engine.steps.items()}
    champion = engine.champion.to_json() if engine.champion else None
    return digest_of({"engine": engine.id, "champion": champion, "steps": asked})


def note_delivery(store: Store, engine_id: str, order: str, key: str, workers: Iterable[str] = ()) -> None:
    """Record on this host that the order was carried out, so that it is not repeated. workers: names of those that
    could have taken it."""
    store.note_latest(f"{engine_id}/delivery", {"order": order, "delivery": key, "workers": sorted(workers)})


def was_asked(store: Store, plan: Plan, engine: PlannedEngine, workers: Iterable[str]) -> bool:
    """Return whether these workers got this order before. They are known by their names, new at every start. If the
    engine is still unmeasured, none of them has its hardware."""
    noted = store.latest(f"{engine.id}/delivery")
    if noted is None or noted.get("order") != order_of(plan, engine) or not store.has(engine.steps["build"]):
        return False
    return set(workers) <= set(noted.get("workers", ()))


def with_deliveries(plan: Plan, store: Store, *, again: str | None = None) -> Plan:
    """Return the plan with verified deliveries for the same orders in earlier builds.

    `again`: glob over ids of engines to order again, because this host does not notice a new driver on a worker's.
    """
    for engine in plan.engines:
        if is_unfinished(plan, engine) and not is_named(engine, again):
            known = _find_delivery(store, plan, engine)
            if known is not None:
                steps = tuple(replace(s, state="cached", reason="") for s in known.steps)
                plan = merge_plan(plan, replace(known, steps=steps))
    return plan


def _is_shared(step: Step) -> bool:
    """Return whether the CPU pool runs the step once for all engines of the recipe."""
    return STEP_KINDS[step.kind].owner == "recipe"


def _find_delivery(store: Store, plan: Plan, engine: PlannedEngine) -> Delivery | None:
    """Return the delivery of the same order, if the store still has everything it refers to."""
    noted = store.latest(f"{engine.id}/delivery")
    if noted is None or noted.get("order") != order_of(plan, engine) or store.get(str(noted["delivery"])) is None:
        return None
    delivery = Delivery.from_json(read_body(store, str(noted["delivery"])))
    return delivery if all(store.get(key) is not None for key in delivery.keys.values()) else None


def _without_hardware(plan: Plan, key: str) -> object:
    """Return the step's document without hardware, with its engine's own steps in place of their keys."""
    document, inputs = plan.steps[key].document, plan.steps[key].inputs
    return {name: value for name, value in document.items() if name not in ("hardware", "inputs")} | {
        "inputs": {
            role: inner if _is_shared(plan.steps[inner]) else _without_hardware(plan, inner)
            for role, inner in inputs.items()
        }
    }


def _finite(value: Any) -> Any:
    """Replace what JSON cannot express: NaN and infinity become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
