"""Screens of builds, plans and `inspect` at 80 and 120 columns."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from engineworks.builds.results import BuildResult, EngineResult, Failure, StepCounts
from engineworks.cli import run_command
from engineworks.measure.check import Check
from engineworks.plan.plan import Refused
from engineworks.report.answer import may_ship
from engineworks.report.progress_text import Clock, time_words
from engineworks.report.results_text import print_results
from engineworks.report.rows import grouped_reasons
from engineworks.report.terminal import fitting
from engineworks.report.words import many
from engineworks.settings import read_settings
from tests.typed_reports import accuracy, latency, metric, shape_json, sidecar

SHAPE = shape_json() | {
    "latency_ms_p50": 0.123,
    "latency_ms_p99": 0.456,
    "throughput_per_s": 92_362.0,
    "runs": 100,
    "notes": [],
}
PASSED = Check("cosine[logits]", "pass", "logits: cosine is 0.99999, limit 0.99.")
WORSE = Check("cosine[logits]", "fail", "logits: cosine is 0.91, limit 0.99.")
SLOWER = Check("one.p50_ms", "fail", "one: median latency is 2 ms, budget at most 1 ms.")
TARGETS = ("rtx20", "a100", "rtx30", "rtx40", "rtx50", "portable")


def measured(precision: str, *checks: Check) -> EngineResult:
    bad = any(check.verdict == "fail" for check in checks)
    return EngineResult(
        f"classifier/{precision}/cpu", "fail" if bad else "pass", checks or (PASSED,), sidecar=sidecar(bytes=2**20),
        accuracy=accuracy(metric(0.9933)),
        latency=latency({"one": SHAPE}),
    )  # fmt: skip


def idle(precision: str, target: str) -> EngineResult:
    why = f"Not run: no NVIDIA GPU here; the target's engines run on compute capability {target}."
    return EngineResult(
        f"classifier/{precision}/{target}", "unmeasured", (Check("accuracy", "unmeasured", why),),
        sidecar=sidecar(bytes=2**20, target={"compute_capability": ["8.0"]}),
    )  # fmt: skip


def build(*engines: EngineResult) -> BuildResult:
    refused = tuple(
        Refused(f"classifier/{p}/h100", "TensorRT-RTX 1.7 does not run on Hopper") for p in ("fp16", "fp32")
    )
    others = [idle(p, t) for p in ("fp32", "fp16", "int8") for t in TARGETS]
    return BuildResult("classifier", "run1", (*engines, *others[1:]), refused, StepCounts(3, 0, 0), seconds=2.0)


@pytest.mark.parametrize("columns", [80, 120])
def test_a_build_of_many_engines_fits_a_screen_and_says_the_verdict_first(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    result = build(measured("fp32"), measured("fp16"), measured("int8", WORSE, SLOWER))
    print_results([result], read_settings(), quiet=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Ship classifier? In part: fp32/cpu, fp16/cpu passed; int8/cpu failed")
    assert len(lines) <= 24
    assert all(len(line) <= columns for line in lines if not line.startswith("report: "))
    text = "\n".join(lines)
    heading = next(i for i, line in enumerate(lines) if line.startswith(" engine"))
    table = [line.split() for line in lines[heading:]]
    assert table[0][:2] == ["engine", "verdict"]
    assert table[2][:2] == ["classifier/int8/cpu", "fail"]
    assert "- logits: cosine is 0.91, limit 0.99." in text
    assert "- one: median latency is 2 ms, budget at most 1 ms." in text
    assert "17 engines for 6 GPU types: built, not run (no NVIDIA GPU here)" in text
    assert (
        " ".join(text.split()).count(
            "2 engines refused (fp16/h100, fp32/h100): TensorRT-RTX 1.7 does not run on Hopper"
        )
        == 1
    )
    assert [line.split()[1] for line in lines[-3:]] == ["report", "why", "init"]


def test_all_lists_every_engine(capsys: pytest.CaptureFixture[str]) -> None:
    print_results([build(measured("fp32"))], read_settings(), quiet=True, every=True)
    out = capsys.readouterr().out
    assert out.count("classifier/int8/rtx40") == 2  # its row, and its reason
    assert re.search(r"classifier/fp16/h100 +refused", out)
    assert "2 engines refused (fp16/h100, fp32/h100): TensorRT-RTX 1.7" in out
    assert "--all" not in out


def test_a_failed_step_shared_by_engines_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    failed = [
        EngineResult(f"r/int8/{t}", "failed", (), failure=Failure("r/int8/calibrate", "one cause\nhint: fix it"))
        for t in TARGETS
    ]
    print_results([BuildResult("r", "run1", tuple(failed), (), StepCounts())], read_settings(), quiet=True)
    out = capsys.readouterr().out
    assert out.count("one cause") == out.count("hint: fix it") == 1


@pytest.mark.parametrize(
    ("engines", "word"),
    [
        ((measured("fp32"),), "Yes"),
        ((measured("fp32"), measured("int8", WORSE)), "In part"),
        ((measured("int8", WORSE),), "No"),
        ((), "Not yet"),
    ],
)
def test_the_answer(engines: tuple[EngineResult, ...], word: str) -> None:
    assert may_ship(build(*engines)).reply == word


def test_a_pass_by_a_waiver_is_named_as_such() -> None:
    waived = replace(measured("int8"), checks=(replace(WORSE, waived="[waived by ada until 2030-01-01: known]"),))
    assert "1 engine passed (1 with a waiver)" in may_ship(build(waived)).message


def test_what_several_reasons_add_is_said_once() -> None:
    disturbed = "Not to be trusted: other work had the processor. The next build measures again."
    checks = (
        Check("p50_ms[one]", "fail", f"one: median latency is 2 ms, budget at most 1 ms. {disturbed}"),
        Check("p99_ms[one]", "fail", f"one: 99% latency is 3 ms, budget at most 1 ms. {disturbed}"),
        Check("cosine[y]", "fail", "y: cosine is 0.9, limit 0.99. Worst sample: 3."),
    )
    assert grouped_reasons(measured("int8", *checks)) == (
        "one: median latency is 2 ms, budget at most 1 ms.", "one: 99% latency is 3 ms, budget at most 1 ms.",
        "y: cosine is 0.9, limit 0.99. Worst sample: 3.",
        "one: not to be trusted: other work had the processor. The next build measures again.",
    )  # fmt: skip


def test_columns_are_left_out_in_their_order_and_never_the_verdict() -> None:
    headings, row = ("engine", "verdict", "metric", "MiB", "blank"), ("e" * 30, "pass", "0.5", "1", "")
    assert fitting(headings, [row], ("MiB", "metric"), 200) == (0, 1, 2, 3)
    assert fitting(headings, [row], ("MiB", "metric"), 55) == (0, 1, 2)
    assert fitting(headings, [row], ("MiB", "metric"), 10) == (0, 1)


def test_plurals() -> None:
    assert [many(n, t) for n, t in ((1, "step"), (2, "batch"), (0, "entry"), (1000, "engine"))] == [
        "1 step", "2 batches", "0 entries", "1,000 engines",
    ]  # fmt: skip


class Noted:
    """Where progress appears, as a list."""

    def __init__(self) -> None:
        self.ticks: list[tuple[str, float, float | None]] = []

    def ticking(self, step: object, seconds: float, expected: float | None) -> None:
        self.ticks.append((step.id, seconds, expected))  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return lambda *_: None


def test_long_steps_tell_the_time_that_is_left() -> None:
    class Step:
        id, key, kind = "r/int8/calibrate", "k", "calibrate"

    noted, now = Noted(), [0.0]
    clock = Clock(noted, lambda _: 30.0, now=lambda: now[0])  # type: ignore[arg-type]
    clock.started(Step())  # type: ignore[arg-type]
    clock.tick()
    now[0] = 12.0
    clock.tick()
    clock.finished(Step(), 12.0)  # type: ignore[arg-type]
    clock.tick()
    assert noted.ticks == [("r/int8/calibrate", 12.0, 30.0)]
    other = Clock(noted, lambda _: None, now=lambda: now[0])  # type: ignore[arg-type]
    other.finished(Step(), 20.0)  # type: ignore[arg-type]
    other.started(Step())  # type: ignore[arg-type]
    now[0] += 6
    other.tick()
    assert noted.ticks[-1] == ("r/int8/calibrate", 6.0, 20.0), "a step of the same kind took 20 s in this build"
    assert time_words(12.0, 30.0) == "12 s so far, about 18 s left"
    assert time_words(40.0, 30.0) == "40 s so far, 30 s expected"
    assert time_words(12.0, None) == "12 s so far"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out.startswith("engineworks 0.")


def test_inspect_is_text_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["inspect", "recipes/models/digits_cnn.onnx"]) == 0
    out = capsys.readouterr().out
    assert "ONNX, opset 18, 23,946 parameters" in out
    assert "float32[batch, 1, 8, 8]" in out
    assert "{" not in out
