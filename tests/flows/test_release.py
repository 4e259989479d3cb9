"""The Prefect flow `release`: it builds, judges, and moves the champions of what passed."""

from __future__ import annotations

from pathlib import Path

import pytest

from engineworks.host.file_digests import FileDigests
from engineworks.plan.plan import plan_recipe
from engineworks.recipe.load import load_recipe
from engineworks.release.promotion import ReleaseResult
from engineworks.release.sources import built_engines
from engineworks.settings import Settings
from engineworks.store.shared import open_store
from engineworks.tracking.aliases import Slot
from engineworks.tracking.runs import open_tracking
from flows.outcomes import result_of

pytestmark = [pytest.mark.xdist_group("flows"), pytest.mark.usefixtures("api")]


def test_the_flow_releases_what_passed_and_ends_failed_where_a_gate_did(repository: Path, settings: Settings) -> None:
    from flows.release import release

    recipe = repository / "recipes" / "tiny.yaml"
    state = release(str(recipe), return_state=True)
    result = result_of(state)
    assert isinstance(result, ReleaseResult), result
    assert state.is_completed()
    assert [(e.id, e.action) for e in result.engines] == [("tiny/fp32/cpu", "promoted"), ("tiny/int8/cpu", "promoted")]
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text.replace("int8: {cosine: 0.98}", "int8: {cosine: 0.99999999}"), encoding="utf-8")
    state = release(str(recipe), only="*/int8/*", return_state=True)
    result = result_of(state)
    assert isinstance(result, ReleaseResult)
    assert state.is_failed()
    assert result.exit_code() == 1
    assert [(e.action, e.message) for e in result.engines] == [("kept", "fail: champion-cpu-int8 stays at version 2")]
    champion = open_tracking(repository / "artifacts").registry().get(Slot("tiny", "cpu", "int8"))
    assert champion is not None
    assert champion.version == 2


def test_of_the_rungs_of_auto_only_the_chosen_one_is_released_and_packaged(
    repository: Path, auto_settings: Settings
) -> None:
    from flows.release import release

    recipe = repository / "recipes" / "tiny.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("0.99999999}", "0.98}"), encoding="utf-8")
    result = result_of(release(str(recipe), return_state=True))
    assert isinstance(result, ReleaseResult), result
    (cpu,) = result.build.ladder
    assert cpu.chosen is not None
    assert [e.id for e in result.engines if e.action == "promoted"] == [cpu.chosen.engine]
    kept = [e.message for e in result.engines if e.action == "kept"]
    assert len(kept) == 4
    assert all(sentence.startswith("dropped, ") for sentence in kept)
    assert result.exit_code() == 0
    store = open_store(auto_settings)
    packaged, left = built_engines(plan_recipe(load_recipe(recipe), store, FileDigests(None)), store, unmeasured=False)
    assert [e.passport.id for e in packaged] == [cpu.chosen.engine]
    assert {one.exit_code for one in left} == {0}
