"""Random histories of builds, releases, rollbacks, deletions and gc: nothing that is referred to is ever freed."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from engineworks.builds.record_note import note_used_by
from engineworks.commands.garbage import collect_garbage
from engineworks.fingerprint import digest_of
from engineworks.settings import Settings
from engineworks.store.leases import Lease
from engineworks.store.store import Store
from engineworks.tracking.aliases import Slot
from engineworks.tracking.build_run import BuildRun
from engineworks.tracking.records import ENGINE, ENGINE_BUILD_KEY, RECIPE, RUN, EngineRecord
from engineworks.tracking.runs import Tracking, open_tracking

pytest.importorskip("mlflow")
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own models

MODEL = "tiny"
SLOT = Slot(MODEL, "cpu", "int8")
STEPS = ("export", "lower", "build", "compare")
MADE_FROM = {"export": (), "lower": ("export",), "build": ("lower",), "compare": ("export", "build")}
MODELS = st.integers(0, 2)
LIMITS = st.integers(0, 2)


@dataclass
class Engine:
    """What one build makes: its steps' documents by kind, in order."""

    documents: dict[str, dict[str, object]]

    @property
    def keys(self) -> dict[str, str]:
        return {kind: digest_of(document) for kind, document in self.documents.items()}


def engine(model: int, limit: int) -> Engine:
    """Engines share steps: every `limit` has its own engine, every `model` its own export."""
    documents: dict[str, dict[str, object]] = {}
    for kind in STEPS:
        inputs = {name: digest_of(documents[name]) for name in MADE_FROM[kind]}
        own = {"export": model, "lower": 0, "build": limit, "compare": 0}[kind]
        documents[kind] = {"step": kind, "own": own, "inputs": inputs}
    return Engine(documents)


@dataclass
class Running:
    engine: Engine
    lease: Lease
    record: BuildRun
    run_id: str
    made: set[str] = field(default_factory=set)


class Histories(RuleBasedStateMachine):
    """A store and a record of its own, and what must be there, kept by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="engineworks-histories-"))
        shutil.copyfile(EMPTY / "mlflow.db", self.root / "mlflow.db")  # opening a fresh one takes a second
        self.settings = Settings(self.root, str(self.root / "store"))
        self.store = Store(self.root / "store")
        self.tracking = Tracking(self.root, f"sqlite:///{self.root / 'mlflow.db'}", "engineworks")
        self.client = self.tracking._connect().client
        self.client.create_registered_model(MODEL, tags={RECIPE: MODEL})
        note_used_by(self.store, self.root, self.tracking)
        self.running: list[Running] = []
        self.runs: dict[str, set[str]] = {}
        self.deleted: set[str] = set()
        self.versions: dict[int, set[str]] = {}
        self.number = 0
        self.files = self.root / "version"
        (self.files / "data" / "engine").mkdir(parents=True)
        (self.files / "data" / "engine" / "engine").write_bytes(b"engine")

    def teardown(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    @rule(model=MODELS, limit=LIMITS)
    def begin_build(self, model: int, limit: int) -> None:
        self.number += 1
        made = engine(model, limit)
        lease = Lease(self.store.root, made.keys.values())
        record = self.tracking.start_build(MODEL, f"key-{self.number}", {}, {}, made.keys.values())
        self.running.append(Running(made, lease, record, record.run_id))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def run_step(self, data: st.DataObject) -> None:
        build = data.draw(st.sampled_from(self.running))
        todo = [kind for kind in STEPS if build.engine.keys[kind] not in build.made]
        if todo:
            key = build.engine.keys[todo[0]]
            with self.store.writing(key, build.engine.documents[todo[0]], f"tiny/int8/cpu/{todo[0]}") as writing:
                if writing.hit is None:
                    (writing.folder / "file").write_text(todo[0])
            build.made.add(key)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), how=st.sampled_from(["recorded", "recorded", "killed"]))
    def end_build(self, data: st.DataObject, how: str) -> None:
        build = data.draw(st.sampled_from(self.running))
        self.running.remove(build)
        if how == "recorded" and len(build.made) == len(STEPS):
            keys = tuple(build.engine.keys.values())
            run = build.record.record_engine(EngineRecord("tiny/int8/cpu", store_keys=keys))
            self.runs[run] = {*keys}
            build.record.finish()
        if how == "recorded" or build.made:  # a killed build's own run still names its plan
            self.runs[build.run_id] = set(build.engine.keys.values()) & build.made
        build.lease.end()

    @precondition(lambda self: any(len(keys) == len(STEPS) for keys in self.runs.values()))
    @rule(data=st.data(), champion=st.booleans())
    def release(self, data: st.DataObject, champion: bool) -> None:
        whole = [r for r, keys in self.runs.items() if len(keys) == len(STEPS) and r not in self.deleted]
        if not whole:
            return
        run = data.draw(st.sampled_from(whole))
        build_key = next(key for key in self.runs[run] if self.store.require(key).step.endswith("/build"))
        tags = {RECIPE: MODEL, ENGINE: "tiny/int8/cpu", RUN: run, ENGINE_BUILD_KEY: build_key}
        version = int(self.client.create_model_version(MODEL, str(self.files), run_id=run, tags=tags).version)
        self.versions[version] = self.runs[run]
        self.client.set_registered_model_alias(MODEL, SLOT.alias("candidate"), str(version))
        registry = self.tracking.registry()
        if champion:
            now = registry.versions_at("champion", [SLOT])[SLOT]
            assert registry.promote(SLOT, version, expected=now) == "moved"

    @precondition(lambda self: len(self.versions) > 1)
    @rule()
    def roll_back(self) -> None:
        self.tracking.registry().rollback(SLOT)

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def delete_run(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(list(self.runs)))  # in order: ids are random
        if run not in self.deleted:
            self.client.delete_run(run)
            self.deleted.add(run)

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def delete_version(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.versions)))
        self.client.delete_model_version(MODEL, str(version))
        del self.versions[version]

    @rule()
    def collect(self) -> None:
        before = set(self.store.keys())
        if self.runs or self.running:
            freed = collect_garbage(self.settings, keep_hours=0, dry_run=False)
            left = set(self.store.keys())
            assert freed.artifacts == len(before) - len(left)
            assert self.in_use() <= left, "gc freed what is in use"

    def in_use(self) -> set[str]:
        keys = {key for run, of_run in self.runs.items() if run not in self.deleted for key in of_run}
        keys |= {key for build in self.running for key in build.made}
        model = self.client.get_registered_model(MODEL)
        named = {int(version) for version in model.aliases.values()}
        for text in [text for tag, text in model.tags.items() if tag == SLOT.history_tag]:
            named |= {int(version) for version in text.strip("[]").split(",")}
        return keys.union(*(of_version for version, of_version in self.versions.items() if version in named))


EMPTY = Path(tempfile.mkdtemp(prefix="engineworks-empty-"))


@pytest.fixture(scope="module", autouse=True)
def _empty_record() -> None:
    open_tracking(EMPTY).check()


def run(examples: int, steps: int) -> None:
    machine = Histories.TestCase
    machine.settings = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), print_blob=True,
    )  # fmt: skip
    seed(16)(machine)().runTest()


def test_nothing_in_use_is_ever_freed() -> None:
    run(3, 50)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nothing_in_use_is_ever_freed_in_10000_steps() -> None:
    run(int(os.environ.get("HISTORIES", "100")), 100)
