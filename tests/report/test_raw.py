"""The page holds what its checks were made of: whoever has it needs nothing else."""

from __future__ import annotations

import base64
import gzip
import json
import re

from engineworks.builds.results import BuildResult, EngineResult, StepCounts
from engineworks.measure.check import Check
from engineworks.report.raw import attachments
from engineworks.report.write import render_html
from tests.typed_reports import accuracy, champion_comparison

COMPARISON = champion_comparison("history", why="gone", history={"one": [["d", 1.0]]})
ENGINE = EngineResult(
    "r/int8/cpu", "pass", (Check("cosine[y]", "pass", "Good."),), accuracy=accuracy(),
    champion_comparison=COMPARISON,
)  # fmt: skip


def test_every_report_is_in_the_page_with_its_samples() -> None:
    page = render_html(BuildResult("r", "run", (ENGINE,), (), StepCounts()))
    links = dict(re.findall(r'download="([^"]+)" href="data:application/gzip;base64,([^"]+)"', page))
    found = {name: json.loads(gzip.decompress(base64.b64decode(data))) for name, data in links.items()}
    assert found == {
        "r-int8-cpu-checks.json.gz": [c.to_json() for c in ENGINE.checks],
        "r-int8-cpu-accuracy.json.gz": accuracy().to_json(),
        "r-int8-cpu-champion_comparison.json.gz": COMPARISON.to_json(),
    }


def test_an_engine_without_reports_has_no_links_and_the_same_result_the_same_bytes() -> None:
    assert list(attachments(EngineResult("r/int8/cpu", "unmeasured", ()))) == []
    assert list(attachments(ENGINE)) == list(attachments(ENGINE))
