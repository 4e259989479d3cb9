"""The result of a build that is on record, asked for by a night: the same as anybody else's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from release_record import record

from engineworks.builds.command import recorded_result
from engineworks.builds.results import LONGEST_LIST
from engineworks.host.git import Checkout
from engineworks.measure.latency_report import Omitted
from engineworks.store.store import Store
from engineworks.tracking.runs import Tracking


def told(result: Any) -> Any:
    """All that a result says, but how long it took."""
    return json.loads(json.dumps(result.to_json() | {"seconds": 0}, default=str))


def test_a_night_that_reads_no_samples_gets_the_same_result_and_the_same_passports(built: Any) -> None:
    record(built)
    whole = recorded_result(built.plan, built.settings)
    brief = recorded_result(built.plan, built.settings, store=built.store, checkout=Checkout(built.root), samples=False)
    assert whole is not None
    assert brief is not None
    assert told(brief) == told(whole)
    assert [e.passport for e in brief.engines] == [e.passport for e in whole.engines]
    counts = [len(e.latency.shapes["one"].samples) for e in whole.engines]
    assert min(counts) > LONGEST_LIST
    assert [e.latency.shapes["one"].samples for e in brief.engines] == [Omitted(n) for n in counts]


def test_a_build_that_is_known_is_not_searched_for_and_another_is(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = record(built).run
    searched: list[str] = []
    find = Tracking.find_runs

    def watched(self: Tracking, **wanted: Any) -> Any:
        searched.append(wanted["build_key"])
        return find(self, **wanted)

    monkeypatch.setattr(Tracking, "find_runs", watched)
    key = (built.plan.recipe, built.plan.build_key)
    known = recorded_result(built.plan, built.settings, finished={key: "run-of-the-night"})
    assert known is not None
    assert (known.run, searched) == ("run-of-the-night", [])
    others = {("another", key[1]): "wrong", (key[0], "0" * 64): "wrong"}
    found = recorded_result(built.plan, built.settings, finished=others)
    assert found is not None
    assert (found.run, searched) == (run, [key[1]])


@pytest.mark.parametrize("file", ["latency.json", "engine"])
def test_a_store_that_serves_many_recipes_still_finds_what_was_altered(built: Any, file: str, alter: Any) -> None:
    record(built)
    store = Store(Path(built.settings.store))
    planned = built.plan.engines[0]
    alter(store.place(planned.steps["measure" if file == "latency.json" else "build"]) / file)
    assert recorded_result(built.plan, built.settings, store=store, samples=False) is None
