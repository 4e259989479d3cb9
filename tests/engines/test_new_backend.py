"""A backend that the house does not know yet: a module, a line in the table and a row of capabilities are enough."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
from passport_body import passport_body

from engineworks.builds import step as run
from engineworks.builds.ladders import ladders
from engineworks.builds.memory_guard import MIB, needs_of
from engineworks.builds.results import EngineResult
from engineworks.engines.backends import BACKENDS
from engineworks.engines.backends.base import BuildMemory, Option, Traits, TritonBackend
from engineworks.engines.capabilities import CAPABILITIES, END, Capabilities, Named
from engineworks.engines.passport import Passport
from engineworks.errors import RecipeError
from engineworks.host.file_digests import FileDigests
from engineworks.package.package import PackagedEngine, write_package
from engineworks.plan.plan import Plan, plan_recipe
from engineworks.recipe.load import load_recipe
from engineworks.recipe.smoke import in_mode
from engineworks.store.store import Store


def openvino() -> ModuleType:
    """The module: what a backend must have, without a library behind it."""
    module = ModuleType("fake_openvino")
    vars(module).update(
        TITLE="OpenVINO",
        DISTRIBUTIONS=("openvino",),
        NEEDS_GPU_TO_BUILD=False,
        OPTIONS={"hint": Option(str, "what to favor", ("latency", "throughput"))},
        IMPORTS=(),
        TRAITS=Traits(
            build_memory=BuildMemory(200.0, 2.0),
            triton=TritonBackend("openvino", (), file="model.xml", options={"hint": "PERFORMANCE_HINT"}),
            on_gpu=False,
            unquantized="fp32",
            smoke_options={"hint": "latency"},
            own_process=True,
            relative_times={"fp32": 1.0, "fp16": 2.0, "int8": 0.25},
        ),
        versions=lambda: {"openvino": "2026.1"},
        hardware=lambda: {"cpu": "fake"},
        why_not_build=lambda _: None,
        build=lambda request, log: None,
    )
    return module


@pytest.fixture
def planned(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The tiny recipe on a target of the new backend."""
    row = Capabilities("OpenVINO", ("2026",), (Named((2026,), END, ()),))
    monkeypatch.setitem(sys.modules, "fake_openvino", openvino())
    monkeypatch.setitem(cast(dict[str, str], BACKENDS), "openvino", "fake_openvino")
    monkeypatch.setitem(cast(dict[str, Capabilities], CAPABILITIES), "openvino", row)
    recipe = repository / "recipes" / "tiny.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("[fp32, int8]", "auto"), encoding="utf-8")
    targets = repository / "recipes" / "_targets.yaml"
    targets.write_text("targets:\n  cpu: {backend: openvino, options: {hint: throughput}}\n", encoding="utf-8")
    return plan_recipe(load_recipe(recipe), Store(repository / "store"), FileDigests(None))


def test_it_is_planned_with_its_library_and_its_surrounding_precision(planned: Plan) -> None:
    engines = {e.precision: e for e in planned.engines}
    assert engines["int8"].computes == ("int8", "fp32")
    build = planned.steps[engines["int8"].steps["build"]]
    assert build.document["libraries"]["openvino"] is None  # not installed here
    assert build.params["target"] == {
        "backend": "openvino", "compute_capability": [], "options": {"hint": "throughput"},
    }  # fmt: skip
    compare = planned.steps[engines["int8"].steps["compare"]]
    assert compare.document["hardware"] == {"cpu": "fake"}
    assert run._environment(compare, {}) == {"ENGINEWORKS_CHILD": "runs engines"}
    assert run._environment(build, {}) == {}
    assert run.attempts_of(build) == 1


def test_its_options_are_checked_and_a_smoke_build_sets_its_own(planned: Plan, repository: Path) -> None:
    (target,) = in_mode(planned.loaded, "smoke").targets
    assert target.target.options == {"hint": "latency"}
    targets = repository / "recipes" / "_targets.yaml"
    targets.write_text("targets:\n  cpu: {backend: openvino, options: {hint: speed}}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="option 'hint' of OpenVINO is 'speed': one of latency, throughput"):
        load_recipe(repository / "recipes" / "tiny.yaml")
    targets.write_text("targets:\n  cpu: {backend: openvinno}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="backend: 'openvinno' is not a choice; did you mean 'openvino'"):
        load_recipe(repository / "recipes" / "tiny.yaml")


def test_the_memory_of_its_builds_is_guarded(planned: Plan, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(repository / "store")
    monkeypatch.setattr(Store, "size_of", lambda *_: 30 * MIB)
    build = next(s for s in planned.steps.values() if s.kind == "build")
    assert needs_of(store)(build) == 260.0


def test_its_own_times_order_the_ladder(planned: Plan, repository: Path) -> None:
    engines = [EngineResult(e.id, "unmeasured", ()) for e in planned.engines]
    (ladder,) = ladders(planned, engines, Store(repository / "store"))
    tried = [c for c in ladder.candidates if c.estimate is not None]
    assert (ladder.basis, tried[0].precision, tried[0].estimate) == ("estimated", "int8", 0.25)
    assert [c.precision for c in tried].index("fp32") < [c.precision for c in tried].index("fp16")


def test_it_is_packaged_under_tritons_name_for_it(planned: Plan, repository: Path, tmp_path: Path) -> None:
    folder, source = tmp_path / "engine", tmp_path / "passport.json"
    folder.mkdir()
    (folder / "engine").write_bytes(b"<net/>")
    target = {"name": "cpu", "backend": "openvino", "compute_capability": [], "options": {"hint": "throughput"}}
    spec = {"name": "image", "dtype": "float32", "shape": ["batch", 1, 4, 4]}
    engine: dict[str, Any] = {
        "id": "tiny/fp32/cpu", "precision": "fp32", "target": target, "sha256": "0" * 64,
        "files": {"engine": {"bytes": 6, "sha256": "0" * 64}},
        "inputs": [spec], "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 3]}],
    }  # fmt: skip
    body = passport_body(engine)
    source.write_text(json.dumps(body))
    engines = [PackagedEngine(folder, Passport(body, source))]
    (model,) = write_package(planned.loaded, engines, tmp_path / "models", available={"openvino"})
    config = (model / "config.pbtxt").read_text(encoding="utf-8")
    assert model.name == "tiny-fp32-cpu"
    assert (model / "1" / "model.xml").read_bytes() == b"<net/>"
    assert not (model / "1" / "model.py").exists()
    assert 'backend: "openvino"' in config
    assert "kind: KIND_CPU" in config
    assert 'key: "PERFORMANCE_HINT"' in config
