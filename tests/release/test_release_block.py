"""The `release` and `waivers` blocks of a recipe: every mistake at its file:line:column."""

from __future__ import annotations

from pathlib import Path

import pytest

from engineworks.errors import RecipeError
from engineworks.recipe.load import LoadedRecipe, load_recipe

WAIVER = "waivers: [{check: 'cosine[logits]', engine: int8/*, owner: a@b.c, reason: old camera, expires: 2027-01-31}]"
CASES = {
    "unknown key": ("release: {modle: x}", ":24:11: unknown key 'modle'; did you mean 'model'?"),
    "registered name": ("release: {model: a/b}", ":24:18: release.model: 'a/b' is not allowed"),
    "preferred too large": (
        "release: {triton: {dynamic_batching: {preferred: [8, 32]}}}",
        ":24:54: preferred batch 32 is larger than every profile allows; at most 16",
    ),
    "measured batching without a load": (
        "release: {triton: {dynamic_batching: {measured: true}}}",
        ":24:20: measured dynamic batching needs a load, whose p99_ms is the limit; add e.g. performance.serving.load",
    ),
    "no instances": ("release: {triton: {instances: 0}}", "it should be at least 1"),
    "waiver without owner": (WAIVER.replace("owner: a@b.c, ", ""), ":24:11: 'waivers.owner' is missing"),
    "waiver without reason": (WAIVER.replace("old camera", "'  '"), "waivers.reason: '  ' is not allowed"),
    "no date": (WAIVER.replace("2027-01-31", "soon"), "it should be a date, such as 2027-01-31"),
    "year alone": (WAIVER.replace("2027-01-31", "2027"), "it should be a date, such as 2027-01-31"),
    "no such day": (WAIVER.replace("2027-01-31", "2027-02-30"), ":24:96: waivers.expires: '2027-02-30'"),
    "waives everything": (WAIVER.replace("cosine[logits]", "*"), ":24:19: '*' would waive every check; name the check"),
    "no such engine": (WAIVER.replace("int8/*", "fp16/*"), "'fp16/*', which is no engine of this recipe; a glob over"),
}


def load(repository: Path, line: str) -> LoadedRecipe:
    path = repository / "recipes" / "tiny.yaml"
    path.write_text(path.read_text(encoding="utf-8").rstrip("\n") + "\n\n\n" + line + "\n", encoding="utf-8")
    return load_recipe(path)


@pytest.mark.parametrize("case", CASES, ids=list(CASES))
def test_one_clear_message(repository: Path, case: str) -> None:
    line, message = CASES[case]
    with pytest.raises(RecipeError) as caught:
        load(repository, line)
    assert message in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_dynamic_batching_needs_the_batch_in_front(repository: Path) -> None:
    path = repository / "recipes" / "tiny.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("outputs: {logits: [batch, 3]}", "outputs: {logits: [3]}"))
    with pytest.raises(RecipeError, match="needs a batch dimension that is axis 0 of every input and output"):
        load(repository, "release: {triton: {dynamic_batching: {}}}")


def test_the_blocks_of_the_design_are_read(repository: Path) -> None:
    line = (
        "release: {model: tiny-net, triton: {dynamic_batching: {preferred: [8, 16], max_delay_us: 500}, instances: 2}}"
    )
    recipe = load(repository, line + "\n" + WAIVER).recipe
    assert recipe.release.model == "tiny-net"
    assert recipe.release.triton.dynamic_batching is not None
    assert recipe.release.triton.dynamic_batching.preferred == (8, 16)
    assert [str(w.expires) for w in recipe.waivers] == ["2027-01-31"]


def test_an_expiry_far_away_and_one_long_past_are_both_fine(repository: Path) -> None:
    line = WAIVER.replace("2027-01-31", "2999-12-31")
    assert load(repository, line).recipe.waivers[0].expires.year == 2999
    path = repository / "recipes" / "tiny.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("2999-12-31", "2001-01-01"), encoding="utf-8")
    assert load_recipe(path).recipe.waivers[0].expires.year == 2001
