"""Reasons in Triton's words; the texts are those of Triton 2.51."""

from __future__ import annotations

import pytest

from engineworks.serving.client import last_error, reason

FAILED = "load failed for model 'digits-fp32-cpu': version 1 is at UNAVAILABLE state: Internal: "
TRACEBACK = f"""{FAILED}TrustError: /models/1/model.onnx: was altered; do not load it

At:
  /models/runtime.zip/engineworks/engines/engine_files.py(49): check_files
;
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TRACEBACK, "/models/1/model.onnx: was altered; do not load it"),
        (
            f"{FAILED}ModuleNotFoundError: No module named 'numpy'\n\nAt:",
            "ModuleNotFoundError: No module named 'numpy'",
        ),
        (f"{FAILED}SyntaxError: invalid syntax (model.py, line 1);", "SyntaxError: invalid syntax (model.py, line 1)"),
        ("[request id: <id_unknown>] unexpected shape for input 'x'. NOTE: Setting", "unexpected shape for input 'x'"),
        ("", "the server gave no reason"),
    ],
)
def test_one_sentence(text: str, expected: str) -> None:
    assert reason(text) == expected


def test_the_last_error_of_a_log() -> None:
    log = 'I1130 03:25:26.593529 11536 model.cc:839] "loaded"\nE1130 03:25:27.1 11536 http.cc:1] "failed to bind"\n'
    assert last_error(log) == "failed to bind"
    assert last_error("I1130 03:25:26.5 1 a.cc:1] x") == ""
    missing = "bin/tritonserver: error while loading shared libraries: libb64.so.0d: cannot open shared object file"
    assert last_error(f"{missing}\n\n") == missing
    assert last_error(f"{log}Segmentation fault\n") == "failed to bind"
