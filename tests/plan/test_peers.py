"""Peers in the plan: only on request, on the engines' own steps, and what cannot run is a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from engineworks.builds.schedule import Schedule
from engineworks.engines.peers import ort_cpu, ort_cuda
from engineworks.host.file_digests import FileDigests
from engineworks.plan.plan import Plan, plan_recipe
from engineworks.recipe.load import load_recipe
from engineworks.store.store import Store

GPU = {"gpu": "NVIDIA Test", "driver": "600.1"}


def plan(repository: Path, *compare: str) -> Plan:
    loaded = load_recipe(repository / "recipes" / "tiny.yaml")
    return plan_recipe(loaded, Store(repository / "artifacts" / "store"), FileDigests(None), compare=compare)


def edit(repository: Path, old: str, new: str) -> None:
    path = repository / "recipes" / "tiny.yaml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def keys(found: Plan) -> dict[str, str]:
    return {step.id: step.key for step in found.steps.values()}


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_cuda, "why_not", lambda source, precision: None)
    monkeypatch.setattr(ort_cuda, "hardware", lambda: GPU)


def test_a_build_that_asks_for_none_has_none(repository: Path) -> None:
    found = plan(repository)
    assert found.peers == ()
    assert not any(step.kind == "peer" for step in found.steps.values())


def test_a_peer_adds_one_step_and_changes_no_other(repository: Path) -> None:
    before, after = plan(repository), plan(repository, "ort-cpu")
    added = keys(after).keys() - keys(before).keys()
    assert added == {"tiny/peer/ort-cpu-fp32"}
    assert keys(before).items() <= keys(after).items()
    step = next(s for s in after.steps.values() if s.kind == "peer")
    assert {role: after.steps[key].id for role, key in step.inputs.items()} == {
        "model": "tiny/fold", "reference": "tiny/reference",
    }  # fmt: skip
    assert step.state == "to do"
    assert str(repository) not in str(step.document)


def test_a_comparison_is_part_of_what_a_build_decides(repository: Path) -> None:
    without, one = plan(repository).build_key, plan(repository, "ort-cpu").build_key
    assert len({without, one, plan(repository, "ort-cpu", "pytorch").build_key}) == 3


def test_what_can_not_run_here_is_a_sentence_and_no_step(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_cuda, "first_gpu", lambda: None)
    found = plan(repository, "pytorch", "ort-cuda")
    assert {(p.id, p.step, p.why_not) for p in found.peers} == {
        (f"tiny/peer/{name}-{precision}", None, why)
        for precision in ("fp32", "fp16")
        for name, why in {
            "pytorch": "the recipe's source is onnx: there is no PyTorch module to run",
            "ort-cuda": "no NVIDIA GPU is visible here",
        }.items()
    }
    assert not any(step.kind == "peer" for step in found.steps.values())


def test_without_named_shapes_there_is_nothing_to_measure(repository: Path) -> None:
    edit(repository, "performance:\n  at: {one: {batch: 1}}\n", "")
    (peer,) = plan(repository, "ort-cpu").peers
    assert peer.why_not == "the recipe names no shapes under performance.at"


@pytest.mark.usefixtures("_gpu")
def test_fp16_is_lowered_for_a_peer_though_the_recipe_has_no_such_engine(repository: Path) -> None:
    found = plan(repository, "ort-cuda")
    steps = {step.id: step for step in found.steps.values()}
    half = steps["tiny/peer/ort-cuda-fp16"]
    assert half.inputs["model"] == steps["tiny/fp16/lower"].key
    assert steps["tiny/fp16/lower"].state == "to do"
    assert half.document["hardware"] == GPU
    assert "tiny/fp16/lower" not in keys(plan(repository, "ort-cpu"))


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("one: {batch: 1}", "one: {batch: 2}", True),
        ("batch: [1, 4, 16]", "batch: [1, 4, 32]", True),
        ("int8: {cosine: 0.98}", "int8: {cosine: 0.97}", False),
        ("targets: [cpu]", "targets: [rtx40]", False),
    ],
    ids=["measured shape", "batches of the check", "limits", "targets"],
)
def test_a_peers_key_reads_its_slice_of_the_recipe(repository: Path, old: str, new: str, changes: bool) -> None:
    def key() -> str | None:
        return plan(repository, "ort-cpu").peers[0].step

    before = key()
    edit(repository, old, new)
    assert (key() != before) is changes


def test_a_peers_key_holds_its_hardware_and_versions(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = plan(repository, "ort-cpu").peers[0].step
    monkeypatch.setattr(ort_cpu, "hardware", lambda: {"processor": "another"})
    other = plan(repository, "ort-cpu").peers[0].step
    monkeypatch.setattr(ort_cpu, "versions", lambda: {"onnxruntime": "9.9"})
    assert len({before, other, plan(repository, "ort-cpu").peers[0].step}) == 3


def test_a_torch_source_is_in_the_peers_key_with_all_that_shapes_it(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engineworks.engines.peers.pytorch.why_not", lambda source, precision: None)
    edit(repository, "{onnx: tiny.onnx}", "{torch: 'net:factory'}")
    net = repository / "recipes" / "net.py"
    net.write_text("import torch\ndef factory(): return torch.nn.ReLU()\n")
    before = plan(repository, "pytorch")
    step = next(s for s in before.steps.values() if s.id == "tiny/peer/pytorch-fp16")
    assert step.params["source"] == "torch"
    assert step.params["factory"] == "net:factory"
    assert step.document["digests"].keys() == {"net.py", "evaluation"}
    assert {before.steps[key].id for key in step.inputs.values()} == {"tiny/reference"}
    net.write_text("import torch\ndef factory(): return torch.nn.GELU()\n")
    assert plan(repository, "pytorch").peers[0].step != before.peers[0].step


def test_peers_run_alone_after_everything_else(repository: Path) -> None:
    found = plan(repository, "ort-cpu")
    schedule, order = Schedule(found), []
    while not schedule.finished:
        ready = schedule.ready(2)
        assert len(ready) == 1 or not any(s.kind in ("measure", "peer") for s in ready)
        for step in ready:
            order.append(step.kind)
            schedule.done(step.key)
    assert order[-3:] == ["measure", "measure", "peer"]
