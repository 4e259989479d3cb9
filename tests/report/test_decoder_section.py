"""The report's section on generated text."""

from __future__ import annotations

from dataclasses import replace

from engineworks.builds.results import BuildResult, EngineResult, StepCounts
from engineworks.report.blocks import Text
from engineworks.report.decoder import decoder_section
from tests.typed_reports import latency, shape_json


def measured(precision: str, ms: float, target: str = "cpu") -> EngineResult:
    asked = {"streams": 1, "prompt": 8, "new": 8}
    shape = shape_json(ms, dims=asked, first_token_ms=2.0, tokens_per_s=1000 / ms)
    return EngineResult(f"tiny/{precision}/{target}", "pass", (), latency=latency({"chat": shape}))


def sentences(*engines: EngineResult) -> list[str]:
    section = decoder_section(BuildResult("tiny", "run1", engines, (), StepCounts()), plots=False)
    assert section is not None
    return [f"{block.strong} {block.text}" for block in section.blocks if isinstance(block, Text)]


def test_a_precision_that_is_not_faster_than_a_more_faithful_one_of_its_target_is_told() -> None:
    engines = (
        measured("fp32", 60.0), measured("fp16", 61.0), measured("int8_weights", 212.0), measured("int4_weights", 40.0),
        measured("int8_weights", 1.0, "h100"),
    )  # fmt: skip
    assert sentences(*engines) == [
        "tiny/fp16/cpu: is not faster than tiny/fp32/cpu: 61 ms per token at chat against 60. Choose it for its size alone.",
        "tiny/int8_weights/cpu: is not faster than tiny/fp32/cpu: 212 ms per token at chat against 60. "
        "Choose it for its size alone.",
    ]


def test_an_engine_that_was_not_measured_is_compared_with_none() -> None:
    unmeasured = replace(measured("fp32", 1.0), latency=None)
    assert sentences(unmeasured, measured("int4_weights", 40.0)) == []
