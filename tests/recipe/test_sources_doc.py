"""docs/sources.md: every form it shows is one that recipes take."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import RECIPE

from engineworks.errors import Place
from engineworks.recipe.checks import check_recipe
from engineworks.recipe.recipe import Recipe
from engineworks.recipe.yaml_nodes import merge, parse_yaml

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "sources.md").read_text(encoding="utf-8")


def forms() -> Iterator[str]:
    """Every `model:` line and every `data:` block of the page; a block without an evaluation gets that of the tests."""
    for block in re.findall(r"```(?:yaml|text)\n(.*?)```", TEXT, re.S):
        if block.startswith("data:"):
            yield block
        else:
            yield from (line for line in block.splitlines() if line.startswith("model:"))


@pytest.mark.parametrize("form", list(forms()))
def test_a_form_that_the_page_shows_is_one_that_recipes_take(form: str) -> None:
    base = parse_yaml(re.sub(r"data:\n(  .*\n)+", "" if form.startswith("data:") else r"\g<0>", RECIPE), "tiny.yaml")
    if form.startswith("model:"):
        base.remove("model")
    else:
        base = parse_yaml(RECIPE.replace("precisions: [fp32, int8]", "precisions: [fp32]"), "tiny.yaml")
        base.remove("data")
    node = merge(parse_yaml(form, "sources.md"), base)
    recipe = Recipe.model_validate(node.plain())
    known = ("the model has no input", "names nothing")  # inputs of other models than the test's
    problems = [p for p in check_recipe(recipe) if not any(words in p.message for words in known)]
    assert [p for p in problems if p.place != Place("tiny.yaml")] == [] or all("int8" in p.message for p in problems)


def test_the_page_shows_every_kind_of_model_and_data() -> None:
    shown = "\n".join(forms())
    for word in ("onnx:", "torch:", "huggingface:", "mlflow:", "npz:", "text:", "images:"):
        assert f"{{{word}" in shown or f"{word} " in shown
