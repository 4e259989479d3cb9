"""Texts and images become arrays once; every later step stands on them, and a changed tokenizer changes all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from conftest import TARGETS
from text_model import WORDS, write_moods, write_tokenizer

from engineworks.builds.step import run_step
from engineworks.host.child import default_pool
from engineworks.host.file_digests import FileDigests
from engineworks.plan.plan import Plan, plan_recipe
from engineworks.plan.prepared import notes_of_data, stored_evaluation
from engineworks.recipe.load import load_recipe
from engineworks.store.store import Store


@pytest.fixture
def moods(repository: Path) -> Path:
    pytest.importorskip("tokenizers")
    recipes = repository / "recipes"
    (recipes / "_targets.yaml").write_text(TARGETS)
    write_moods(recipes)
    return recipes / "moods.yaml"


def plan(recipe: Path, store: Store) -> Plan:
    return plan_recipe(load_recipe(recipe), store, FileDigests(None))


def run_all(planned: Plan, store: Store) -> None:
    for step in planned.steps.values():
        if step.kind != "measure":
            run_step(step, store, default_pool(), echo=lambda _: None)


def keys(planned: Plan) -> Mapping[str, str]:
    return {step.id.removeprefix("moods/"): step.key for step in planned.steps.values()}


def changed(before: Plan, now: Plan) -> set[str]:
    return {name for name, key in keys(before).items() if keys(now)[name] != key}


EVALUATING = {
    "prepare-evaluation",
    "reference",
    "fp32/lowered-reference",
    "int8/lowered-reference",
    "fp32/cpu/compare",
    "int8/cpu/compare",
    "fp32/cpu/measure",
    "int8/cpu/measure",
}
CALIBRATING = {
    "prepare-calibration",
    "int8/calibrate",
    "int8/lower",
    "int8/cpu/build",
    "int8/cpu/compare",
    "int8/cpu/measure",
}


def test_a_recipe_of_texts_is_built_compared_and_its_metric_found(moods: Path) -> None:
    store = Store(moods.parent / "store")
    planned = plan(moods, store)
    run_all(planned, store)
    for engine in planned.engines:
        report = store.require(engine.steps["compare"]).read_json("accuracy.json")
        assert report["metric"]["engine"] > 0.9
        assert report["metric"]["kind"] == "labels"
        assert report["outputs"]["logits"]["cosine"] > 0.99
    assert notes_of_data(planned, store) == (
        "moods.csv: 1 of 25 texts were cut to 12 tokens",
        "moods.csv: labels in the order of their names (angry is 0, happy is 1), for the model names no such classes",
    )
    samples = stored_evaluation(planned.loaded, store)
    widths = [feeds["input_ids"].shape[1] for feeds in samples.batches([1])]
    assert (min(widths), max(widths)) == (5, 12)
    labels = samples.read_labels()
    assert labels is not None
    assert labels.dtype == np.int64


def test_a_changed_tokenizer_calibrates_and_compares_again(moods: Path) -> None:
    store = Store(moods.parent / "store")
    before = plan(moods, store)
    write_tokenizer(moods.parent / "tokenizer", [*WORDS[:4], *reversed(WORDS[4:])])
    assert changed(before, plan(moods, store)) == EVALUATING | CALIBRATING


def test_changed_texts_touch_only_what_reads_them(moods: Path) -> None:
    store = Store(moods.parent / "store")
    before = plan(moods, store)
    with (moods.parent / "moods.csv").open("a") as file:
        file.write("good song,happy\n")
    assert changed(before, plan(moods, store)) == EVALUATING


def test_a_shorter_limit_is_another_preparation(moods: Path) -> None:
    store = Store(moods.parent / "store")
    before = plan(moods, store)
    moods.write_text(moods.read_text().replace("{text: moods.csv,", "{text: moods.csv, max_length: 6,"))
    assert changed(before, plan(moods, store)) == EVALUATING


def test_padding_to_the_longest_allowed_makes_rows_of_one_length(moods: Path) -> None:
    moods.write_text(moods.read_text().replace("{text: moods.csv,", "{text: moods.csv, padding: max_length,"))
    store = Store(moods.parent / "store")
    planned = plan(moods, store)
    step = next(s for s in planned.steps.values() if s.id == "moods/prepare-evaluation")
    run_step(step, store, default_pool(), echo=lambda _: None)
    samples = stored_evaluation(planned.loaded, store)
    assert {feeds["input_ids"].shape[1] for feeds in samples.batches([3])} == {12}


def test_a_column_names_the_slices_of_texts(moods: Path) -> None:
    moods.write_text(moods.read_text().replace("labels: mood}", "labels: mood, slices: mood, samples: 9}"))
    store = Store(moods.parent / "store")
    planned = plan(moods, store)
    step = next(s for s in planned.steps.values() if s.id == "moods/prepare-evaluation")
    run_step(step, store, default_pool(), echo=lambda _: None)
    samples = stored_evaluation(planned.loaded, store)
    names, labels = samples.slice_names(), samples.read_labels()
    assert names is not None
    assert labels is not None
    assert names.tolist() == ["happy" if label else "angry" for label in labels]


IMAGES = """\
recipe: pictures
model: {source: {onnx: tiny.onnx}}
inputs: {image: {dtype: float32, shape: [batch, 1, 4, 4]}}
outputs: {logits: [batch, 3]}
shapes: {default: {batch: [1, 4, 16]}}
precisions: [fp32]
data:
  evaluation: {images: pictures, processor: processor, labels: folder, slices: folder}
accuracy: {metric: top1, limits: {fp32: {metric: 1.0, cosine: 0.9999}}}
targets: [cpu]
"""


def test_a_folder_of_images_becomes_pixels_by_the_processor_and_labels_by_folder(repository: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("transformers")
    recipes = repository / "recipes"
    with np.load(recipes / "test.npz") as archive:
        pixels = np.clip(archive["image"] * 40 + 128, 0, 255).astype(np.uint8)
    from conftest import tiny_labels, tiny_model

    expected = (pixels.astype(np.float32) / 255 - 0.5) / 0.25
    labels = tiny_labels(expected, tiny_model())
    for number, (pixel, label) in enumerate(zip(pixels, labels, strict=True)):
        (recipes / "pictures" / str(label)).mkdir(parents=True, exist_ok=True)
        image.fromarray(pixel[0]).save(recipes / "pictures" / str(label) / f"{number}.png")
    (recipes / "processor").mkdir()
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": False,
        "image_mean": [0.5],
        "image_std": [0.25],
    }
    (recipes / "processor" / "preprocessor_config.json").write_text(json.dumps(settings))
    (recipes / "pictures.yaml").write_text(IMAGES)
    store = Store(recipes / "store")
    planned = plan(recipes / "pictures.yaml", store)
    run_all(planned, store)
    report = store.require(planned.engines[0].steps["compare"]).read_json("accuracy.json")
    assert report["metric"]["engine"] == 1.0
    assert {part["name"] for part in report["metric"]["slices"]} == {str(label) for label in labels}
    (feeds,) = stored_evaluation(planned.loaded, store).batches([16])
    assert feeds["image"].dtype == np.float32
    assert np.isclose(np.sort(feeds["image"].ravel()), np.sort(expected.ravel()), atol=1e-5).all()
