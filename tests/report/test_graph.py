"""The drawing of a build's steps: every kind has a column, right of all that it reads."""

from __future__ import annotations

import re

from engineworks.builds.step_facts import StepFact
from engineworks.plan.kinds import STEP_KINDS
from engineworks.report.steps_section import graph_svg


def facts() -> list[StepFact]:
    """One step of each kind, which reads one of each kind that it may read."""
    return [
        StepFact(f"r/fp32/cpu/{kind}" if row.owner == "engine" else f"r/{kind}", kind, kind, "run", 1.0, "", row.reads)
        for kind, row in STEP_KINDS.items()
    ]


def test_prepared_data_is_drawn_left_of_all_that_reads_it() -> None:
    drawn = graph_svg(facts())
    places = {kind: int(x) for kind, x in re.findall(r'<title>r/(?:fp32/cpu/)?(\w+): run.*?<rect x="(\d+)"', drawn)}
    assert places.keys() == STEP_KINDS.keys()
    assert places["prepare"] == places["export"] == min(places.values())
    assert all(places[read] < places[kind] for kind, row in STEP_KINDS.items() for read in row.reads)
    assert drawn.count('class="edge ran"') == sum(len(row.reads) for row in STEP_KINDS.values())
    assert ">export, prepare</text>" in drawn


def test_a_kind_of_an_older_record_stands_last() -> None:
    drawn = graph_svg([*facts(), StepFact("r/fp32/cpu/duel", "duel", "duel", "run", 1.0, "", ("build",))])
    heads = re.findall(r'<text class="head" x="(\d+)" y="12">([^<]*)', drawn)
    assert max(heads, key=lambda head: int(head[0]))[1] == "duel"
