"""What a night looks its recipes up in, and which finished builds it knows."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from engineworks.errors import TrackingError
from engineworks.host.collector import SELDOM, collected_seldom
from engineworks.report.night.summary import NIGHT_JSON
from engineworks.settings import Settings
from engineworks.tracking.runs import Tracking, open_tracking
from tasks.night_lookup import LONGEST_BUILD_S, Lookup, finished_since_last_night

ENDED = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)
NIGHT = {
    "at": ENDED.isoformat(), "seconds": 600.0,
    "recipes": [{"recipe": "a", "run": "run1"}, {"recipe": "b", "run": ""}, {"recipe": "c", "run": "run3"}],
}  # fmt: skip


class Record:
    """MLflow with this text of the last night."""

    def __init__(self, text: str | None) -> None:
        self._text = text
        self.asked: list[tuple[Sequence[str], float]] = []

    def last_night_text(self, path: str) -> str | None:
        assert path == NIGHT_JSON
        return self._text

    def finished_builds(self, run_ids: Sequence[str], since: float) -> dict[tuple[str, str], str]:
        self.asked.append((run_ids, since))
        return {("a", "key"): "run1"}


def finished(record: Record) -> Any:
    return finished_since_last_night(cast(Tracking, record))


def test_asked_for_are_the_runs_of_the_last_night_and_all_that_may_have_ended_since() -> None:
    record = Record(json.dumps(NIGHT))
    assert finished(record) == {("a", "key"): "run1"}
    assert record.asked == [(["run1", "run3"], ENDED.timestamp() - 600 - LONGEST_BUILD_S)]


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", "3", "{}", json.dumps(NIGHT | {"at": "today"}), json.dumps(NIGHT | {"recipes": None})]
)
def test_without_a_last_night_that_can_be_read_nothing_is_known(text: str | None) -> None:
    record = Record(text)
    assert finished(record) == {}
    assert record.asked == []


def test_where_mlflow_does_not_answer_nothing_is_known_and_nothing_is_raised(tmp_path: Path) -> None:
    settings = Settings(tmp_path, str(tmp_path / "store"), tracking_uri="http://127.0.0.1:9")
    with pytest.raises(TrackingError):
        open_tracking(tmp_path, settings.tracking_uri).last_night_text(NIGHT_JSON)
    assert Lookup(settings).finished == {}


def test_a_store_that_can_not_be_opened_is_told_to_every_recipe(tmp_path: Path) -> None:
    lookup = Lookup(Settings(tmp_path, "nonsense://x"))
    for _ in range(2):
        with pytest.raises(Exception, match="nonsense"):
            _ = lookup.store


def test_all_recipes_of_a_night_have_one_store_and_those_of_one_repository_one_checkout(tmp_path: Path) -> None:
    lookup = Lookup(Settings(tmp_path, str(tmp_path / "store")))
    assert lookup.store is lookup.store
    assert lookup.digests is lookup.digests
    assert lookup.checkout(tmp_path) is lookup.checkout(tmp_path)
    assert lookup.checkout(tmp_path) is not lookup.checkout(tmp_path / "other")


def test_after_the_night_the_collector_is_as_it_was() -> None:
    before = gc.get_threshold()
    with pytest.raises(KeyError), collected_seldom():
        assert gc.get_threshold() == (SELDOM, *before[1:])
        raise KeyError
    assert gc.get_threshold() == before
