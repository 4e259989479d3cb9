"""The plan: keys hold everything that shapes a result and nothing else; states and reasons follow the store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import free_height, tiny_model
from typed_reports import fold_json

from engineworks.errors import TargetError
from engineworks.fingerprint import digest_of
from engineworks.host.file_digests import FileDigests
from engineworks.host.triton import NO_SERVER
from engineworks.plan.differences import changes
from engineworks.plan.plan import Plan, plan_recipe, verify_stored
from engineworks.plan.precisions import note_unsupported
from engineworks.plan.refusals import refuse_folded
from engineworks.recipe.load import load_recipe
from engineworks.store.store import Store


def plan(repository: Path, only: str | None = None) -> Plan:
    loaded = load_recipe(repository / "recipes" / "tiny.yaml")
    return plan_recipe(loaded, Store(repository / "artifacts" / "store"), FileDigests(None), only=only)


def edit(repository: Path, old: str, new: str) -> None:
    path = repository / "recipes" / "tiny.yaml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def keys(plan: Plan) -> dict[str, str]:
    return {step.id: step.key for step in plan.steps.values()}


def changed(before: Plan, after: Plan) -> set[str]:
    old, new = keys(before), keys(after)
    return {i.removeprefix("tiny/") for i in old.keys() & new.keys() if old[i] != new[i]}


def fake_artifact(store: Store, plan: Plan, step_id: str) -> str:
    step = next(s for s in plan.steps.values() if s.id == step_id)
    with store.writing(step.key, step.document, step.id) as writing:
        (writing.folder / "x").write_text("x")
    return step.key


def test_a_package_is_served_where_the_recipe_wants_it_and_a_server_is_at_hand(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = plan(repository)
    assert not any("serve" in engine.steps for engine in before.engines)
    with (repository / "recipes" / "tiny.yaml").open("a") as file:
        file.write("release: {serve: required}\n")
    monkeypatch.delenv("ENGINEWORKS_TRITON", raising=False)
    without = plan(repository)
    assert keys(without) == keys(before)
    assert {engine.unserved_because for engine in without.engines} == {NO_SERVER}
    monkeypatch.setenv("ENGINEWORKS_TRITON", "http://127.0.0.1:1")
    silent = plan(repository)
    assert keys(silent) == keys(before)
    assert {e.unserved_because for e in silent.engines} == {"the Triton server at 127.0.0.1:1 does not answer"}
    monkeypatch.setattr("engineworks.plan.served.version_of", lambda _: "triton 2.51.0")
    served = plan(repository)
    assert {i for i in keys(served) if i.endswith("/serve")} == {"tiny/fp32/cpu/serve", "tiny/int8/cpu/serve"}
    assert {engine.unserved_because for engine in served.engines} == {""}
    step = next(s for s in served.steps.values() if s.kind == "serve")
    assert {"build", "compare", "reference"} <= step.inputs.keys()
    assert step.params["server"] == {"http": "127.0.0.1:1", "grpc": "127.0.0.1:8001", "version": "triton 2.51.0"}
    monkeypatch.setattr("engineworks.plan.served.version_of", lambda _: "triton 2.52.0")
    assert keys(plan(repository)).items() - keys(served).items() == {
        (name, key) for name, key in keys(plan(repository)).items() if name.endswith("/serve")
    }


LOWERED = {"fp32/lowered-reference", "int8/lowered-reference"}
PREPARE = {"export", "fold", "reference", "int8/calibrate", "fp32/lower", "int8/lower"} | LOWERED
ENGINES = {f"{p}/cpu/{s}" for p in ("fp32", "int8") for s in ("build", "compare", "measure")}
ALL = PREPARE | ENGINES


def test_a_key_is_the_digest_of_its_document(repository: Path) -> None:
    for step in plan(repository).steps.values():
        assert step.key == digest_of(step.document)
        assert str(repository) not in json.dumps(step.document)


def test_planning_twice_gives_the_same_keys_wherever_the_repository_lies(repository: Path, tmp_path: Path) -> None:
    first = keys(plan(repository))
    elsewhere = tmp_path / "needs another GPU"
    elsewhere.mkdir()
    (elsewhere / ".git").mkdir()
    shutil.copytree(repository / "recipes", elsewhere / "recipes")
    assert keys(plan(elsewhere)) == first


def test_other_weights_in_the_same_graph_change_every_key(repository: Path) -> None:
    before = plan(repository)
    onnx.save(tiny_model(seed=9), repository / "recipes" / "tiny.onnx")
    assert changed(before, plan(repository)) == ALL


def test_weights_in_a_file_of_their_own_count_too(repository: Path) -> None:
    place = repository / "recipes" / "tiny.onnx"
    onnx.save(tiny_model(), place, save_as_external_data=True, location="tiny.onnx.data", size_threshold=0)
    before = plan(repository)
    data = repository / "recipes" / "tiny.onnx.data"
    raw = bytearray(data.read_bytes())
    raw[0] ^= 1
    data.write_bytes(bytes(raw))
    assert changed(before, plan(repository)) == ALL


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("description: A classifier", "description: The classifier", set()),
        ("owner: tests", "owner: others", set()),
        ("int8: {cosine: 0.98}", "int8: {cosine: 0.97}", set()),
        ("npz: calib.npz", "npz: calib.npz, samples: 8", {s for s in ALL if s.startswith("int8")}),
        ("batch: [1, 4, 16]", "batch: [1, 4, 32]", {"reference"} | LOWERED | ENGINES),
        ("metric: top1", "metric: top1\n  output: logits", {s for s in ENGINES if s.endswith("compare")}),
        ("one: {batch: 1}", "one: {batch: 2}", {s for s in ENGINES if s.endswith("measure")}),
    ],
    ids=["description", "owner", "limits", "calibration samples", "profile", "metric", "measured shape"],
)
def test_a_key_reads_its_slice_of_the_recipe_and_no_more(
    repository: Path, old: str, new: str, expected: set[str]
) -> None:
    before = plan(repository)
    edit(repository, old, new)
    assert changed(before, plan(repository)) == expected


def test_evaluation_data_changes_no_engine(repository: Path) -> None:
    before = plan(repository)
    with np.load(repository / "recipes" / "test.npz") as data:
        arrays = dict(data)
    np.savez(repository / "recipes" / "test.npz", image=arrays["image"] * 2, label=arrays["label"])
    built = {"export", "fold", "int8/calibrate", "fp32/lower", "int8/lower", "fp32/cpu/build", "int8/cpu/build"}
    assert changed(before, plan(repository)) == ALL - built


def test_keep_changes_int8_alone_and_calibrates_nothing_again(repository: Path) -> None:
    before = plan(repository)
    edit(repository, "targets: [cpu]", "calibration: {keep: [conv]}\ntargets: [cpu]")
    assert changed(before, plan(repository)) == {s for s in ALL if s.startswith("int8")} - {"int8/calibrate"}


def test_one_export_and_one_fold_feed_all_and_one_lowering_feeds_every_target(repository: Path) -> None:
    edit(repository, "targets: [cpu]", "targets: [cpu, rtx40]")
    ids = [s.id for s in plan(repository).steps.values()]
    assert ids.count("tiny/export") == ids.count("tiny/fold") == ids.count("tiny/int8/lower") == 1
    assert {"tiny/int8/cpu/build", "tiny/int8/rtx40/build"} <= set(ids)


def test_everything_is_to_do_first_and_only_what_is_missing_afterwards(repository: Path) -> None:
    first = plan(repository)
    assert {s.state for s in first.steps.values()} == {"to do"}
    store = Store(repository / "artifacts" / "store")
    for step in list(first.steps.values()):
        if step.id != "tiny/int8/cpu/measure":
            fake_artifact(store, first, step.id)
    second = plan(repository)
    assert [s.id for s in second.to_do] == ["tiny/int8/cpu/measure"]
    fake_artifact(store, first, "tiny/int8/cpu/measure")
    assert plan(repository).to_do == ()


def test_what_nothing_reads_is_not_needed(repository: Path) -> None:
    first = plan(repository)
    store = Store(repository / "artifacts" / "store")
    for step in first.steps.values():
        if step.kind in ("build", "compare", "measure"):
            fake_artifact(store, first, step.id)
    states = {s.kind: s.state for s in plan(repository).steps.values()}
    assert states["export"] == states["fold"] == states["lower"] == "not needed"


def test_the_reason_of_a_miss_names_what_changed(repository: Path) -> None:
    first = plan(repository)
    store = Store(repository / "artifacts" / "store")
    for step in first.steps.values():
        fake_artifact(store, first, step.id)
    edit(repository, "npz: calib.npz", "npz: calib.npz, samples: 8")
    reasons = {s.id: s.reason for s in plan(repository).to_do}
    assert reasons["tiny/int8/calibrate"] == "samples.count changed from 24 to 8"
    assert reasons["tiny/int8/lower"] == "step 'ranges' changed"


def test_the_reason_names_nothing_that_is_as_it_was(repository: Path) -> None:
    """The store's documents are JSON, the plan's may hold tuples: equal shapes must not count as changed."""
    first = plan(repository)
    store = Store(repository / "artifacts" / "store")
    for step in first.steps.values():
        fake_artifact(store, first, step.id)
    edit(repository, "  default: {batch: [1, 4, 16]}", "  default: {batch: [1, 4, 16]}\n  more: {batch: [1, 8, 32]}")
    reasons = {s.id: s.reason for s in plan(repository).to_do}
    assert "default" not in reasons["tiny/reference"]
    assert "profiles.more is new" in reasons["tiny/reference"]


def test_a_damaged_result_is_found_before_anything_is_built_on_it(repository: Path) -> None:
    store = Store(repository / "artifacts" / "store")
    first = plan(repository)
    for step in first.steps.values():
        fake_artifact(store, first, step.id)
    build = next(s for s in first.steps.values() if s.id == "tiny/fp32/cpu/build")
    file = store.root / "objects" / build.key[:2] / build.key / "x"
    file.chmod(0o644)
    file.write_text("y")
    fresh = Store(store.root)
    assert verify_stored(plan(repository), fresh)
    assert {s.id for s in plan(repository).to_do} == {"tiny/fp32/cpu/build"}


def test_only_plans_what_it_names(repository: Path) -> None:
    chosen = plan(repository, only="*/int8/*")
    assert [e.id for e in chosen.engines] == ["tiny/int8/cpu"]
    assert "tiny/fp32/lower" not in keys(chosen)


def test_only_that_names_nothing_says_what_there_is(repository: Path) -> None:
    with pytest.raises(TargetError, match=r"matches no engine of tiny; did you mean 'tiny/int8/cpu'"):
        plan(repository, only="tiny/int8/cpus")


def test_what_a_target_can_not_do_is_refused_with_a_sentence(repository: Path) -> None:
    edit(repository, "[fp32, int8]", "[fp32, bf16]")
    edit(repository, "int8: {cosine", "bf16: {cosine")
    found = plan(repository)
    assert [r.id for r in found.refused] == ["tiny/bf16/cpu"]
    assert "bf16" in found.refused[0].message
    with pytest.raises(TargetError, match="tiny/bf16/cpu: "):
        plan(repository, only="*/bf16/*")


def test_engines_for_other_hardware_are_built_here_and_left_unmeasured(repository: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    edit(repository, "targets: [cpu]", "targets: [rtx40]")
    found = plan(repository)
    assert all(e.unmeasured_because for e in found.engines)
    states = {s.kind: s.state for s in found.steps.values()}
    assert (states["build"], states["compare"], states["measure"]) == (
        "to do",
        "needs another GPU",
        "needs another GPU",
    )
    assert states["reference"] == "not needed"


def test_the_build_key_holds_the_limits(repository: Path) -> None:
    before = plan(repository).build_key
    edit(repository, "int8: {cosine: 0.98}", "int8: {cosine: 0.97}")
    assert plan(repository).build_key != before


PERFORMANCE = "performance:\n  at: {one: {batch: 1}}\n"


def test_how_engines_are_served_belongs_to_comparing_and_measuring_alone(repository: Path) -> None:
    before = plan(repository)
    edit(repository, PERFORMANCE, PERFORMANCE + "  serving: {kernels: eager}\n")
    assert changed(before, plan(repository)) == {i for i in ENGINES if not i.endswith("build")}


def test_a_sweep_measures_again_but_its_latency_budget_only_chooses_again(repository: Path) -> None:
    before = plan(repository)
    edit(repository, PERFORMANCE, PERFORMANCE + "  sweep: {batch: [16, 1]}\n")
    swept = plan(repository)
    assert changed(before, swept) == {i for i in ENGINES if i.endswith("measure")}
    params = next(s for s in swept.steps.values() if s.kind == "measure").params
    assert params["sweep"] == [
        {"batch": b, "dims": {"batch": b}, "profile": "default", "tail": False} for b in (1, 16)
    ]  # fmt: skip
    edit(repository, "sweep: {batch: [16, 1]}", "sweep: {batch: [16, 1], latency_ms: 3}")
    judged_anew = plan(repository)
    assert changed(swept, judged_anew) == set()
    assert judged_anew.build_key != swept.build_key


def test_the_other_dimensions_of_a_sweep_are_those_of_the_shape_it_names(repository: Path) -> None:
    free_height(repository / "recipes")
    edit(repository, "default: {batch: [1, 4, 16]}", "default: {batch: [1, 4, 16], height: [2, 4, 8]}")
    at = "  at: {low: {batch: 1, height: 2}, high: {batch: 2, height: 8}}\n"
    edit(repository, "  at: {one: {batch: 1}}\n", at + "  sweep: {batch: [4], at: high}\n")
    assert _swept(repository) == [{"batch": 4, "height": 8}]
    edit(repository, ", at: high", "")
    assert _swept(repository) == [{"batch": 4, "height": 2}]


def _swept(repository: Path) -> list[dict[str, int]]:
    step = next(s for s in plan(repository).steps.values() if s.kind == "measure")
    return [one["dims"] for one in step.params["sweep"]]


def test_changes_are_told_in_words() -> None:
    before = {"params": {"batch": 8, "keep": []}, "inputs": {"fold": "a" * 64}, "libraries": {"onnx": "1.22"}}
    now = {
        "params": {"batch": 4, "keep": ["x"]},
        "inputs": {"fold": "b" * 64},
        "libraries": {"onnx": "1.23", "new": "1"},
    }
    assert list(changes(before, now)) == [
        "step 'fold' changed",
        "version of new is new",
        "version of onnx changed from 1.22 to 1.23",
        "batch changed from 8 to 4",
        "keep changed from [] to ['x']",
    ]


def test_a_time_limit_of_the_recipe_is_in_no_key_and_wins_over_the_target_s(repository: Path) -> None:
    before = plan(repository)
    file = repository / "recipes" / "tiny.yaml"
    file.write_text(file.read_text(encoding="utf-8") + "time_limits: {build: 100, reference: 20.5}\n", encoding="utf-8")
    after = plan(repository)
    assert keys(after) == keys(before)
    limits = {(s.kind, s.unkeyed.get("time_limit_s")) for s in after.steps.values()}
    assert limits >= {("build", 100.0), ("reference", 20.5), ("compare", None)}


def test_every_step_of_a_build_can_have_a_time_limit() -> None:
    from engineworks.plan.kinds import STEP_KINDS
    from engineworks.recipe.recipe import TimeLimits

    assert TimeLimits.model_fields.keys() == STEP_KINDS.keys() - {"sensitivity"}


def folded(repository: Path, uses: dict[str, list[str]]) -> Store:
    """A store that has the fold step's report, and it names these uses of operators."""
    store, first = Store(repository / "artifacts" / "store"), plan(repository)
    fold = next(s for s in first.steps.values() if s.kind == "fold")
    with store.writing(fold.key, fold.document, fold.id) as writing:
        (writing.folder / "fold.json").write_text(fold_json(uses))
    return store


def test_once_the_model_is_folded_its_operators_are_asked(repository: Path) -> None:
    edit(repository, "targets: [cpu]", "targets: [cpu, rtx40]")
    before = plan(repository)
    assert before.refused == ()
    store = folded(repository, {"NonZero": ["where"], "MatMul": ["m"]})
    sentence = "cannot run NonZero (node 'where')"
    straight = refuse_folded(before, store)
    for found in (plan(repository), straight):
        assert [r.id for r in found.refused] == ["tiny/fp32/rtx40", "tiny/int8/rtx40"]
        assert all(sentence in r.message for r in found.refused)
        assert {e.target.name for e in found.engines} == {"cpu"}
    states = {s.id: s.state for s in straight.steps.values()}
    assert states["tiny/fp32/rtx40/build"] == "not needed"
    assert states["tiny/fp32/lower"] == states["tiny/fp32/cpu/build"] == "to do"


def test_what_stays_in_fp32_is_not_refused_in_fp16(repository: Path) -> None:
    edit(repository, "targets: [cpu]", "targets: [cpu, rtx40]")
    edit(repository, "[fp32, int8]", "[fp32, fp16, mixed]\nmixtures: {mixed: {default: fp16, fp32: ['op:LSTM']}}")
    edit(repository, "int8: {cosine", "mixed: {cosine: 0.9}\n    fp16: {cosine")
    folded(repository, {"LSTM": ["l"], "LSTM:sequence_lens": ["l"]})
    assert [r.id for r in plan(repository).refused] == ["tiny/fp16/rtx40"]


def test_after_a_build_that_its_builder_can_not_do_the_plan_says_so(repository: Path) -> None:
    store, first = Store(repository / "artifacts" / "store"), plan(repository)
    engine = first.engines[0]
    note_unsupported(store, f"{engine.id}/build", engine.steps["build"], "it has no kernel for Det (node 'd')")
    later = plan(repository)
    assert [(r.id, r.message) for r in later.refused] == [(engine.id, "it has no kernel for Det (node 'd')")]
    assert engine.steps["build"] not in later.steps
    onnx.save(tiny_model(seed=1), str(repository / "recipes" / "tiny.onnx"))
    assert plan(repository).refused == ()
