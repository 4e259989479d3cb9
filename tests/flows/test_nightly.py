"""A night in one process: every recipe has its say, and the summary is on record."""

from __future__ import annotations

from pathlib import Path

import pytest

from engineworks.settings import Settings
from engineworks.tracking.runs import open_tracking

pytestmark = [pytest.mark.xdist_group("flows"), pytest.mark.usefixtures("api")]


def test_a_broken_recipe_stops_no_other_and_the_second_night_tells_what_changed(
    repository: Path, settings: Settings
) -> None:
    from flows.nightly import nightly

    broken = repository / "recipes" / "broken.yaml"
    broken.write_text("recipe: broken\nmodel: {}\n", encoding="utf-8")
    first = nightly(str(repository / "recipes"), return_state=True)
    assert first.is_failed()
    assert "broken" in str(first.message)
    tracking = open_tracking(repository / "artifacts")
    (record,) = tracking.find_runs(kind="night")
    text = tracking.read_text(record.run_id, "nightly.md")
    assert "tiny/int8/cpu" in text
    assert "broken" in text
    broken.unlink()
    second = nightly(str(repository / "recipes"), return_state=True)
    assert second.is_completed()
    assert "unchanged" in str(second.message)
    assert len(tracking.find_runs(kind="night")) == 2
