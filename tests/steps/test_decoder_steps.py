"""The tiny decoder of the repository through every step but the measurement, in this process, and what its gate says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from engineworks.engines.decoder.generation import open_generator
from engineworks.engines.verified import verified_engine
from engineworks.errors import RunError
from engineworks.host.file_digests import FileDigests
from engineworks.measure.accuracy_report import Accuracy
from engineworks.measure.decoder.situations import tolerance
from engineworks.measure.gates.gates import evaluate_gates
from engineworks.model.lower.report import Lowering
from engineworks.model.onnx_files import MODEL_FILE, load_model
from engineworks.model.ort import exact_options
from engineworks.plan.plan import plan_recipe
from engineworks.recipe.datasets.preparation import find_made
from engineworks.recipe.load import load_recipe
from engineworks.recipe.recipe import Limits
from engineworks.steps.decoder.lower import head_of
from engineworks.steps.decoder.lower import run as lower
from engineworks.steps.decoder.lowered_reference import _errors
from engineworks.steps.decoder.made_feeds import prompt_feeds, read_decoder
from engineworks.steps.decoder.texts import read_texts, situation_texts
from engineworks.steps.job import StepJob, main
from engineworks.steps.timed_engine import TimedEngine
from engineworks.store.store import Store

RECIPE = Path("recipes/tiny-decoder.yaml")
TARGET = {"backend": "onnxruntime", "compute_capability": [], "options": {"threads": 1, "spinning": False}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder by id of every step of the int4 engine but its measurement."""
    folder = tmp_path_factory.mktemp("steps")
    plan = plan_recipe(load_recipe(RECIPE), Store(folder / "store"), FileDigests(None), only="*/int4_weights/cpu")
    outs: dict[str, Path] = {}
    for key, step in plan.steps.items():
        if step.kind == "measure":
            continue
        outs[key] = folder / key
        outs[key].mkdir()
        unkeyed = json.loads(json.dumps(dict(step.unkeyed), default=str))
        inputs = {role: str(outs[k]) for role, k in step.inputs.items()}
        params = json.loads(json.dumps(dict(step.params)))
        main({"kind": step.kind, "id": step.id, "params": params, "inputs": inputs, "unkeyed": unkeyed, "out": str(outs[key])})  # fmt: skip
    return {step.id: outs[key] for key, step in plan.steps.items() if key in outs}


@pytest.fixture(scope="module")
def report(made):
    return Accuracy.read(made["tiny-decoder/int4_weights/cpu/compare"])


def test_the_engine_passes_in_every_situation(report):
    verdict = evaluate_gates(report, None, Limits(metric_ratio=0.7, cosine=0.9), {})
    assert verdict.verdict == "pass", [c.message for c in verdict.failures]
    assert sum(c.name.startswith("decoder[") for c in verdict.checks) == 11


def test_the_tolerance_comes_from_the_lowered_model(made, report):
    lowered = json.loads((made["tiny-decoder/int4_weights/lowered-reference"] / "lowered.json").read_text())
    assert 0 < lowered["moved"] < 1e-3  # fp32 around coarse weights
    assert lowered["moved"] == report.decoder.moved


def situation_feeds(made):
    interface = read_decoder(made["tiny-decoder/int4_weights/lower"])
    texts = read_texts(find_made(made["tiny-decoder/prepare-evaluation"]))
    return interface, prompt_feeds(interface, situation_texts(texts, interface.context))


@pytest.mark.parametrize(("level", "least", "most"), [(1, 0, 1e-3), (4, 3e-3, 0.1)])
def test_a_source_that_rounds_activations_itself_moves_by_as_much(made, tmp_path, level, least, most):
    """As onnxruntime-genai's builder writes int4: a rounding puts activations on other steps, which puts more there."""
    interface, feeds = situation_feeds(made)
    path, options = tmp_path / MODEL_FILE, exact_options(integer_kernels=True)
    options.optimized_model_filepath = str(path)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(str(made["tiny-decoder/int4_weights/lower"] / MODEL_FILE), options)
    model = onnx.load(path)
    packed = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert packed
    for attribute in (a for node in packed for a in node.attribute if a.name == "accuracy_level"):
        attribute.i = level
    onnx.save(model, path)
    assert least < _errors(path, interface, feeds, int8_activations=False).max() < most


def test_activations_in_int8_move_the_lowered_model_by_more(made):
    """Of w4a8 the tolerance is four times what rounding activations to int8 moves: an int4 model's logits are exact."""
    lowered = made["tiny-decoder/int4_weights/lower"]
    interface, feeds = situation_feeds(made)
    moved = _errors(lowered / MODEL_FILE, interface, feeds, int8_activations=True).max()
    assert 0.003 < moved < 0.1
    assert tolerance("w4a8", moved) == pytest.approx(4 * moved)
    assert tolerance("w4a8", None) == 0.05


def test_int4_weights_cost_perplexity(report):
    metric = report.metric
    assert metric.reference < metric.engine
    assert metric.interval[0] < metric.ratio < metric.interval[1] < 1
    assert evaluate_gates(report, None, Limits(metric_ratio=0.99), {}).verdict == "fail"


def test_continuations_stand_beside_fp32s(report):
    prompts = report.decoder.prompts
    assert len(prompts) == 3
    for prompt in prompts:
        parted = len(prompt.reference) if prompt.parted is None else prompt.parted
        assert prompt.engine[:parted] == prompt.reference[:parted]
        assert prompt.why in ("", "near tie")


def test_the_engine_generates_text_in_pieces(made):
    with verified_engine(made["tiny-decoder/int4_weights/cpu/build"]) as engine:
        generator = open_generator(engine, TARGET, streams=2)
    try:
        pieces = list(generator.stream("You may reproduce and", 12))
        assert len(pieces) > 1
        first, second, third = generator.generate(["You may reproduce and", "the", "You may reproduce and"], 12)
        assert first == third == "".join(pieces)
        assert second != first
        with pytest.raises(RunError, match="the context holds 96"):
            list(generator.stream("You may reproduce " * 40))
    finally:
        generator.close()


def test_the_reference_needs_no_cache(made):
    with np.load(made["tiny-decoder/reference"] / "reference.npz") as reference:
        assert reference["prompt0/tokens"].shape[0] == reference["prompt0/candidates"].shape[0] > 8
        assert (reference["prompt0/candidates"][:, 0] == reference["prompt0/tokens"]).all()


def test_an_engine_of_two_environments_is_timed_step_by_step(made):
    """What `rehearse` does with each side's engine, in a process of its own."""
    plan = plan_recipe(load_recipe(RECIPE), Store(Path("none")), FileDigests(None), only="*/int4_weights/cpu")
    (measure,) = (step for step in plan.steps.values() if step.kind == "measure")
    evaluation = find_made(made["tiny-decoder/prepare-evaluation"])
    assert evaluation is not None
    folder = made["tiny-decoder/int4_weights/cpu/build"]
    engine = TimedEngine({"folder": str(folder), "params": measure.params, "evaluation": [str(evaluation)]})
    engine.follow({"do": "load"})
    for shape in ("chat", "busy"):
        times = engine.follow({"do": "time", "shape": shape, "runs": 40})["ms"]  # more than a shape's new tokens
        assert len(times) == 40
        assert min(times) > 0
    assert engine.follow({"do": "close"}) == {}


def test_the_head_is_the_product_before_a_cap_or_a_bias() -> None:
    make = helper.make_node
    nodes = [
        make("MatMul", ["x", "up"], ["rows"], name="body"), make("MatMul", ["rows", "table"], ["made"], name="head"),
        make("Div", ["made", "most"], ["share"]), make("Tanh", ["share"], ["bent"]),
        make("Mul", ["most", "bent"], ["logits"]),
    ]  # fmt: skip
    assert head_of(helper.make_graph(nodes, "g", [], []), "logits") == "head"
    assert head_of(helper.make_graph([make("Add", ["x", "y"], ["logits"])], "g", [], []), "logits") == ""


@pytest.mark.parametrize(("unquantized", "head_kept", "block"), [("fp32", False, 32), ("fp16", True, 64)])
def test_a_gpu_keeps_the_head_and_a_cpu_has_small_blocks(
    made, tmp_path, unquantized: str, head_kept: bool, block: int
) -> None:
    inputs = {"fold": made["tiny-decoder/fold"], "evaluation": made["tiny-decoder/prepare-evaluation"]}
    params = {"precision": "int4_weights", "unquantized": unquantized, "quantized": {"int4_weights": ["worthwhile:*"]}}
    lower(StepJob("lower", params, inputs, {}, tmp_path, print))
    model = load_model(tmp_path / MODEL_FILE)
    blocks = {
        a.i for n in model.graph.node if n.op_type == "DequantizeLinear" for a in n.attribute if a.name == "block_size"
    }
    assert max(blocks) == block
    kept = Lowering.read(tmp_path).kept
    head = head_of(load_model(made["tiny-decoder/fold"] / MODEL_FILE, weights=False).graph, "logits")
    assert (head in kept) == head_kept
