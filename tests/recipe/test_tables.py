"""Rows of text files: the same from all three formats, each slip told with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engineworks.errors import SamplesError
from engineworks.recipe.datasets.tables import look_at, read_rows

ROWS = [{"text": "one, two", "label": 0}, {"text": 'says "hi"\nand goes', "label": 1}, {"text": "äöü", "label": 2}]


def write(path: Path) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in ROWS) + "\n", encoding="utf-8")
    elif path.suffix == ".csv":
        path.write_text('text,label\n"one, two",0\n"says ""hi""\nand goes",1\näöü,2\n', encoding="utf-8-sig")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    assert look_at(path) == (["text", "label"], 3)
    rows = [row for _, row in read_rows(path, [0, 2], ("text", "label"))]
    assert [(r["text"], int(r["label"])) for r in rows] == [("one, two", 0), ("äöü", 2)]
    assert next(read_rows(path, [1], ("text",)))[1]["text"] == 'says "hi"\nand goes'


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text" 1}\n', "a.jsonl:2: is no JSON: "),
        ("a.jsonl", '{"text": "x"}\n["x"]\n', "a.jsonl:2: is no JSON object"),
        ("a.jsonl", '{"text": "x"}\n\n{"txet": "x"}\n', "a.jsonl:3: 'text' is missing"),
        ("a.csv", "text,label\nx,1\nx,y,1\n", "a.csv:3: 3 values for 2 columns; quote texts that hold commas"),
        ("a.csv", 'text,label\n"x,1\n', "unexpected end of data; quote texts as CSV does"),
        ("a.csv", "", "a.csv: the file is empty"),
    ],
)
def test_a_row_that_does_not_parse_is_told_with_its_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(SamplesError) as caught:
        _, total = look_at(path)
        list(read_rows(path, range(total), ("text",)))
    assert said in str(caught.value)


def test_text_in_another_encoding_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text\nä\n".encode("latin-1"))
    with pytest.raises(SamplesError, match=r"a\.csv: is not UTF-8"):
        look_at(tmp_path / "a.csv")


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR0 and so on")
    with pytest.raises(SamplesError, match=r"a\.parquet: is not a Parquet file"):
        look_at(tmp_path / "a.parquet")
