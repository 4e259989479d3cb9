"""What changed since a revision: by fingerprint, in a real git repository, whatever its working tree holds."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import tiny_model

from engineworks.cli import run_command
from engineworks.errors import InputError
from engineworks.plan.changed import Changes, find_changes, only_glob
from engineworks.plan.differences import EngineChange, RecipeChange
from engineworks.settings import read_settings

METRIC = "def agree(outputs, labels, inputs):\n    return 1.0\n"


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout


def commit() -> None:
    git("add", "--all")
    git("commit", "--quiet", "--allow-empty", "-m", "x")


@pytest.fixture
def committed(repository: Path) -> Path:
    """The tiny repository, its recipe committed; artifacts/ and fetched/ are ignored."""
    (repository / ".git").rmdir()
    git("init", "--quiet")
    (repository / ".gitignore").write_text("artifacts\nfetched\n")
    (repository / "recipes" / "other.yaml").write_text(
        (repository / "recipes" / "tiny.yaml").read_text().replace("recipe: tiny", "recipe: other")
    )
    commit()
    return repository


def found(since: str = "HEAD", *recipes: str) -> Changes:
    return find_changes(since, [Path(r) for r in recipes] or None, read_settings())


def one(changes: Changes, name: str = "tiny") -> RecipeChange:
    return next(r for r in changes.recipes if r.recipe == name)


def edit(name: str, old: str, new: str) -> None:
    path = Path("recipes", name)
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_nothing_changed_in_a_clean_tree_nor_by_words_that_shape_nothing(committed: Path) -> None:
    assert {r.state for r in found().recipes} == {"unchanged"}
    edit("tiny.yaml", "description: A classifier", "description: The classifier  # of images")
    edit("tiny.yaml", "owner: tests@", "owner: others@")
    assert found().to_build == ()


def test_an_edit_of_the_working_tree_counts_and_only_for_its_engines(committed: Path) -> None:
    edit("tiny.yaml", "npz: calib.npz", "npz: calib.npz, samples: 8")
    changes = found()
    assert [r.recipe for r in changes.to_build] == ["tiny"]
    assert one(changes).to_build == ("tiny/int8/cpu",)
    assert "samples.count changed from 24 to 8 (calibrate)" in one(changes).reasons


def test_a_commit_counts_like_an_edit(committed: Path) -> None:
    edit("tiny.yaml", "npz: calib.npz", "npz: calib.npz, samples: 8")
    commit()
    assert found().to_build == ()
    assert one(found("HEAD~1")).to_build == ("tiny/int8/cpu",)


def test_other_weights_in_an_unchanged_recipe_count(committed: Path) -> None:
    onnx.save(tiny_model(seed=9), committed / "recipes" / "tiny.onnx")
    changes = found()
    assert [r.recipe for r in changes.to_build] == ["other", "tiny"]
    assert one(changes).reasons == ("file tiny.onnx changed (export)",)


def test_other_weights_beside_an_unchanged_graph_count(committed: Path) -> None:
    place = committed / "recipes" / "tiny.onnx"
    onnx.save(tiny_model(), place, save_as_external_data=True, location="tiny.data", size_threshold=0)
    commit()
    data = committed / "recipes" / "tiny.data"
    data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
    assert one(found()).reasons == ("file tiny.data changed (export)",)


def test_a_model_outside_of_the_recipes_folder_counts(committed: Path) -> None:
    (committed / "models").mkdir()
    shutil.move(committed / "recipes" / "tiny.onnx", committed / "models" / "tiny.onnx")
    for name in ("tiny.yaml", "other.yaml"):
        edit(name, "onnx: tiny.onnx", "onnx: ../models/tiny.onnx")
    commit()
    assert found().to_build == ()
    onnx.save(tiny_model(seed=9), committed / "models" / "tiny.onnx")
    assert one(found()).reasons == ("file tiny.onnx changed (export)",)


def test_data_metric_code_targets_and_defaults_count(committed: Path) -> None:
    (committed / "recipes" / "metric.py").write_text("from words import agree\n")
    (committed / "recipes" / "words.py").write_text(METRIC)
    edit("tiny.yaml", "metric: top1", "metric: {python: 'metric:agree'}")
    (committed / "recipes" / "_defaults.yaml").write_text("calibration: {batch: 8}\n")
    commit()
    (committed / "recipes" / "words.py").write_text(METRIC.replace("1.0", "0.5"))
    assert one(found()).reasons == ("file metric words.py changed (compare)",)
    git("checkout", "--quiet", ".")
    np.savez(committed / "recipes" / "calib.npz", image=np.ones((24, 1, 4, 4), np.float32))
    assert one(found()).reasons == ("file calibration changed (calibrate)",)
    git("checkout", "--quiet", ".")
    edit("_targets.yaml", "backend: onnxruntime", "backend: onnxruntime, options: {threads: 1}")
    assert "target.options.threads is new (build, compare, measure)" in one(found()).reasons
    git("checkout", "--quiet", ".")
    edit("_defaults.yaml", "batch: 8", "batch: 4")
    assert one(found()).to_build == ("tiny/int8/cpu",)


def test_another_limit_judges_again_what_it_limits(committed: Path) -> None:
    edit("tiny.yaml", "int8: {cosine: 0.98}", "int8: {cosine: 0.97}")
    assert one(found()).to_build == ("tiny/int8/cpu",)
    assert one(found()).reasons == ("evaluated differently: limits.cosine changed from 0.98 to 0.97",)


def test_recipes_come_and_go(committed: Path) -> None:
    (committed / "recipes" / "third.yaml").write_text(
        (committed / "recipes" / "tiny.yaml").read_text().replace("recipe: tiny", "recipe: third")
    )
    (committed / "recipes" / "other.yaml").unlink()
    states = {r.recipe: r.state for r in found().recipes}
    assert states == {"third": "new", "tiny": "unchanged", "other": "gone"}
    assert one(found(), "third").to_build == ("third/fp32/cpu", "third/int8/cpu")
    assert found("HEAD", "recipes/other.yaml").recipes[0].state == "gone"
    with pytest.raises(InputError, match="neither now nor then"):
        found("HEAD", "recipes/none.yaml")


def test_engines_come_and_go(committed: Path) -> None:
    edit("tiny.yaml", "precisions: [fp32, int8]", "precisions: [fp32, bf16]")
    edit("tiny.yaml", "targets: [cpu]", "targets: [cpu, rtx40]")
    edit("tiny.yaml", "int8: {cosine: 0.98}", "bf16: {cosine: 0.98}")
    states = {e.id: e.state for e in one(found()).engines}
    assert states["tiny/fp32/cpu"] == "unchanged"
    assert states["tiny/int8/cpu"] == "gone"
    assert states["tiny/bf16/rtx40"] == "new"


def test_what_git_does_not_keep_counts_as_unchanged_and_is_named(committed: Path) -> None:
    (committed / "recipes" / "fetched").mkdir()
    shutil.move(committed / "recipes" / "calib.npz", committed / "recipes" / "fetched" / "calib.npz")
    for name in ("tiny.yaml", "other.yaml"):
        edit(name, "npz: calib.npz", "npz: fetched/calib.npz")
    commit()
    np.savez(committed / "recipes" / "fetched" / "calib.npz", image=np.ones((24, 1, 4, 4), np.float32))
    edit("other.yaml", "one: {batch: 1}", "one: {batch: 2}")
    changes = found()
    assert one(changes).state == "unchanged"
    assert changes.assumed == ("recipes/fetched/calib.npz",)
    assert one(changes, "other").reasons == ("at.one.dims.batch changed from 1 to 2 (measure)",)


def test_a_recipe_that_was_wrong_then_is_built_and_says_what_was_wrong(committed: Path) -> None:
    edit("tiny.yaml", "metric: top1", "metrik: top1")
    commit()
    edit("tiny.yaml", "metrik: top1", "metric: top1")
    change = one(found())
    assert change.to_build == ("tiny/fp32/cpu", "tiny/int8/cpu")
    assert change.reasons[0].startswith("it could not be planned at HEAD: HEAD:recipes/tiny.yaml:15:3: unknown key")


def test_a_recipe_that_is_wrong_now_stops_no_other(committed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit("other.yaml", "metric: top1", "metrik: top1")
    edit("tiny.yaml", "one: {batch: 1}", "one: {batch: 2}")
    assert run_command(["changed", "--since", "HEAD", "--json"]) == 2
    printed = json.loads(capsys.readouterr().out)
    assert printed["build"] == ["recipes/tiny.yaml"]
    assert {r["recipe"]: r["state"] for r in printed["recipes"]} == {"tiny": "changed", "other": "broken"}


def test_the_repository_is_left_as_it_was(committed: Path) -> None:
    edit("tiny.yaml", "one: {batch: 1}", "one: {batch: 2}")
    git("add", "--all")
    edit("tiny.yaml", "one: {batch: 2}", "one: {batch: 3}")
    (committed / "recipes" / "untracked.txt").write_text("x")
    before = git("status", "--porcelain"), git("diff", "--cached")
    found()
    assert (git("status", "--porcelain"), git("diff", "--cached")) == before
    assert git("worktree", "list").count("\n") == 1


def test_a_hook_may_ask_from_within_a_commit(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_INDEX_FILE", str(committed / "none" / "index"))
    monkeypatch.setenv("GIT_DIR", str(committed / "none"))
    assert {r.state for r in found().recipes} == {"unchanged"}


def test_an_unknown_revision_and_no_repository_are_said(committed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["changed", "--since", "v9"]) == 2
    assert "git knows no revision 'v9'" in capsys.readouterr().err
    shutil.rmtree(committed / ".git")
    assert run_command(["changed", "--since", "HEAD"]) == 2
    assert "is in no git repository" in capsys.readouterr().err


def test_without_git_it_says_so(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(committed))
    with pytest.raises(InputError, match="git is not installed"):
        found()


def test_quiet_prints_what_a_shell_hands_on(committed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit("tiny.yaml", "one: {batch: 1}", "one: {batch: 2}")
    assert run_command(["changed", "--since", "HEAD", "-q"]) == 0
    assert capsys.readouterr().out == "recipes/tiny.yaml\n"
    assert run_command(["changed", "--since", "HEAD"]) == 0
    assert "since HEAD" in capsys.readouterr().out


def changed(*ids: str, of: tuple[str, ...]) -> RecipeChange:
    engines = tuple(EngineChange(i, "changed" if i in ids else "unchanged") for i in of)
    return RecipeChange("r", "r.yaml", "changed", (), engines)


def test_a_glob_selects_what_changed_and_nothing_else_or_all_is_asked_for() -> None:
    four = ("r/fp32/cpu", "r/fp32/gpu", "r/int8/cpu", "r/int8/gpu")
    assert only_glob(changed(*four, of=four)) is None
    assert only_glob(changed("r/int8/cpu", "r/int8/gpu", of=four)) == "r/int8/*"
    assert only_glob(changed("r/int8/gpu", "r/fp32/gpu", of=four)) == "r/*/gpu"
    assert only_glob(changed("r/int8/gpu", of=four)) == "r/int8/gpu"
    assert only_glob(changed("r/int8/gpu", "r/fp32/cpu", of=four)) is None


def test_recipes_outside_of_recipes_are_named_or_it_says_so(
    committed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.move("recipes", "nets")
    commit()
    commit()
    assert run_command(["changed", "--since", "HEAD"]) == 2
    assert "there are no recipes in recipes/, now or then; name the recipe files" in capsys.readouterr().err
    assert run_command(["changed", "--since", "HEAD", "nets/tiny.yaml", "nets/other.yaml"]) == 0
    assert "0 of 2 recipes, 0 engines" in capsys.readouterr().out


def test_a_recipe_that_its_targets_refuse_then_and_now_alike_is_unchanged(committed: Path) -> None:
    Path("recipes/_targets.yaml").write_text(
        "targets:\n  cpu: {backend: tensorrt_rtx, compute_capability: [7.0], pool: old}\n"
    )
    commit()
    recipe = one(found())
    assert (recipe.state, recipe.to_build) == ("unchanged", ())
    assert "no engine of it can be built" in recipe.reasons[0]
    edit("_targets.yaml", "{backend: tensorrt_rtx, compute_capability: [7.0], pool: old}", "{backend: onnxruntime}")
    assert one(found()).state == "changed"


@pytest.fixture
def without_data(committed: Path) -> Path:
    """A repository whose data git does not keep, on a host that does not have it."""
    for name in ("calib.npz", "test.npz"):
        git("rm", "--quiet", "--cached", f"recipes/{name}")
        (committed / "recipes" / name).unlink()
    (committed / ".gitignore").write_text("artifacts\n*.npz\n")
    commit()
    return committed


def test_without_the_data_what_did_not_change_is_unchanged(
    without_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {r.state for r in found().recipes} == {"unchanged"}
    assert run_command(["changed", "--since", "HEAD"]) == 0
    printed = capsys.readouterr().out
    assert "recipes/tiny.yaml: unchanged: compared by what the recipe says: recipes/tiny.yaml:" in printed
    assert "0 of 2 recipes, 0 engines" in printed


@pytest.mark.parametrize(
    ("old", "new", "engines", "reason"),
    [
        ("owner: tests@", "owner: others@", (), ""),
        ("npz: calib.npz", "npz: calib.npz, samples: 8", ("tiny/int8/cpu",), "data.calibration.samples is new"),
        ("one: {batch: 1}", "one: {batch: 2}", ("tiny/fp32/cpu", "tiny/int8/cpu"), "performance.at.one.batch changed"),
        (
            "int8: {cosine: 0.98}",
            "int8: {cosine: 0.97}",
            ("tiny/int8/cpu",),
            "evaluated differently: limits.cosine changed",
        ),
        ("npz: test.npz", "npz: tests.npz", ("tiny/fp32/cpu", "tiny/int8/cpu"), "data.evaluation.npz changed"),
    ],
)
def test_without_the_data_an_edit_changes_its_engines(
    without_data: Path, old: str, new: str, engines: tuple[str, ...], reason: str
) -> None:
    edit("tiny.yaml", old, new)
    changed_now = one(found())
    assert changed_now.to_build == engines
    assert (not reason) or any(r.startswith(reason) for r in changed_now.reasons)
    commit()
    assert one(found()).state == "unchanged"
    assert one(found("HEAD~1")).to_build == engines


def test_without_the_data_other_weights_targets_and_new_recipes_count(without_data: Path) -> None:
    model = tiny_model(seed=3)
    onnx.save(model, "recipes/tiny.onnx")
    assert one(found()).to_build == ("tiny/fp32/cpu", "tiny/int8/cpu")
    assert "file recipes/tiny.onnx changed" in one(found()).reasons
    commit()
    shutil.copy("recipes/tiny.yaml", "recipes/third.yaml")
    edit("third.yaml", "recipe: tiny", "recipe: third")
    assert one(found(), "third").state == "new"
    assert one(found(), "third").to_build == ("third/fp32/cpu", "third/int8/cpu")
    edit("tiny.yaml", "metric: top1", "metrik: top1")
    assert one(found()).state == "broken"


def test_a_file_that_git_keeps_and_is_gone_is_no_missing_data(committed: Path) -> None:
    (committed / "recipes" / "calib.npz").unlink()
    assert {r.state for r in found().recipes} == {"broken"}


def test_data_that_a_commit_brings_is_what_changed(without_data: Path) -> None:
    Path(".gitignore").write_text("artifacts\n")
    for name, rows in (("calib.npz", 24), ("test.npz", 16)):
        np.savez(f"recipes/{name}", image=np.ones((rows, 1, 4, 4), np.float32), label=np.zeros(rows, np.int64))
    commit()
    assert any(r.startswith("file recipes/calib.npz changed") for r in one(found("HEAD~1")).reasons)
