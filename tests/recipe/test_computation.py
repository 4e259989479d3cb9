"""What a precision's name means, and what plan makes of it: which lowering, which refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
from typed_reports import fold_json

from engineworks.errors import TargetError
from engineworks.host.file_digests import FileDigests
from engineworks.plan.plan import Plan, plan_recipe
from engineworks.recipe.computation import computation
from engineworks.recipe.load import load_recipe
from engineworks.recipe.recipe import Recipe
from engineworks.store.store import Store

TURING = "  rtx20: {backend: tensorrt_rtx, compute_capability: [7.5], pool: rtx20}\n"


def edit(repository: Path, *pairs: tuple[str, str]) -> None:
    path = repository / "recipes" / "tiny.yaml"
    text = path.read_text(encoding="utf-8")
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new, 1)
    path.write_text(text, encoding="utf-8")


def recipe(repository: Path, *pairs: tuple[str, str]) -> Recipe:
    edit(repository, *pairs)
    return load_recipe(repository / "recipes" / "tiny.yaml").recipe


def plan(repository: Path, only: str | None = None) -> Plan:
    loaded = load_recipe(repository / "recipes" / "tiny.yaml")
    return plan_recipe(loaded, Store(repository / "artifacts" / "store"), FileDigests(None), only=only)


def test_int8_has_fp16_around_it_on_a_gpu_and_fp32_on_the_cpu(repository: Path) -> None:
    tiny = recipe(repository)
    assert computation(tiny, "int8", "tensorrt_rtx").parts == ("int8", "fp16")
    assert computation(tiny, "int8", "onnxruntime").parts == ("int8", "fp32")


@pytest.mark.parametrize("unquantized", ["fp32", "fp16", "bf16"])
def test_the_recipe_says_what_lies_around_int8(repository: Path, unquantized: str) -> None:
    tiny = recipe(repository, ("targets:", f"calibration: {{unquantized: {unquantized}}}\ntargets:"))
    for backend in ("tensorrt_rtx", "onnxruntime"):
        assert computation(tiny, "int8", backend).unquantized == unquantized
        assert computation(tiny, "fp32", backend).parts == ("fp32",)


def test_a_mixture_says_its_own(repository: Path) -> None:
    mixture = "mixtures: {mine: {default: bf16, int8: [conv], int4_weights: [class*], fp32: [relu]}}\ntargets:"
    tiny = recipe(repository, ("[fp32, int8]", "[fp32, mine]"), ("int8: {c", "mine: {c"), ("targets:", mixture))
    found = computation(tiny, "mine", "tensorrt_rtx")
    assert found.parts == ("int8", "int4_weights", "bf16")
    assert found.calibrated
    assert found.to_json() == {
        "unquantized": "bf16", "quantized": {"int8": ["conv"], "int4_weights": ["class*"]}, "keep": [], "fp32": ["relu"],
    }  # fmt: skip


def test_weights_alone_need_no_calibration(repository: Path) -> None:
    edit(repository, ("[fp32, int8]", "[int4_weights]"), ("int8: {c", "int4_weights: {c"))
    assert "calibrate" not in {s.kind for s in plan(repository).steps.values()}


def test_targets_share_a_lowering_where_they_want_the_same_around_it(repository: Path) -> None:
    edit(repository, ("[cpu]", "[cpu, rtx40, rtx20]"))
    (repository / "recipes" / "_targets.yaml").open("a").write(TURING)
    ids = [s.id for s in plan(repository, "*/int8/*").steps.values() if s.kind == "lower"]
    assert ids == ["tiny/int8/lower", "tiny/int8/lower-unquantized-fp16"]
    edit(repository, ("targets:", "calibration: {unquantized: fp16}\ntargets:"))
    ids = [s.id for s in plan(repository, "*/int8/*").steps.values() if s.kind == "lower"]
    assert ids == ["tiny/int8/lower-unquantized-fp16"]


def test_what_lies_around_changes_no_calibration(repository: Path) -> None:
    before = {s.id: s.key for s in plan(repository).steps.values()}
    edit(repository, ("targets:", "calibration: {unquantized: fp16}\ntargets:"))
    after = {s.id: s.key for s in plan(repository).steps.values()}
    assert before["tiny/int8/calibrate"] == after["tiny/int8/calibrate"]


def test_fp8_and_int8_share_a_calibration(repository: Path) -> None:
    edit(repository, ("[fp32, int8]", "[fp8, int8]"), ("fp32: {c", "fp8: {c"), ("[cpu]", "[rtx40]"))
    assert sum(s.kind == "calibrate" for s in plan(repository).steps.values()) == 1


@pytest.fixture
def on_turing(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with a target of 7.5, where TensorRT-RTX 1.7 has no fp32 matrix multiplication."""
    from engineworks.engines.backends import tensorrt_rtx

    monkeypatch.setattr(tensorrt_rtx, "versions", lambda: {"tensorrt-rtx": "1.7.1.116"})
    (repository / "recipes" / "_targets.yaml").open("a").write(TURING)
    edit(repository, ("[cpu]", "[rtx20]"))
    return repository


def test_int8_is_built_for_turing_because_nothing_fp32_is_left(on_turing: Path) -> None:
    found = plan(on_turing)
    assert [e.id for e in found.engines] == ["tiny/int8/rtx20"]
    assert [r.id for r in found.refused] == ["tiny/fp32/rtx20"]


def test_a_refusal_of_what_lies_around_says_so(on_turing: Path) -> None:
    edit(on_turing, ("targets:", "calibration: {unquantized: fp32}\ntargets:"))
    with pytest.raises(TargetError, match=r"tiny/int8/rtx20: fp32 around it: TensorRT-RTX 1.7 has no fp32 matrix"):
        plan(on_turing)


def test_a_mixture_is_refused_for_a_part_of_it(on_turing: Path) -> None:
    mixture = "mixtures: {mine: {int8: [conv], fp8: [class*]}}\ntargets:"
    edit(on_turing, ("[fp32, int8]", "[mine]"), ("int8: {c", "mine: {c"), ("targets:", mixture))
    with pytest.raises(TargetError, match=r"tiny/mine/rtx20: compute capability 7.5 has no fp8; use fp16"):
        plan(on_turing)


def test_operators_are_known_once_the_model_was_folded(on_turing: Path) -> None:
    """A model of convolutions alone needs no fp32 matrix multiplication: it is refused until that is known."""
    first = plan(on_turing)
    fold = next(s for s in first.steps.values() if s.kind == "fold")
    store = Store(on_turing / "artifacts" / "store")
    with store.writing(fold.key, fold.document, fold.id) as writing:
        (writing.folder / "fold.json").write_text(fold_json({"Conv": ["conv"], "Relu": ["relu"]}))
    assert [e.id for e in plan(on_turing).engines] == ["tiny/fp32/rtx20", "tiny/int8/rtx20"]


@pytest.mark.parametrize(("keep", "refused"), [("", True), ("op:Conv", False), ("conv", False)])
def test_convolutions_that_are_kept_are_no_reason_to_refuse(
    repository: Path, monkeypatch: pytest.MonkeyPatch, keep: str, refused: bool
) -> None:
    """TensorRT-RTX 1.6 has no int8 convolution; where names of nodes decide, plan does not know and lets it pass."""
    from engineworks.engines.backends import tensorrt_rtx

    monkeypatch.setattr(tensorrt_rtx, "versions", lambda: {"tensorrt-rtx": "1.6.1.120"})
    edit(
        repository,
        ("[cpu]", "[rtx40]"),
        ("targets:", f"calibration: {{keep: [{keep!r}]}}\ntargets:" if keep else "targets:"),
    )
    fold = next(s for s in plan(repository).steps.values() if s.kind == "fold")
    store = Store(repository / "artifacts" / "store")
    with store.writing(fold.key, fold.document, fold.id) as writing:
        (writing.folder / "fold.json").write_text(fold_json({"Conv": ["conv"], "Gemm": ["classifier"]}))
    found = [r.id for r in plan(repository).refused]
    assert found == (["tiny/int8/rtx40"] if refused else [])
