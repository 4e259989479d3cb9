"""Which recipes a night takes and what it says of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from engineworks.errors import InputError
from engineworks.report.night.summary import summarize
from tasks.night import (
    Chosen,
    RecipeNight,
    causes_of,
    choose_recipes,
    count_outcomes,
    lines_of,
    night_of_result,
    night_without_result,
)

RESULT = {
    "recipe": "tiny",
    "engines": [
        {"id": "tiny/fp32/cpu", "verdict": "pass", "waived": [], "error": None, "checks": []},
        {"id": "tiny/int8/cpu", "verdict": "fail", "waived": [], "error": None,
         "checks": [{"name": "finite[y]", "verdict": "pass", "message": "fine"},
                    {"name": "cosine[y]", "verdict": "fail", "message": "cosine 0.5"}]},
    ],
    "refused": [{"id": "tiny/fp8/rtx20", "message": "rtx20 has no fp8"}],
}  # fmt: skip


@pytest.fixture
def folder(repository: Path) -> Path:
    recipes = repository / "recipes"
    text = (recipes / "tiny.yaml").read_text(encoding="utf-8")
    other = text.replace("recipe: tiny", "recipe: other\ntags: [weekly, small]").replace("tests@", "ops@")
    (recipes / "other.yaml").write_text(other, encoding="utf-8")
    (recipes / "wrong.yaml").write_text(text.replace("precisions:", "precisons:"), encoding="utf-8")
    return recipes


@pytest.mark.parametrize(
    ("how", "names"),
    [
        ({}, ["other", "tiny", "wrong"]),
        ({"globs": ["t*"]}, ["tiny"]),
        ({"globs": ["other.yaml", "tiny"]}, ["other", "tiny"]),
        ({"owner": "ops@*"}, ["other", "wrong"]),
        ({"tag": "weekly"}, ["other", "wrong"]),
        ({"tag": "weekly", "globs": ["other"]}, ["other"]),
    ],
)
def test_recipes_are_chosen_by_glob_owner_or_tag_and_broken_ones_are_never_left_out(
    folder: Path, how: dict[str, object], names: list[str]
) -> None:
    chosen = choose_recipes(folder, **how)  # type: ignore[arg-type]
    assert [one.name for one in chosen] == names
    assert {one.name for one in chosen if one.error} == {"wrong"} & set(names)


def test_a_choice_of_nothing_is_an_error(folder: Path) -> None:
    with pytest.raises(InputError, match="no recipe"):
        choose_recipes(folder, globs=["nothing"])


def test_two_recipes_of_one_name_are_not_both_built(folder: Path) -> None:
    (folder / "twin.yaml").write_bytes((folder / "tiny.yaml").read_bytes())
    tiny, twin = choose_recipes(folder, globs=["tiny", "twin*"])
    assert tiny.loaded is not None
    assert twin.loaded is None
    assert "is also that of" in str(twin.error)


def test_the_night_says_what_happened_to_every_engine(folder: Path) -> None:
    tiny, wrong = choose_recipes(folder, globs=["tiny", "wrong"])
    lost = night_without_result(tiny, "lost", "its flow run crashed")
    nights = [
        night_of_result(RESULT, tiny, "built"), lost,
        night_without_result(wrong, "refused", "wrong.yaml:12:1: unknown key"),
    ]  # fmt: skip
    assert lines_of(nights) == [
        "tiny/fp32/cpu: pass",
        "tiny/int8/cpu: fail · cosine 0.5",
        "tiny/fp8/rtx20: refused · rtx20 has no fp8",
        "tiny/fp32/cpu: lost · its flow run crashed",
        "tiny/int8/cpu: lost · its flow run crashed",
        "wrong: refused · wrong.yaml:12:1: unknown key",
    ]
    assert [night.is_good for night in nights] == [False, False, False]
    words = count_outcomes(nights)
    assert words == "3 recipes (1 built, 1 lost, 1 refused), 5 engines (2 lost, 1 pass, 1 fail, 1 refused)"


def failed(
    *sentences: tuple[str, str], warnings: tuple[str, ...] = (), slow: str = "", recipe: str = "tiny"
) -> RecipeNight:
    """A built recipe whose engines fail. sentences: precision/target, and the failing check's sentence."""
    engines = [
        {"id": f"{recipe}/{engine}", "verdict": "fail" if text else "pass", "waived": [], "error": None,
         "checks": [{"name": check, "verdict": "fail" if text else "pass", "message": text}]}
        for engine, text in sentences
        for check in ["latency" if engine == slow else "metric"]
    ]  # fmt: skip
    calibration = [{"step": "calibrate", "warnings": list(warnings)}]
    result = {"recipe": recipe, "engines": engines, "refused": [], "calibration": calibration}
    return night_of_result(result, Chosen(Path(f"recipes/{recipe}.yaml"), None), "built")


def test_a_broken_data_set_is_one_line_though_every_engine_has_a_number_of_its_own() -> None:
    many = [(f"{p}/{t}", f"top1 is 0.{n}, limit 0.9.") for n, p in enumerate(("fp16", "fp32", "int8")) for t in "abcd"]
    (line,) = causes_of([failed(*many, warnings=("the samples are constant",))])
    assert line == (
        "tiny/fp32/a and 11 more: fail · top1 is 0.1, limit 0.9. "
        "Likely cause: the evaluation data or the model, for fp32 fails too."
    )


def test_a_data_set_that_several_recipes_share_is_one_line_and_named() -> None:
    of = {
        name: failed(("fp32/cpu", f"top1 is 0.{n}."), ("int8/cpu", f"top1 is 0.{n + 1}."), recipe=name)
        for n, name in enumerate(("one", "two", "three"), 1)
    }
    shared, other = Path("data/broken.npz"), Path("data/other.npz")
    nights = [replace(night, data=other if name == "three" else shared) for name, night in of.items()]
    assert causes_of(nights) == [
        "one/fp32/cpu and 3 more: fail · top1 is 0.1. "
        "Likely cause: the evaluation data (broken.npz) or the model, for fp32 fails too.",
        "three/fp32/cpu and 1 more: fail · top1 is 0.3. "
        "Likely cause: the evaluation data (other.npz) or the model, for fp32 fails too.",
    ]


def test_an_fp32_engine_that_fails_otherwise_or_on_one_target_alone_is_no_cause() -> None:
    lines = ["tiny/fp32/a: fail · a.", "tiny/int8/a: fail · b."]
    assert causes_of([failed(("fp32/a", "a."), ("fp32/b", ""), ("int8/a", "b."))]) == lines
    assert causes_of([failed(("fp32/a", "a."), ("int8/a", "b."), slow="fp32/a")]) == lines


def test_quantized_engines_that_fail_alone_name_the_warning_of_their_calibration() -> None:
    night = failed(("fp32/cpu", ""), ("fp16/cpu", "a."), ("int8/cpu", "b."), warnings=("the samples are constant",))
    assert causes_of([night]) == [
        "tiny/fp16/cpu: fail · a.",
        "tiny/int8/cpu: fail · b. Likely cause: the samples are constant.",
    ]


def test_a_recipe_without_engines_is_a_line_of_its_own() -> None:
    assert causes_of([RecipeNight("gone", "gone.yaml", "refused", (), "no such file")]) == [
        "gone: refused · no such file"
    ]


def test_recipes_that_are_refused_for_one_file_are_one_line() -> None:
    nights = [
        RecipeNight(name, f"{name}.yaml", "refused", (), f"{name}.yaml:13:{n}: test.npz: cannot be read")
        for n, name in enumerate(("one", "two"))
    ]
    assert causes_of(nights) == ["one and 1 more: refused · one.yaml:13:0: test.npz: cannot be read"]


def test_the_reason_is_the_check_that_gives_the_verdict_and_no_waived_one() -> None:
    checks = [
        {"name": "cosine[y]", "verdict": "fail", "message": "cosine is .9.", "waived": "waived by a@b.c"},
        {"name": "p99_ms[one]", "verdict": "inconclusive", "message": "too few runs."},
        {"name": "p50_ms[one]", "verdict": "fail", "message": "median is 9 ms."},
    ]
    engine = {"id": "tiny/fp32/cpu", "verdict": "fail", "waived": ["cosine[y] …"], "error": None, "checks": checks}
    result = {"recipe": "tiny", "engines": [engine], "refused": []}
    night = night_of_result(result, Chosen(Path("tiny.yaml"), None), "built")
    assert [(e.message, e.check) for e in night.engines] == [("median is 9 ms.", "p50_ms[one]")]
    assert [e["why"] for e in summarize([result], None, at=datetime.now(UTC)).engines] == ["median is 9 ms."]
