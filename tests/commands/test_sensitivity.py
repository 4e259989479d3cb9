"""`engineworks sensitivity` from recipe to patch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engineworks.cli import run_command
from engineworks.commands.plans import read_plans
from engineworks.settings import read_settings

BAD = "/block1/MatMul"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run_command(["sensitivity", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code, out, _ = run(capsys, *arguments, "--json")
    return {"code": code, **json.loads(out)}


def edit(recipe: Path, before: str, after: str) -> None:
    text = recipe.read_text(encoding="utf-8")
    assert before in text
    recipe.write_text(text.replace(before, after), encoding="utf-8")


def test_the_node_that_int8_ruins_ranks_first_and_alone_is_kept_out(
    outlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = outlier.read_text(encoding="utf-8")
    found = run_json(capsys, str(outlier))
    assert found["parts"][0]["name"] == BAD
    assert found["parts"][0]["loss"] > 0.1
    assert found["parts"][0]["noise"] > 100 * found["parts"][1]["noise"]
    assert (found["keep"], found["verdict"], found["code"]) == ([BAD], "pass", 0)
    assert "+  keep: [/block1/MatMul]" in found["diff"]
    assert found["written"] is False
    assert outlier.read_text(encoding="utf-8") == before
    assert "<svg" in Path(found["plot"]).read_text(encoding="utf-8")


def test_the_written_recipe_keeps_its_comments_and_its_engine_passed(
    outlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = outlier.read_text(encoding="utf-8")
    code, out, _ = run(capsys, str(outlier), "--write")
    assert code == 0
    assert "the engine of this list: pass" in out
    after = outlier.read_text(encoding="utf-8")
    assert after == before.replace("meaning\n", "meaning\n  keep: [/block1/MatMul]\n")
    (plan,) = read_plans(read_settings(), [outlier], "outlier/int8/cpu")
    assert plan.steps[plan.engines[0].steps["compare"]].state == "cached"  # what was judged is what is built
    again = run_json(capsys, str(outlier))
    assert (again["keep"], again["diff"]) == ([BAD], "")


def test_without_labels_the_outputs_error_ranks(outlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(outlier, ", labels: label", "")
    found = run_json(capsys, str(outlier))
    assert found["parts"][0]["name"] == BAD
    assert {part["loss"] for part in found["parts"]} == {None}
    assert found["keep"] == [BAD]


def test_a_mixture_is_measured_on_its_own_nodes(outlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(outlier, "precisions: [fp32, int8]", "precisions: [fp32, some]\nmixtures: {some: {int8: ['/block[12]/*']}}")
    edit(outlier, "    int8: {", "    some: {")
    found = run_json(capsys, str(outlier), "--precision", "some", "--samples", "20")
    assert [part["name"] for part in found["parts"]] == [BAD, "/block2/MatMul"]
    assert (found["keep"], found["samples"], found["verdict"]) == ([BAD], 20, "pass")


def test_fp8_needs_no_list_here(outlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(outlier, "int8: {cosine: 0.99, metric_ratio: 0.9}", "fp8: {cosine: 0.9}")
    edit(outlier, "precisions: [fp32, int8]", "precisions: [fp32, fp8]")
    edit(outlier, "targets: [cpu]", "targets: [rtx40]")
    found = run_json(capsys, str(outlier), "--precision", "fp8", "--target", "rtx40")
    assert (found["keep"], found["diff"], found["verdict"], found["code"]) == ([], "", "unmeasured", 3)


def test_without_limits_there_is_a_ranking_and_no_list(outlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(outlier, "    int8: {cosine: 0.99, metric_ratio: 0.9}\n", "")
    edit(outlier, "precisions: [fp32, int8]", "precisions: [fp32]")
    code, out, _ = run(capsys, str(outlier))
    assert code == 0
    assert "the recipe has no limits for int8" in out
    assert BAD in out


def test_limits_that_nothing_holds_fail_and_change_nothing(outlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(outlier, "int8: {cosine: 0.99", "int8: {cosine: 1.0")
    before = outlier.read_text(encoding="utf-8")
    code, out, _ = run(capsys, str(outlier), "--write")
    assert code == 1
    assert "no list of nodes to keep out makes the limits hold" in out
    assert outlier.read_text(encoding="utf-8") == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int7"], "--precision: 'int7' quantizes no activations; say one that does: int8, fp8"),
        (["--precision", "fp16"], "--precision: 'fp16' quantizes no activations"),
        (["--target", "cup"], "--target: there is no target 'cup'; did you mean 'cpu'?"),
        (["--samples", "61"], "--samples: 61 are asked for, the evaluation data has 60"),
    ],
)
def test_what_can_not_be_asked_is_exit_2_and_stores_nothing(
    outlier: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, out, err = run(capsys, str(outlier), *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert not (Path("artifacts") / "store" / "objects").exists()


def test_no_calibration_data_is_told(outlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(outlier, "  calibration: {npz: calib.npz}\n", "")
    edit(outlier, "precisions: [fp32, int8]", "precisions: [fp32]")
    edit(outlier, "    int8: {cosine: 0.99, metric_ratio: 0.9}\n", "")
    code, _, err = run(capsys, str(outlier))
    assert code == 2
    assert "int8 needs calibration data" in err


def test_ctrl_c_leaves_nothing(outlier: Path) -> None:
    """Interrupted while a metric that takes its time is computed."""
    recipes = outlier.parent
    (recipes / "slow.py").write_text(
        "import pathlib, time\n"
        f"def metric(outputs, labels, inputs):\n    pathlib.Path({str(recipes)!r}, 'there').touch()\n    time.sleep(60)\n",
        encoding="utf-8",
    )
    edit(outlier, "metric: top1", "metric: {python: 'slow:metric'}")
    before = outlier.read_text(encoding="utf-8")
    # A shell's background job ignores SIGINT, and its children inherit that.
    unmask = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code = unmask + "import sys; from engineworks.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "sensitivity", str(outlier), "--write"]
    # The metric says by a file that it runs, which the sandbox would not let it write.
    environment = os.environ | {"ENGINEWORKS_SANDBOX": "process"}
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while child.poll() is None and not (recipes / "there").exists():
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    artifacts = Path("artifacts")
    assert list((artifacts / "store" / "partial").iterdir()) == []
    assert list(artifacts.rglob("sensitivity*")) == []
    assert outlier.read_text(encoding="utf-8") == before
