"""Recorded requests: KServe's JSON, one request a line; what is wrong is told by its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engineworks.errors import InputError
from engineworks.serving.recorded import read_requests

TENSOR: dict[str, Any] = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2.5]}


def write(path: Path, *requests: Any) -> Path:
    lines = [r if isinstance(r, str) else json.dumps(r) for r in requests]
    path.write_text("\n".join(lines) + "\n")
    return path


def tensor(**changes: Any) -> dict[str, Any]:
    return {"id": "7", "inputs": [{**TENSOR, **changes}]}


def test_flat_and_nested_data_become_arrays_of_their_datatype(tmp_path: Path) -> None:
    ids = {"name": "ids", "shape": [2], "datatype": "INT64", "data": [2**62, -1]}
    nested = {**TENSOR, "datatype": "FP16", "data": [[1, 2.5]]}
    flat, both = read_requests(write(tmp_path / "r.jsonl", tensor(), "", {"inputs": [nested, ids]}))
    np.testing.assert_array_equal(flat["x"], np.array([[1, 2.5]], np.float32), strict=True)
    np.testing.assert_array_equal(both["x"], np.array([[1, 2.5]], np.float16), strict=True)
    np.testing.assert_array_equal(both["ids"], np.array([2**62, -1], np.int64), strict=True)


UNFIT = "does not fit shape"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("{", "r.jsonl:2: is no inference request in JSON"),
        ("[" * 100_000, "r.jsonl:2: is no inference request in JSON"),
        ({"inputs": [7]}, "is no inference request"),
        ({"inputs": []}, "has no inputs"),
        ({"inputs": [TENSOR, TENSOR]}, "names an input twice"),
        (tensor(datatype="BYTES"), "input 'x' has an unknown datatype 'BYTES'; one of BOOL, "),
        (tensor(datatype=[]), "is no inference request"),
        (tensor(shape=[1, 3]), r"the data of input 'x' does not fit shape \[1, 3\] and datatype FP32"),
        (tensor(shape=[-1, 2]), UNFIT),
        (tensor(shape="no"), UNFIT),
        (tensor(data=[1, "2"]), UNFIT),
        (tensor(data=[[1], [2, 3]]), UNFIT),
        (tensor(datatype="INT32"), UNFIT),
        (tensor(datatype="UINT8", data=[1, 300]), UNFIT),
        (tensor(datatype="INT64", data=[1, 2**70]), UNFIT),
    ],
)
def test_a_wrong_request_is_told_by_its_line(tmp_path: Path, request_: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_requests(write(tmp_path / "r.jsonl", tensor(), request_))
    assert "r.jsonl:2: " in str(error.value)
    assert "\n" not in str(error.value)


def test_no_file_and_no_request_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_requests(tmp_path / "none")
    with pytest.raises(InputError, match="holds 0 requests; give 1 to 10,000"):
        read_requests(write(tmp_path / "r.jsonl", ""))
