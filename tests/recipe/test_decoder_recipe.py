"""Recipes of decoders: what is refused, with its place, and what a good one spells out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from growing_decoder import write_growing_decoder

from engineworks.builds.ladders import ladders
from engineworks.builds.results import EngineResult
from engineworks.cli import run_command
from engineworks.errors import EXIT_BAD_INPUT, RecipeError, SamplesError
from engineworks.host.file_digests import FileDigests
from engineworks.plan.plan import plan_recipe
from engineworks.recipe.datasets.decoder_text import read_texts
from engineworks.recipe.load import load_recipe
from engineworks.store.store import Store

REPOSITORY = Path(__file__).resolve().parents[2]
MODELS = REPOSITORY / "recipes" / "models" / "tiny-decoder"

RECIPE = """\
recipe: tiny
model:
  source: {onnx: model.onnx}
  decoder: {context: 96}
precisions: [fp32, int4_weights]
data:
  evaluation: {text: text.txt}
targets: [cpu]
accuracy:
  metric: perplexity
  limits: {fp32: {cosine: 0.9}, int4_weights: {metric_ratio: 0.9, greedy_agreement: 0.5}}
performance:
  at: {chat: {prompt: 24, new: 32, streams: 2}}
  budget: {chat: {first_token_ms: 10, tokens_per_s: 400}}
"""

CASES = {
    "a decoder with inputs of its own": (("recipe: tiny", "recipe: tiny\ninputs: {x: {dtype: int64, shape: [b]}}"), "'inputs' of a decoder follows"),
    "a decoder from a torch factory": (("onnx: model.onnx", "torch: 'net:make'"), "a decoder cannot come from 'torch'"),
    "a decoder with a task": (("onnx: model.onnx", "huggingface: hf, task: fill-mask"), "a decoder has no 'task'"),
    "a decoder in int8": (("int4_weights]", "int8]"), "'int8' is not for decoders yet"),
    "a mixture of a decoder": (("fp32, int4_weights]", "fp32, small]\nmixtures: {small: {int8_weights: ['*']}}"), "mixtures are not for decoders yet"),
    "a decoder without text": (("text: text.txt", "npz: text.npz"), "a decoder is evaluated on texts"),
    "a decoder with labels": (("text: text.txt", "text: text.txt, labels: y"), "a decoder's labels are the next tokens"),
    "a decoder with another metric": (("metric: perplexity", "metric: top1"), "a decoder has no metric 'top1'"),
    "a decoder's shape with a batch": (("streams: 2", "batch: 2"), "a decoder's shape has no 'batch'"),
    "a decoder's shape without streams": ((", streams: 2", ""), "shape 'chat' needs 'streams'"),
    "a prompt longer than the context": (("prompt: 24", "prompt: 100"), "shape 'chat' has 132 tokens (prompt and new), the context holds 96"),
    "a decoder's sweep over batches": (("performance:", "performance:\n  sweep: {batch: [1]}"), "a decoder's sweep has no 'batch'"),
    "a sweep of prompts beyond the context": (("performance:", "performance:\n  sweep: {prompt: [8, 96]}"), "a prompt of 96 tokens leaves no room in the context of 96"),
    "a sweep of too many pairs": (("performance:", "performance:\n  sweep: {streams: [1, 2, 3, 4, 5], prompt: [8, 16, 24, 32, 40]}"), "the sweep has 25 pairs, 24 at most"),
    "a decoder's streams in flight": (("performance:", "performance:\n  streams: [1, 2]"), "performance.streams is not for decoders yet"),
    "a decoder's throughput": (("tokens_per_s: 400", "throughput_per_s: 4"), "'throughput_per_s' is no budget of a decoder"),
    "texts longer than the context": (("text: text.txt", "text: text.txt, max_length: 200"), "max_length 200 is more than the context of 96"),
    "another context than the model's": (("context: 96", "context: 64"), "the model's cache holds 96 positions, not 64"),
    "a cache that is not there": (("context: 96", "context: 96, cache: {past: present}"), "the model has no input 'past', which model.decoder.cache names"),
    "a cache of a folder": (("onnx: model.onnx}\n  decoder: {context: 96", "huggingface: hf}\n  decoder: {context: 96, cache: {a: b}"), "'cache' names tensors of an ONNX file"),
    "a column that is not there": (("text.txt", "text.jsonl, columns: body"), "text.jsonl: has no column 'body'"),
    "a chat without a template": (("text.txt", "text.jsonl, messages: text"), "has no chat template"),
    "a context that the model was not made for": (("onnx: model.onnx}\n  decoder: {context: 96", "huggingface: hf}\n  decoder: {context: 500"), "a context of 500 is more than the model was made for (96)"),
    "ties of a cache of fixed capacity": (("context: 96", "context: 96, ties: {total: past + sequence}"), "a cache of fixed capacity does not grow"),
    "ties of a folder": (("onnx: model.onnx}\n  decoder: {context: 96", "huggingface: hf}\n  decoder: {context: 96, ties: {total: past}"), "'ties' names dimensions of an ONNX file"),
    "a tie of a dimension that is not there": (("model.onnx}\n  decoder: {context: 96", "growing.onnx}\n  decoder: {context: 96, ties: {all: past + sequence}"), "no mask and no output of the cache has a dimension 'all'"),
    "a tie of a dimension that is no length": (("model.onnx}\n  decoder: {context: 96", "growing.onnx}\n  decoder: {context: 96, ties: {total: past + batch}"), "the tie 'total = past + batch' names 'batch'"),
    "a tie that is no sum": (("context: 96", "context: 96, ties: {total: 2 * past}"), "model.decoder.ties.total"),
    "a context twice": (("context: 96", "context: [96, 96]"), "duplicate '96' in context"),
    "no context": (("context: 96", "context: []"), "model.decoder.context: a list of 0 is not allowed"),
    "a context that is too short for every shape": (("onnx: model.onnx}\n  decoder: {context: 96", "huggingface: hf}\n  decoder: {context: [16, 96]"), "no shape of performance.at fits a context of 16"),
    "a prompt longer than every context": (("context: 96", "context: [20, 40]"), "the context holds 40"),
    "a family that is not known": (("onnx: model.onnx", "huggingface: mamba"), "decoder family 'mamba' is not known"),
    "a folder without a tokenizer": (("text: text.txt", "text: text.txt, tokenizer: bare"), "'bare' holds no tokenizer"),
}  # fmt: skip


def lay_out(folder: Path) -> None:
    """The tiny decoder, texts, a folder of an unknown family and one without a tokenizer."""
    for name in ("model.onnx", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(MODELS / name, folder / name)
    shutil.copytree(MODELS, folder / "hf")
    write_growing_decoder(folder / "growing.onnx")
    for name in ("mamba", "bare"):
        (folder / name).mkdir()
    (folder / "mamba" / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    (folder / "mamba" / "model.safetensors").write_bytes(b"weights")
    (folder / "text.txt").write_text("You may reproduce and distribute copies of the Work. " * 8)
    (folder / "text.jsonl").write_text('{"text": "You may reproduce and distribute copies of the Work."}\n' * 3)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(folder, *edits):
    text = RECIPE
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new, 1)
    (folder / "tiny.yaml").write_text(text)
    return load_recipe(folder / "tiny.yaml")


@pytest.mark.parametrize("title", CASES)
def test_what_is_refused_says_where(folder, title):
    edit, message = CASES[title]
    with pytest.raises(RecipeError) as raised:
        load(folder, edit)
    (problem,) = (p for p in raised.value.problems if message in str(p))
    assert problem.place.line > 0


def test_a_good_recipe_spells_out_its_shapes(folder):
    recipe = load(folder).recipe
    assert list(recipe.inputs) == ["input_ids"]
    assert recipe.shapes["generate"]["batch"] == (1, 1, 2)


@pytest.mark.parametrize(
    "edit",
    [
        ("onnx: model.onnx", "huggingface: hf"),
        ("text: text.txt", "text: text.jsonl"),
        ("text: text.txt", "text: text.txt, tokenizer: hf"),
    ],
)
def test_other_sources_and_texts(folder, edit):
    load(folder, edit)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("metric: perplexity", "metric: top1"), "'greedy_agreement' is a limit of decoders only"),
        (("int4_weights]", "w4a8]"), "'w4a8' is for decoders only"),
        (("first_token_ms: 10", "first_token_ms: 10"), "'first_token_ms' is a budget of decoders only"),
    ],
)
def test_keys_of_decoders_are_refused_elsewhere(folder, edit, message):
    with pytest.raises(RecipeError, match=message):
        load(folder, ("\n  decoder: {context: 96}", ""), ("recipe: tiny", "recipe: tiny\ninputs: {x: {dtype: int64, shape: [2]}}\noutputs: {y: [2]}"), edit)  # fmt: skip


def test_a_plan_has_every_step(folder):
    plan = plan_recipe(load(folder), Store(folder / "store"), FileDigests(None))
    kinds = {step.kind for step in plan.steps.values()}
    assert kinds == {
        "export",
        "prepare",
        "fold",
        "lower",
        "build",
        "reference",
        "lowered_reference",
        "compare",
        "measure",
    }


def test_limits_and_budgets_are_in_no_key(folder):
    store = Store(folder / "store")
    keys = [
        set(plan_recipe(load(folder, *edits), store, FileDigests(None)).steps)
        for edits in (
            (),
            (("greedy_agreement: 0.5", "greedy_agreement: 0.9"), ("tokens_per_s: 400", "tokens_per_s: 4")),
        )
    ]
    assert keys[0] == keys[1]


def test_more_streams_build_another_engine_and_keep_the_model(folder):
    store = Store(folder / "store")
    plans = [
        plan_recipe(load(folder, *edits), store, FileDigests(None)) for edits in ((), (("streams: 2", "streams: 3"),))
    ]
    ids = [{s.id for k, s in p.steps.items() if k not in q.steps} for p, q in (plans, plans[::-1])]
    assert all({i.split("/")[-1] for i in side} == {"build", "compare", "measure"} for side in ids)


def test_a_model_that_brings_no_tokenizer_is_told_to_name_one(folder):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    with pytest.raises(RecipeError, match="the model brings no tokenizer"):
        load(folder)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(folder):
    params = dict(load(folder).files.evaluation.preparation.params)
    assert read_texts(folder / "text.txt", folder, params).texts
    with pytest.raises(SamplesError, match="the model's vocabulary has 16"):
        read_texts(folder / "text.txt", folder, params | {"vocabulary": 16})


def test_a_token_beyond_the_vocabulary_is_refused_in_a_text_that_is_not_compared_too(folder):
    """The text that fills the context is made of all."""
    params = dict(load(folder).files.evaluation.preparation.params) | {"samples": 1}
    plain = (folder / "text.txt").read_text()
    (known,) = read_texts(folder / "text.txt", folder, params).texts
    (folder / "rare.txt").write_text(plain * 4 + " Contributor WARRANTIES {}~")
    with pytest.raises(SamplesError, match=f"the model's vocabulary has {max(known) + 1}"):
        read_texts(folder / "rare.txt", folder, params | {"vocabulary": max(known) + 1})


def test_the_same_recipe_has_no_step_to_run_again(folder):
    store = Store(folder / "store")
    first = plan_recipe(load(folder), store, FileDigests(None))
    for key, step in first.steps.items():
        with store.writing(key, step.document, step.id) as writing:
            (writing.folder / "made").write_text("")
    again = plan_recipe(load(folder), store, FileDigests(None))
    assert {step.state for step in first.steps.values()} == {"to do"}
    assert again.steps.keys() == first.steps.keys()
    assert {step.state for step in again.steps.values()} == {"cached"}


TWO = ("onnx: model.onnx}\n  decoder: {context: 96", "huggingface: hf}\n  decoder: {context: [48, 96]")
SHORT = ("at: {", "at: {short: {prompt: 8, new: 8, streams: 1}, ")


def test_several_contexts_are_an_engine_each(folder):
    loaded = load(folder, TWO, SHORT)
    assert loaded.engine_ids == tuple(f"tiny/{p}/cpu-{c}" for p in ("fp32", "int4_weights") for c in (48, 96))
    assert [loaded.of(target).recipe.performance.at.keys() for target in loaded.targets] == [
        {"short"},
        {"short", "chat"},
    ]
    plan = plan_recipe(loaded, Store(folder / "store"), FileDigests(None))
    ids = [step.id for step in plan.steps.values()]
    assert len(ids) == len(set(ids))
    lengths = {s.id: s.params["decoder"]["context"] for s in plan.steps.values() if s.kind == "export"}
    assert lengths == {"tiny/export-48": 48, "tiny/export-96": 96}
    assert all("measure" in e.steps for e in plan.engines)


def test_a_cache_that_grows_is_refused_for_a_gpu_by_the_plan(folder):
    shutil.copyfile(REPOSITORY / "recipes" / "_targets.yaml", folder / "_targets.yaml")
    edits = (("model.onnx", "growing.onnx"), ("targets: [cpu]", "targets: [cpu, rtx40]"))
    plan = plan_recipe(load(folder, *edits), Store(folder / "store"), FileDigests(None))
    assert {e.id for e in plan.engines} == {"tiny/fp32/cpu", "tiny/int4_weights/cpu"}
    assert all(r.message.startswith("its cache grows by concatenation") for r in plan.refused)


def test_a_sweep_is_every_pair_and_builds_nothing_else(folder):
    sweep = ("performance:", "performance:\n  sweep: {streams: [1, 4], prompt: [90, 8]}")
    store = Store(folder / "store")
    plans = [plan_recipe(load(folder, *edits), store, FileDigests(None)) for edits in ((), (sweep,))]
    points = next(s.params["sweep"] for s in plans[1].steps.values() if s.kind == "measure")
    assert [tuple(p["dims"].values()) for p in points] == [(8, 16, 1), (8, 16, 4), (90, 6, 1), (90, 6, 4)]
    assert {s.kind for k, s in plans[1].steps.items() if k not in plans[0].steps} == {"measure"}


def test_one_context_of_several_is_planned_as_if_alone(folder):
    store, keys = Store(folder / "store"), []
    for edits in ((TWO, SHORT), ((TWO[0], TWO[1].replace("[48, 96]", "96")), SHORT)):
        keys.append(set(plan_recipe(load(folder, *edits), store, FileDigests(None), only="*/*/cpu*").steps))
    assert keys[1] < keys[0]


def test_auto_tries_what_decoders_have_and_knows_weights_in_int8_as_slow_where_nothing_was_measured(folder):
    """Measured on an H200: 3.2 times fp16's step. A weight-only precision is not chosen unseen for its size."""
    (folder / "_targets.yaml").write_text("targets: {gpu: {backend: tensorrt_rtx, compute_capability: [8.9]}}\n")
    plan = plan_recipe(
        load(folder, ("[fp32, int4_weights]", "auto"), ("[cpu]", "[gpu]")),
        Store(folder / "store"), FileDigests(None),
    )  # fmt: skip
    engines = [EngineResult(e.id, "unmeasured", ()) for e in plan.engines]
    (ladder,) = ladders(plan, engines, Store(folder / "store"))
    assert [e.precision for e in plan.engines] == ["fp32", "fp16", "int8_weights", "int4_weights"]
    dropped = {c.precision: c.dropped for c in ladder.candidates}
    assert ladder.basis == "estimated"
    assert "no engine of it ran here" in ladder.message
    assert "is not faster than fp16 by estimate (estimated time 3.20" in dropped["int8_weights"]
    assert "w4a8" in dropped
    assert "int8" not in dropped


@pytest.mark.parametrize(
    "command",
    [
        ["blame", "tiny/fp32/cpu", "--recipe", "tiny.yaml"],
        ["limits", "tiny.yaml"],
        ["sensitivity", "tiny.yaml", "--precision", "int8"],
    ],
)
def test_commands_that_do_not_know_decoders_say_so(folder, command, capsys):
    load(folder)
    assert run_command(command) == EXIT_BAD_INPUT
    assert f"tiny.yaml: '{command[0]}' does not know decoders yet; name another recipe" in capsys.readouterr().err
