"""The flow on_commit: what changed is built, in a real repository, and what fails stops nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from flow_builds import enter

from engineworks.builds.results import BuildResult
from engineworks.report.night.summary import NIGHT_JSON, summarize_night
from engineworks.settings import read_settings
from engineworks.tracking.runs import open_tracking
from flows.outcomes import result_of

pytestmark = [pytest.mark.xdist_group("flows"), pytest.mark.usefixtures("api")]


def git(*arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


def test_only_what_changed_is_built_and_a_broken_recipe_stops_nothing(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.on_commit import on_commit

    enter(repository, monkeypatch)
    (repository / ".git").rmdir()
    recipe = repository / "recipes" / "tiny.yaml"
    for name in ("same", "wrong"):
        recipe.with_name(f"{name}.yaml").write_text(recipe.read_text().replace("recipe: tiny", f"recipe: {name}"))
    git("init", "--quiet")
    git("add", "recipes")
    git("commit", "--quiet", "-m", "x")
    recipe.write_text(recipe.read_text().replace("npz: calib.npz", "npz: calib.npz, samples: 16"))
    state = on_commit("HEAD", return_state=True)
    assert state.is_completed()
    assert result_of(state) == {"recipes/tiny.yaml": "Completed: Yes: 1 engine passed"}
    tracking = open_tracking(repository / "artifacts")
    assert [run.recipe for run in tracking.find_runs(kind="build")] == ["tiny"]

    recipe.with_name("wrong.yaml").write_text("recipe: wrong\n")
    state = on_commit("HEAD", return_state=True)
    assert state.is_failed()
    words = result_of(state)
    assert words["recipes/wrong.yaml"].startswith("not read: recipes/wrong.yaml")
    assert words["recipes/tiny.yaml"].startswith("Completed")
    git("checkout", "--quiet", ".")
    assert on_commit("HEAD", return_state=True).message == "nothing changed since HEAD (3 recipes)"


def test_a_night_of_real_builds_is_published(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect import flow
    from prefect.artifacts import Artifact

    from flows.build_recipe import build_recipe
    from tasks.publish_summary import ARTIFACT, publish_summary

    enter(repository, monkeypatch)
    monkeypatch.setenv("ENGINEWORKS_METRICS_FILE", str(repository / "night.prom"))
    settings = read_settings()
    tracking = open_tracking(settings.artifacts)

    @flow
    def one_night() -> tuple[str, ...]:
        state = build_recipe("recipes/tiny.yaml", "*/fp32/*", return_state=True)
        result = result_of(state)
        assert isinstance(result, BuildResult)
        return publish_summary(summarize_night([result], tracking), settings)

    assert one_night() == ()
    page = Artifact.get(ARTIFACT)
    assert page is not None
    assert "| tiny/fp32/cpu | pass |" in str(page.data)
    assert "| tiny/fp32/cpu/build |" in str(page.data)
    assert "never built" in str(page.data)
    assert '"tiny/fp32/cpu"' in (tracking.last_night_text(NIGHT_JSON) or "")
    assert 'verdict="pass"' in (repository / "night.prom").read_text()
    one_night()
    assert "Nothing: every result was in the store." in str(Artifact.get(ARTIFACT).data)  # type: ignore[union-attr]
