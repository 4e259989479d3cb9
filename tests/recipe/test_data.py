"""Texts and images under `data`: every slip at its place, before anything is tokenized or opened."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import TARGETS, free_height
from text_model import RECIPE, mood_model, write_moods  # noqa: F401

from engineworks.errors import RecipeError
from engineworks.fingerprint import digest_of
from engineworks.host.file_digests import FileDigests
from engineworks.plan.documents import Documents
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
    from engineworks.recipe.datasets.labels import label_numbers

    assert label_numbers(folder) == {"happy": 0, "angry": 1}
    (folder / "config.json").write_text(json.dumps({"label2id": {"LABEL_0": 0}}))
    assert label_numbers(folder) == {}


def several(repository: Path, npz: str) -> LoadedRecipe:
    """A recipe whose images may have any height, with data in `npz`: files of heights 4, 6 and 9."""
    folder = repository / "recipes"
    for name, height in (("h4", 4), ("h6", 6), ("h9", 9)):
        np.savez(folder / f"{name}.npz", image=np.zeros((3, 1, height, 4), np.float32), label=np.zeros(3, np.int64))
    free_height(folder)
    text = (folder / "tiny.yaml").read_text(encoding="utf-8")
    for old, new in (
        ("batch: [1, 4, 16]", "batch: [1, 4, 16], height: [2, 4, 8]"),
        ("one: {batch: 1}", "one: {batch: 1, height: 4}"),
        ("{npz: test.npz, labels: label}", f"{{npz: {npz}, labels: label}}"),
        ("{npz: calib.npz}", "{npz: [calib.npz]}"),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    (folder / "tiny.yaml").write_text(text, encoding="utf-8")
    return load_recipe(folder / "tiny.yaml")


def test_data_may_be_a_list_of_files_and_globs(repository: Path) -> None:
    evaluation = several(repository, "[test.npz, 'h[46].npz']").files.evaluation
    assert [p.name for p in evaluation.paths] == ["test.npz", "h4.npz", "h6.npz"]
    assert (evaluation.totals, evaluation.total, evaluation.title) == ((16, 3, 3), 22, "test.npz and 2 more files")
    assert list(evaluation.sources) == list(evaluation.paths)


def test_one_file_is_the_same_in_every_spelling(repository: Path) -> None:
    keys = []
    for npz in ("test.npz", "[test.npz]", "tes?.npz"):
        text = (repository / "recipes" / "tiny.yaml").read_text(encoding="utf-8")
        (repository / "recipes" / "tiny.yaml").write_text(
            re.sub(r"\{npz: [^,}]*, labels", f"{{npz: {npz}, labels", text)
        )
        documents = Documents(load_recipe(repository / "recipes" / "tiny.yaml"), FileDigests(None))
        keys.append(digest_of(documents.reference("f" * 64)[0]))
    assert len(set(keys)) == 1


@pytest.mark.parametrize(
    ("npz", "message"),
    [
        ("[test.npz, h5.npz]", "13:32: 'h5.npz': no such file"),
        ("[test.npz, 'g*.npz']", "13:32: 'g*.npz': no file matches; paths are relative to the recipe"),
        ("[test.npz, 'h[4].npz', h4.npz]", "13:44: duplicate file 'h4.npz' in npz; remove one"),
        ("[test.npz, h9.npz]", "13:32: 'h9.npz': 'image' has height 9, which no profile allows"),
        ("[test.npz, ../../../etc/x.npz]", "13:32: '../../../etc/x.npz' leaves the repository"),
        ("[]", "13:21: data.evaluation.npz: a list of 0 is not allowed; it needs at least 1"),
        ("[test.npz, 3]", "13:32: data.evaluation.npz: 3 is not allowed"),
        ("[test.npz, tiny.onnx]", "13:32: tiny.onnx: is not a .npz file"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_one_of_several_files_has_its_place(repository: Path, npz: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        several(repository, npz)
    assert message in "\n".join(map(str, caught.value.problems))
