"""Texts and images under `data`: every slip at its place, before anything is tokenized or opened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import TARGETS
from text_model import RECIPE, mood_model, write_moods  # noqa: F401

from engineworks.errors import RecipeError
from engineworks.recipe.load import LoadedRecipe, load_recipe

Edit = tuple[str, str]


@pytest.fixture
def moods(repository: Path) -> Path:
    pytest.importorskip("tokenizers")
    recipes = repository / "recipes"
    (recipes / "_targets.yaml").write_text(TARGETS)
    write_moods(recipes)
    return recipes / "moods.yaml"


def load(path: Path, *edits: Edit) -> LoadedRecipe:
    text = RECIPE
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new, 1)
    path.write_text(text, encoding="utf-8")
    return load_recipe(path)


EVALUATION = "{text: moods.csv, tokenizer: tokenizer, labels: mood}"

CASES: dict[str, tuple[Edit, str]] = {
    "no data": (
        (EVALUATION, "{labels: mood}"),
        "recipes/moods.yaml:12:3: data.evaluation names no data; give exactly one: npz: FILE, text: FILE or images: FOLDER",
    ),
    "two kinds": (
        (EVALUATION, "{npz: test.npz, text: moods.csv}"), "12:3: data.evaluation names 'npz' and 'text'; give exactly one",
    ),
    "a key of another kind": (
        (EVALUATION, "{text: moods.csv, tokenizer: tokenizer, processor: tokenizer, labels: mood}"),
        "12:55: 'processor' goes with 'images' only; this data is 'text'",
    ),
    "mistyped key": (("tokenizer: tokenizer, labels", "tokeniser: tokenizer, labels"), "did you mean 'tokenizer'?"),
    "mistyped column": (
        ("{text: moods.csv, ", "{text: moods.csv, columns: txt, "),
        "12:42: moods.csv: has no column 'txt'; did you mean 'text'?",
    ),
    "mistyped label": (("labels: mood}", "labels: moody}"), "12:63: moods.csv: has no column 'moody'; did you mean 'mood'?"),
    "missing file": (("moods.csv", "mood.csv"), "12:22: 'mood.csv': no such file"),
    "another format": (("moods.csv", "moods.onnx"), "12:22: 'moods.onnx' is none of .jsonl, .csv, .parquet"),
    "no tokenizer": (
        ("moods.csv, tokenizer: tokenizer", "moods.csv"),
        "12:15: the model brings no tokenizer; name its folder: data.evaluation.tokenizer: FOLDER",
    ),
    "a folder without one": (("csv, tokenizer: tokenizer", "csv, tokenizer: ."), "12:44: 'recipes' holds no tokenizer"),
    "no folder": (("csv, tokenizer: tokenizer", "csv, tokenizer: tokens"), "12:44: 'tokens': no such folder"),
    "too long": (
        ("csv, tokenizer", "csv, max_length: 32, tokenizer"),
        "12:45: max_length 32: the model takes 16 tokens here; widen the profiles, or cut the texts to that",
    ),
    "three columns": (("csv, ", "csv, columns: [a, b, c], "), "12:42: data.evaluation.columns: a list of 3 is not allowed; it takes at most 2"),
    "too few": (("samples: 12", "samples: 1200"), "11:67: moods.jsonl: 1200 samples are asked for, there are 25"),
    "padding": (("csv, ", "csv, padding: longst, "), "padding: 'longst' is not a choice; did you mean 'longest'?"),
    "images for a model of text": (
        (EVALUATION, "{images: tokenizer, processor: tokenizer, labels: folder}"),
        "12:24: images make one input, float32 [batch, channels, height, width]; the model has input_ids: int64[batch",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=list(CASES))
def test_one_clear_message(moods: Path, case: str) -> None:
    edit, message = CASES[case]
    with pytest.raises(RecipeError) as caught:
        load(moods, edit)
    found = [str(p) for p in caught.value.problems]
    assert any(message in problem for problem in found), found


def test_an_input_that_no_tokenizer_makes_is_told(moods: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(moods, ("  attention_mask: {", "  mask: {"))
    assert "no tokenizer makes 'mask' for input 'mask'" in str(caught.value)
    assert "names: {mask: …}" in str(caught.value)


def test_texts_are_counted_and_cut_to_what_tokenizer_and_profiles_allow(moods: Path) -> None:
    files = load(moods).files
    assert (files.evaluation.count, files.evaluation.labels) == (25, "labels")
    assert files.calibration is not None
    assert (files.calibration.count, files.calibration.preparation is None) == (12, False)
    assert files.evaluation.preparation is not None
    assert files.evaluation.preparation.params["limit"] == 12
    longer = load(moods, ("csv, ", "csv, max_length: 16, ")).files.evaluation.preparation
    assert longer is not None
    assert longer.params["limit"] == 16


def test_the_models_own_class_names_are_used(moods: Path) -> None:
    folder = moods.parent / "tokenizer"
    (folder / "config.json").write_text(json.dumps({"label2id": {"happy": 0, "angry": 1}}))
    from engineworks.datasets.labels import label_numbers

    assert label_numbers(folder) == {"happy": 0, "angry": 1}
    (folder / "config.json").write_text(json.dumps({"label2id": {"LABEL_0": 0}}))
    assert label_numbers(folder) == {}
