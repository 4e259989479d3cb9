"""trtexec's command lines and Olive's files: what has a place goes there, all else is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engineworks.commands.init.olive import read_olive
from engineworks.commands.init.trtexec import read_trtexec
from engineworks.errors import InputError


def test_shapes_of_several_inputs_become_min_opt_and_max() -> None:
    options = read_trtexec(
        "trtexec --onnx=a/m.onnx --minShapes=x:1x3,y:1 --optShapes=x:4x3,y:4 --maxShapes='x':8x3,y:8"
    )
    assert options.shapes == {"x": ((1, 3), (4, 3), (8, 3)), "y": ((1,), (4,), (8,))}
    assert (options.model, options.name) == ("a/m.onnx", "m")


def test_shapes_alone_are_fixed() -> None:
    assert read_trtexec("--onnx=m.onnx --shapes=in:0:2x3").shapes == {"in:0": ((2, 3), (2, 3), (2, 3))}


@pytest.mark.parametrize(
    ("flags", "precisions"),
    [
        ("", ("fp32",)), ("--fp16", ("fp32", "fp16")), ("--best --fp16", ("fp32", "fp16", "int8")),
        ("--bf16 --fp8", ("fp32", "bf16", "fp8")), ("--stronglyTyped", ("as_is",)),
    ],
)  # fmt: skip
def test_precision_flags(flags: str, precisions: tuple[str, ...]) -> None:
    assert read_trtexec(f"trtexec --onnx=m.onnx {flags}").precisions == precisions


def test_what_has_no_place_is_named_with_what_to_do() -> None:
    options = read_trtexec(
        "trtexec --onnx=m.onnx --saveEngine=m.plan --timingCacheFile=t --iterations=9 --calib=c --frobnicate "
        "--memPoolSize=workspace:2G,dlaSRAM:1 --builderOptimizationLevel=5 --streams=4 --useCudaGraph"
    )
    text = "\n".join(options.dropped)
    for word in ("--saveEngine", "--timingCacheFile", "--iterations", "--calib", "--frobnicate", "dlaSRAM"):
        assert word in text
    assert "workspace_mib: 2048, builder_optimization_level: 5" in text
    assert (options.streams, options.cuda_graphs) == ((1, 4), True)


@pytest.mark.parametrize("line", ["trtexec --fp16", "trtexec --onnx='m"])
def test_a_line_that_can_not_be_translated_is_refused(line: str) -> None:
    with pytest.raises(InputError):
        read_trtexec(line)


def olive(tmp_path: Path, **more: Any) -> Path:
    whole = {"input_model": {"type": "ONNXModel", "config": {"model_path": "m.onnx"}}, **more}
    (tmp_path / "olive.json").write_text(json.dumps(whole), encoding="utf-8")
    return tmp_path / "olive.json"


def test_passes_become_precisions_and_the_others_are_named(tmp_path: Path) -> None:
    passes = {"c": {"type": "OnnxConversion"}, "q": {"type": "OnnxStaticQuantization", "per_channel": True},
              "w": {"type": "SomethingNew"}}  # fmt: skip
    options = read_olive(olive(tmp_path, passes=passes, output_dir="out"))
    text = "\n".join(options.dropped)
    assert options.precisions == ("fp32", "int8")
    assert "SomethingNew" in text
    assert "per_channel" in text
    assert "output_dir" in text


def test_an_accuracy_goal_becomes_a_limit(tmp_path: Path) -> None:
    goal = {"type": "max-degradation", "value": 0.01}
    metrics = [{"type": "accuracy", "sub_types": [{"name": "accuracy_score", "goal": goal}]}]
    assert read_olive(olive(tmp_path, evaluators={"e": {"metrics": metrics}})).metric_delta == 0.01


def test_a_file_without_a_model_is_no_workflow(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="input_model"):
        read_olive(tmp_path / "x.json")
