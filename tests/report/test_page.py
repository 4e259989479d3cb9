"""The page needs nothing but itself, hides nothing, and its Markdown twin says the same."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace

import pytest
from report_example import HOSTILE, NOW, example

from engineworks.builds.results import BuildResult, EngineResult, StepCounts
from engineworks.builds.step_facts import StepFact
from engineworks.report.background import Before, Point
from engineworks.report.blame import blame_section
from engineworks.report.sections import sections
from engineworks.report.steps_section import graph_svg
from engineworks.report.summary import NOTE_CHARS, engine_note, verdict_table
from engineworks.report.text import render_markdown
from engineworks.report.trend import trend_section
from engineworks.report.verdict_section import anchor
from engineworks.report.write import render_html


@pytest.fixture(scope="module")
def html() -> str:
    return render_html(*example())


@pytest.fixture(scope="module")
def markdown() -> str:
    return render_markdown(*example())


def test_the_page_asks_the_network_for_nothing(html: str) -> None:
    without_links = re.sub(r'<a href="[^"]*"', "<a", html)
    assert not re.findall(r"https?://", without_links)
    assert not re.findall(r"@import|url\((?!#)|<(?:img|iframe|object|embed)\b", html)
    assert re.findall(r'<link[^>]*href="(.*?)"', html) == ["data:,"]


def test_only_our_script_may_run(html: str) -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html


def test_words_of_others_are_text_and_no_markup(html: str, markdown: str) -> None:
    assert HOSTILE not in html
    assert "&lt;script&gt;document.title" in html
    assert "line &lt;b&gt;two&lt;/b&gt;" in html
    assert "<script>" not in markdown
    row = next(line for line in markdown.splitlines() if line.startswith("| `int8/rtx40` |"))
    assert "\\| pipes" in row


def test_every_color_of_a_plot_is_the_pages_own(html: str) -> None:
    plots = re.findall(r"<svg role.*?</svg>", html, re.DOTALL)
    assert len(plots) == 5, "two shapes, a sweep, precisions, a trend"
    for plot in plots:
        assert not re.findall(r"#[0-9a-f]{6}\b(?!\w)", re.sub(r'(?:href|url\()="?#\w+', "", plot))
        assert "var(--" in plot


def test_ids_are_unique_and_every_inner_link_has_its_end(html: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)


def test_it_is_small(html: str) -> None:
    assert len(html) < 400_000


def test_both_pages_have_all_sections(html: str, markdown: str) -> None:
    found = sections(*example(), plots=False)
    assert [s.anchor for s in found] == [
        "verdicts", "blame", "changes", "frameworks", "latency", "layers", "sweep", "accuracy", "precision", "calibration",
        "memory", "trend", "steps", "provenance",
    ]  # fmt: skip
    for section in found:
        assert f'id="{section.anchor}"' in html
        assert section.title in markdown


def test_figures_of_every_section_are_on_both_pages(html: str, markdown: str) -> None:
    for wanted in ("0.097", "the GPU was throttled", "1.0040 to 1.0210", "classifier version 3", "PyTorch eager, CUDA", "580.159",
                   "24 samples are few", "0.4320", "570.86 → 580.159", "21 × pass, 3 × fail", "16.60"):  # fmt: skip
        assert wanted in html
        assert wanted in markdown


def test_a_bare_result_has_a_page_too() -> None:
    bare = BuildResult("r", "run1", (EngineResult("r/fp16/h100", "unmeasured", ()),), (), StepCounts())
    html, markdown = render_html(bare), render_markdown(bare)
    assert [s.anchor for s in sections(bare, plots=True)] == ["verdicts", "changes", "provenance"]
    assert "fp16/h100" in html
    assert "fp16/h100" in markdown


def test_what_failed_comes_first_and_is_open(html: str) -> None:
    failing, passing = (
        html.index(f'id="{anchor("classifier/int8/rtx40")}"'),
        html.index(f'id="{anchor("classifier/fp32/h100")}"'),
    )
    assert failing < passing
    table = html[html.index('id="verdicts"') :]
    assert table.index("int8/rtx40") < table.index("fp16/h100")


# --- what changed


def test_the_first_build_says_so() -> None:
    result, background = example()
    assert "first build on record" in render_markdown(result, replace(background, before=None))


def test_nothing_changed_is_said_too() -> None:
    result, background = example()
    assert "No change: the same verdicts" in render_markdown(
        result, replace(background, before=Before("r", NOW - 60, ()))
    )


def test_what_is_not_known_is_said() -> None:
    result, background = example()
    text = render_markdown(result, replace(background, before=None, missing=("MLflow does not answer",)))
    assert "MLflow does not answer" in text
    assert "first build" not in text


def test_a_champion_that_is_the_engine_itself_is_told_as_such() -> None:
    result, background = example()
    engine = "classifier/fp16/h100"
    known = background.champions[engine]
    assert known.point is not None
    same = replace(known, point=replace(known.point, digest=result.engines[1].digest))
    assert "byte for byte" in render_markdown(result, replace(background, champions={engine: same}))


# --- the trend


def marks(points: dict[str, tuple[Point, ...]]) -> list[str]:
    result, background = example()
    section = trend_section(result, replace(background, points=points), plots=False)
    return [line for line in str(section).split("'") if " → " in line]


def test_a_version_is_marked_where_it_changed_and_once() -> None:
    def at(day: int, **versions: str) -> Point:
        return Point(f"r{day}", NOW + day * 86400, "pass", p50_ms={"one": 1.0}, versions=versions)

    series = (at(0, driver="570"), at(1, driver="570"), at(2, driver="580"), at(3), at(4, driver="580", model="b"))
    assert marks({"c/fp32/h100": series, "c/fp16/h100": series}) == ["driver 570 → 580"]


def test_one_build_is_no_trend() -> None:
    result, background = example()
    alone = {e: points[-1:] for e, points in background.points.items()}
    assert trend_section(result, replace(background, points=alone), plots=True) is None


# --- the steps


def test_every_step_is_drawn_once_and_after_what_it_reads() -> None:
    steps = example()[0].dag
    svg = graph_svg(steps)
    assert svg.count("<rect") == len(steps)
    boxes = [tuple(map(float, xy)) for xy in re.findall(r'<rect x="([\d.]+)" y="([\d.]+)"', svg)]
    assert len(set(boxes)) == len(boxes), "two steps lie on each other"
    x = {s.key: box[0] for s, box in zip(steps, boxes, strict=True)}
    assert all(x[key] < x[s.key] for s in steps for key in s.inputs)


def test_a_step_is_the_same_after_the_record() -> None:
    for step in example()[0].dag:
        assert StepFact.from_json(step.to_json()) == step
    assert isinstance(example()[0].dag[0], StepFact)


# --- short notes


def test_a_description_keeps_within_mlflows_limit_and_counts_the_rest() -> None:
    result, background = example()
    many = tuple(replace(result.engines[0], id=f"classifier/fp32/target{i}") for i in range(200))
    text = verdict_table(replace(result, engines=many), background.links, most_chars=NOTE_CHARS)
    assert len(text) <= NOTE_CHARS
    shown = text.count("| classifier/fp32/target")
    assert f"and {200 - shown} more in the report" in text
    assert "1 engine refused (fp8/rtx30)" in text


def test_a_table_has_no_empty_columns_and_is_left_out_where_it_has_no_rows() -> None:
    result, background = example()
    passed = replace(result, engines=(result.engines[0],), ladder=())
    assert "| engine | verdict |" in verdict_table(passed, background.links)
    assert "why" not in verdict_table(passed, background.links)
    assert "|" not in verdict_table(replace(result, engines=()), background.links)


def test_an_engines_note_says_why_and_where_the_report_is() -> None:
    note = engine_note(example()[0].engines[2], "http://mlflow/report")
    assert note.startswith("**fail**")
    assert "cosine is 0.981" in note
    assert "(http://mlflow/report)" in note


def test_the_page_says_where_failures_come_from_and_where_the_time_goes(markdown: str) -> None:
    for heading in ("Where the failures come from", "Where the time goes", "task metric on every slice, worst first"):
        assert heading in markdown
    assert "p1 (MatMul)" in markdown
    assert "2 of 4 products run a kernel without tensor cores, 0.02 ms" in markdown
    assert "only one class" in markdown


def test_the_page_names_the_commands_that_find_nodes_and_suggest_limits(markdown: str) -> None:
    assert "engineworks limits RECIPE-FILE" in markdown
    result, background = example()
    result = replace(result, engines=tuple(replace(e, keys={"build": "a"}) for e in result.engines))
    section = blame_section(result, replace(background, blames={}))
    failing = [e.id for e in result.engines if e.verdict in ("fail", "failed")]
    assert failing
    assert section is not None
    assert all(f"engineworks blame {name}" in str(section.blocks) for name in failing)
