"""Texts → ids: as transformers' models want them, with labels of texts, words and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from text_model import WORDS, write_tokenizer

from engineworks.errors import SamplesError
from engineworks.recipe.datasets.tokenize import IGNORED, Tokenized, load_tokenizer, padding_id, tokenize

pytest.importorskip("tokenizers")


def tokenized(
    tmp_path: Path, *rows: dict[str, Any], limit: int = 12, columns: tuple[str, ...] = ("text",)
) -> Tokenized:
    write_tokenizer(tmp_path / "tokenizer")
    label = "label" if "label" in rows[0] else None
    placed = ((f"a.jsonl:{i}", row) for i, row in enumerate(rows, 1))
    numbers = {"angry": 0, "happy": 1, "O": 0, "B": 1}
    return tokenize(placed, tmp_path / "tokenizer", columns=columns, label=label, limit=limit, numbers=numbers)


def ids(*words: str) -> list[int]:
    return [WORDS.index(word) for word in ("[CLS]", *words, "[SEP]")]


def test_a_text_becomes_ids_with_the_models_special_tokens(tmp_path: Path) -> None:
    (row,) = tokenized(tmp_path, {"text": "the good film"}).rows
    assert row["input_ids"] == ids("the", "good", "film")
    assert row["attention_mask"] == [1] * 5
    assert row["token_type_ids"] == [0] * 5


def test_two_columns_are_a_pair(tmp_path: Path) -> None:
    (row,) = tokenized(tmp_path, {"a": "good", "b": "bad film"}, columns=("a", "b")).rows
    assert row["input_ids"] == [*ids("good"), *ids("bad", "film")[1:]]
    assert row["token_type_ids"] == [0, 0, 0, 1, 1, 1]


def test_long_texts_are_cut_and_counted(tmp_path: Path) -> None:
    found = tokenized(tmp_path, {"text": "very " * 9 + "good"}, {"text": "good"}, limit=6)
    assert [len(row["input_ids"]) for row in found.rows] == [6, 3]
    assert found.cut == 1


def test_a_label_is_a_number_or_a_name_that_is_known(tmp_path: Path) -> None:
    labels = [1, "0", "happy", True, 2.5]
    assert tokenized(tmp_path, *({"text": "x", "label": one} for one in labels)).labels == [1, 0, 1, 1, 2.5]
    with pytest.raises(SamplesError, match=r"a\.jsonl:1: unknown label 'hapy'; did you mean 'happy'\?"):
        tokenized(tmp_path, {"text": "x", "label": "hapy"})


def test_labels_of_words_go_to_their_first_tokens(tmp_path: Path) -> None:
    found = tokenized(tmp_path, {"text": ["the", "good-film", "song"], "label": ["O", "B", "B"]})
    assert found.kind == "tokens"
    assert found.labels == [[IGNORED, 0, 1, IGNORED, IGNORED, 1, IGNORED]]


def test_labels_of_words_that_were_cut_off_are_left_out(tmp_path: Path) -> None:
    found = tokenized(tmp_path, {"text": ["the", "good", "film", "song"], "label": [0, 1, 2, 3]}, limit=4)
    assert found.labels == [[IGNORED, 0, 1, IGNORED]]


def test_an_answer_becomes_its_first_and_last_token(tmp_path: Path) -> None:
    text = "the very good film"
    answer = {"text": ["very good"], "answer_start": [4]}
    row = {"question": "film", "text": text, "label": answer}
    found = tokenized(tmp_path, row, columns=("question", "text"))
    assert (found.kind, found.labels, found.lost) == ("span", [[4, 5]], 0)
    cut = tokenized(tmp_path, row, columns=("question", "text"), limit=6)
    assert (cut.labels, cut.lost) == ([[IGNORED, IGNORED]], 1)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": 3}], "a.jsonl:1: 'text' is no text but int; text, or a list of words"),
        ([{"text": "x"}, {"text": ["x"]}], "a.jsonl:1: some texts are lists of words, others are not"),
        ([{"text": "the film", "label": [0, 1]}], "a.jsonl:1: labels per word, and the text is no list of words"),
        ([{"text": ["the", "film"], "label": [0]}], "a.jsonl:1: 1 labels for 2 words; one label per word"),
        ([{"text": ["a"], "label": [0]}, {"text": ["a"], "label": 1}], "a.jsonl:2: its label is a class, the ones before are tokens"),
        ([{"text": "x", "label": {"text": "x"}}], "a.jsonl:1: the answer has no text and answer_start"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_with_its_line(tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(SamplesError) as caught:
        tokenized(tmp_path, *rows)
    assert said in str(caught.value)


def test_padding_is_the_tokenizers_own_token(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "t", ["[UNK]", "good", "[CLS]", "[SEP]", "[PAD]"])
    assert padding_id(tmp_path / "t", load_tokenizer(tmp_path / "t")) == 4
    (tmp_path / "t" / "tokenizer_config.json").unlink()
    assert padding_id(tmp_path / "t", load_tokenizer(tmp_path / "t")) == 0


def test_a_tokenizer_that_does_not_parse_is_told(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SamplesError, match=r"tokenizer\.json: is no tokenizer that can be read"):
        load_tokenizer(tmp_path)
