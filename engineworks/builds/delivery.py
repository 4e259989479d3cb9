"""What one worker brought about for one engine, as a value in the store: the parent reads it by its digest.

A worker knows its own hardware, and so the keys of its `compare` and `measure` steps; the parent does not. So it
publishes which steps it ended with, and the parent puts them into its own plan before it judges. Nothing of it passes
through Prefect but the digest, in the message of the flow run's state.
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
from engineworks.plan.plan import Plan, PlannedEngine, Step
from engineworks.recipe.selection import selects
from engineworks.store.store import Store

BODY_FILE = "body.json"
VERSION = 1

_DIGEST = re.compile(r"\b(?P<kind>delivery|verdicts) (?P<key>[0-9a-f]{64})\b")


@dataclass(frozen=True)
class Delivery:
    """One engine as a worker left it. `keys`: its last steps by kind; `steps`: those steps; `failures`: by key."""

    engine: str
    keys: Mapping[StepName, str]
    steps: tuple[Step, ...]
    outcomes: tuple[Outcome, ...]
    failures: Mapping[str, Failure]
    unmeasured_because: str
    host: str

    def to_json(self) -> dict[str, Any]:
        return {
            "engine": self.engine,
            "keys": dict(self.keys),
            "steps": [
                {name: getattr(s, name) for name in ("kind", "id", "key", "document", "state", "reason")}
                for s in self.steps
            ],
            "outcomes": [asdict(o) for o in self.outcomes],
            "failures": {key: asdict(f) for key, f in self.failures.items()},
            "unmeasured_because": self.unmeasured_because,
            "host": self.host,
        }  # fmt: skip

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Delivery:
        steps = tuple(Step(**s, inputs=s["document"]["inputs"], unkeyed={}) for s in value["steps"])
        return Delivery(
            engine=value["engine"],
            keys=value["keys"],
            steps=steps,
            outcomes=tuple(Outcome(**o) for o in value["outcomes"]),
            failures={key: Failure(**f) for key, f in value["failures"].items()},
            unmeasured_because=value["unmeasured_because"],
            host=value["host"],
        )


def delivery_of(build: Build) -> Delivery:
    """The delivery of a build whose plan holds one engine."""
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
    """Put what the worker did into the parent's build, as if it had been done here."""
    build.plan = merge_plan(build.plan, delivery)
    build.outcomes.extend(delivery.outcomes)
    build.failures.update(delivery.failures)


def merge_plan(plan: Plan, delivery: Delivery) -> Plan:
    """The plan with the engine's steps as they were on the worker's hardware."""
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
    """Keys of the steps to run before the engines' own can: those on the CPU pool."""
    keys = plan.closure(key for engine in engines for key in engine.steps.values())
    return {key for key in keys if _is_shared(plan.steps[key])}


def is_named(engine: PlannedEngine, glob: str | None) -> bool:
    """Whether the glob over ids, if there is one, is about this engine."""
    return glob is not None and selects(glob, engine.id)


def is_unfinished(plan: Plan, engine: PlannedEngine) -> bool:
    """Whether a step of its own is not in the store: to do here, or on other hardware."""
    return any(plan.steps[key].state != "cached" for key in engine.steps.values())


def unprepared(plan: Plan) -> Step | None:
    """The first prepare step that is still to do."""
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
    """What `publish_body` stored. Raises `StoreError` where it is not there."""
    return cast(Mapping[str, Any], store.require(key).read_json(BODY_FILE))


def digest_in(message: str | None, kind: Literal["delivery", "verdicts"]) -> str | None:
    """The key that a flow run's last words name, None if they name none."""
    return next((m["key"] for m in _DIGEST.finditer(message or "") if m["kind"] == kind), None)


def order_of(plan: Plan, engine: PlannedEngine) -> str:
    """Digest of what is asked of a worker for this engine: its steps but for the hardware that they run on."""
    asked = {kind: _without_hardware(plan, key) for kind, key in engine.steps.items()}
    champion = engine.champion.to_json() if engine.champion else None
    return digest_of({"engine": engine.id, "champion": champion, "steps": asked})


def note_delivery(store: Store, engine_id: str, order: str, key: str, workers: Iterable[str] = ()) -> None:
    """Remember on this host that the order was carried out, so that the same is not ordered again. workers: names of
    those that could have taken it."""
    store.note_latest(f"{engine_id}/delivery", {"order": order, "delivery": key, "workers": sorted(workers)})


def was_asked(store: Store, plan: Plan, engine: PlannedEngine, workers: Iterable[str]) -> bool:
    """Whether these workers (by their names, new at every start) got this very order before: if the engine is still
    unmeasured, none of them has its hardware."""
    noted = store.latest(f"{engine.id}/delivery")
    if noted is None or noted.get("order") != order_of(plan, engine) or not store.has(engine.steps["build"]):
        return False
    return set(workers) <= set(noted.get("workers", ()))


def with_deliveries(plan: Plan, store: Store, *, again: str | None = None) -> Plan:
    """The plan with what workers did for the same orders in earlier builds, verified. `again`: glob over ids of engines
    to order again: nothing here notices a new driver on a worker's host."""
    for engine in plan.engines:
        if is_unfinished(plan, engine) and not is_named(engine, again):
            known = _find_delivery(store, plan, engine)
            if known is not None:
                steps = tuple(replace(s, state="cached", reason="") for s in known.steps)
                plan = merge_plan(plan, replace(known, steps=steps))
    return plan


def _is_shared(step: Step) -> bool:
    """Whether the CPU pool runs it once for all engines of the recipe."""
    return STEP_KINDS[step.kind].owner == "recipe"


def _find_delivery(store: Store, plan: Plan, engine: PlannedEngine) -> Delivery | None:
    """The delivery of the same order, if everything it speaks of is still in the store."""
    noted = store.latest(f"{engine.id}/delivery")
    if noted is None or noted.get("order") != order_of(plan, engine) or store.get(str(noted["delivery"])) is None:
        return None
    delivery = Delivery.from_json(read_body(store, str(noted["delivery"])))
    return delivery if all(store.get(key) is not None for key in delivery.keys.values()) else None


def _without_hardware(plan: Plan, key: str) -> object:
    """The step's document: the hardware left out, and its engine's own steps written out in place of their keys."""
    document, inputs = plan.steps[key].document, plan.steps[key].inputs
    return {name: value for name, value in document.items() if name not in ("hardware", "inputs")} | {
        "inputs": {
            role: inner if _is_shared(plan.steps[inner]) else _without_hardware(plan, inner)
            for role, inner in inputs.items()
        }
    }


def _finite(value: Any) -> Any:
    """Without what JSON cannot express: NaN and infinity become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
