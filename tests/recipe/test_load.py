"""Recipes: every problem in one go, each at its place, with what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import RECIPE

from engineworks.errors import RecipeError
from engineworks.recipe.cascading_errors import RENAMED
from engineworks.recipe.load import find_recipes, load_recipe, load_recipes

Edit = tuple[str, str]


def problems(repository: Path, *edits: Edit) -> list[str]:
    text = RECIPE
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new, 1)
    path = repository / "recipes" / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        load_recipe(path)
    except RecipeError as error:
        return [str(p) for p in error.problems]
    return []


CASES: dict[str, tuple[list[Edit], str]] = {
    "mistyped key": (
        [("precisions:", "precison:")],
        "recipes/tiny.yaml:10:1: unknown key 'precison'; did you mean 'precisions'?",
    ),
    "missing key": ([("recipe: tiny\n", "")], "recipes/tiny.yaml:1:1: 'recipe' is missing"),
    "key that was renamed": (
        [("targets: [cpu]", "calibration: {around: fp16}\ntargets: [cpu]")],
        "recipes/tiny.yaml:19:15: unknown key 'around': it is called 'unquantized' now",
    ),
    "mistyped inner key": (
        [("{cosine: 0.98}", "{cosin: 0.98}")],
        "recipes/tiny.yaml:18:12: unknown key 'cosin'; did you mean 'cosine'?",
    ),
    "wrong type": (
        [("batch: [1, 4, 16]", "batch: [1, four, 16]")],
        "recipes/tiny.yaml:9:24: shapes.default.batch: 'four' is not allowed; it should be a whole number",
    ),
    "a float for a length": ([("[1, 4, 16]", "[1, 4.5, 16]")], "4.5 is not allowed; it should be a whole number"),
    "unknown precision": (
        [("[fp32, int8]", "[fp32, fp61]")],
        "recipes/tiny.yaml:10:20: precisions: 'fp61' is not a choice; did you mean 'fp16'?",
    ),
    "precision of another type": ([("[fp32, int8]", "[fp32, 8]")], "10:20: precisions: 8 is not a choice"),
    "mixture without a name": (
        [("[fp32, int8]", "[fp32, {default: fp16}]")],
        "10:20: a mixture of precisions needs a name; mixtures: {NAME:",
    ),
    "mixture that there is not": (
        [("[fp32, int8]", "[fp32, int8-hed]\nmixtures: {int8-head: {int8: [fc*]}}"), ("int8: {c", "int8-head: {c")],
        "10:20: precisions: 'int8-hed' is not a choice; did you mean 'int8-head'?",
    ),
    "limits for nothing": ([("    int8: {cosine", "    int9: {cosine")], "18:5: limits for unknown precision 'int9'"),
    "mixture with a precision's name": (
        [("precisions: [fp32, int8]", "precisions: [fp32, int8]\nmixtures: {fp8: {int8: [a]}}")],
        "11:12: 'fp8' is a precision already: a mixture needs another name",
    ),
    "mixture of nothing": (
        [("precisions: [fp32, int8]", "precisions: [fp32, int8]\nmixtures: {m: {default: fp16}}")],
        "11:12: mixture 'm' names no nodes",
    ),
    "mixture with one glob twice": (
        [("precisions: [fp32, int8]", "precisions: [fp32, int8]\nmixtures: {m: {int8: [a], fp8: [b, a]}}")],
        "11:36: mixture 'm' has 'a' in int8 and in fp8; remove one",
    ),
    "mixture that keeps all": (
        [("precisions: [fp32, int8]", "precisions: [fp32, int8]\nmixtures: {m: {fp32: [a]}}")],
        "11:16: mixture 'm' keeps nodes in fp32 and has no default for the others; e.g. default: fp16",
    ),
    "unknown key in a mixture": (
        [("precisions: [fp32, int8]", "precisions: [fp32, int8]\nmixtures: {m: {int4: [a]}}")],
        "11:16: unknown key 'int4'; did you mean 'int8'?",
    ),
    "mixture without data": (
        [
            ("  calibration: {npz: calib.npz}\n", ""),
            ("[fp32, int8]", "[fp32, m]\nmixtures: {m: {fp8: [a]}}"),
            ("int8: {cosine", "m: {cosine"),
        ],
        "10:20: m needs calibration data",
    ),
    "regression": (
        [("  at:", "  regression: {latency: 5}\n  at:")],
        "recipes/tiny.yaml:21:25: performance.regression.latency: 5 is not allowed; it should be a percentage such as 5%",
    ),
    "regression without limits": ([("  at:", "  regression: {}\n  at:")], "21:3: performance.regression sets no limit"),
    "regression without shapes": (
        [("  at: {one: {batch: 1}}", "  at: {}\n  regression: {latency: 5%}")],
        "22:16: regression.latency needs named shapes",
    ),
    "regression without a metric": (
        [("  at:", "  regression: {accuracy: 0.5%}\n  at:"), ("  metric: top1\n", "")],
        "20:16: regression.accuracy needs accuracy.metric",
    ),
    "load without a rate": (
        [("  at:", "  serving: {load: {p99_ms: 15}}\n  at:")],
        "21:13: the load names neither qps nor find_qps; give one: qps: 200, or find_qps: true",
    ),
    "load with two rates": (
        [("  at:", "  serving: {load: {p99_ms: 15, qps: 9, find_qps: true}}\n  at:")],
        "21:13: the load names both qps and find_qps",
    ),
    "load that is too short": (
        [("  at:", "  serving: {load: {p99_ms: 0, qps: -1}}\n  at:")],
        "performance.serving.load.p99_ms",
    ),
    "serving that is optional": ([("targets: [cpu]", "release: {serve: yes}\ntargets: [cpu]")], "release.serve"),
    "mlflow source": (
        [("onnx: tiny.onnx", "mlflow: models:/a/1")],
        "4:26: models:/a/1 cannot be looked up: there is no MLflow database at",
    ),
    "no name of an mlflow model": ([("onnx: tiny.onnx", "mlflow: a/1")], "4:26: 'a/1' names no model in MLflow; write models:/name/version"),
    "time limit of no step": (
        [("targets: [cpu]", "time_limits: {bild: 100}\ntargets: [cpu]")],
        "19:15: unknown key 'bild'; did you mean 'build'?",
    ),
    "two sources": (
        [("onnx: tiny.onnx", "onnx: tiny.onnx, torch: a:b")],
        "4:17: model.source names 'onnx' and 'torch'; give exactly one",
    ),
    "profile upside down": (
        [("[1, 4, 16]", "[4, 1, 16]")],
        "9:20: profile 'default': batch: [4, 1, 16] is not min ≤ opt ≤ max",
    ),
    "unknown dimension": ([("batch: [1, 4", "bach: [1, 4")], "no input has a dimension 'bach'; did you mean 'batch'?"),
    "dimension without a range": (
        [("shape: [batch, 1, 4, 4]", "shape: [batch, 1, height, 4]")],
        "profile 'default' has no range for dimension 'height'; height: [min, opt, max]",
    ),
    "no profiles": ([("shapes:\n  default: {batch: [1, 4, 16]}\n", "")], "dynamic dimensions (batch) need profiles"),
    "shape outside": (
        [("one: {batch: 1}", "one: {batch: 99}")],
        "21:13: shape 'one' (batch 99) lies outside of every profile",
    ),
    "unknown batch": ([("shapes:", "batch: bach\nshapes:")], "8:8: no input has a dimension 'bach'; did you mean 'batch'?"),
    "samples that fill no batch": (
        [("[1, 4, 16]", "[7, 7, 7]"), ("one: {batch: 1}", "one: {batch: 7}")],
        "13:15: 16 samples do not fill batches of 7: the profiles allow no others; samples: 14, or lower the minimum",
    ),
    "budget without shape": (
        [("  at: {one: {batch: 1}}", "  at: {one: {batch: 1}}\n  budget: {won: {p50_ms: 1}}")],
        "22:12: budget for unknown shape 'won'; did you mean 'one'?",
    ),
    "sweep outside": (
        [("  at: {one: {batch: 1}}", "  at: {one: {batch: 1}}\n  sweep: {batch: [1, 8, 32]}")],
        "22:25: batch 32 at shape 'one' (batch 32) lies outside of every profile; they are default: batch 1–16",
    ),
    "sweep at an unknown shape": (
        [("  at: {one: {batch: 1}}", "  at: {one: {batch: 1}}\n  sweep: {batch: [1], at: won}")],
        "22:27: no shape 'won'; did you mean 'one'?",
    ),
    "sweep without a shape": (
        [("  at: {one: {batch: 1}}", "  at: {}\n  sweep: {batch: [1]}")],
        "22:3: the sweep needs a named shape under performance.at; e.g. at:",
    ),
    "sweep of a fixed batch": (
        [("shape: [batch, 1, 4, 4]", "shape: [8, 1, 4, 4]"), ("[batch, 3]", "[8, 3]"),
         ("shapes:\n  default: {batch: [1, 4, 16]}\n", ""), ("{batch: 1}}", "{}}\n  sweep: {batch: [1]}")],
        "20:3: the model takes batches of 8 only: there is nothing to sweep",
    ),
    "batch twice": (
        [("  at: {one: {batch: 1}}", "  at: {one: {batch: 1}}\n  sweep: {batch: [1, 2, 1]}")],
        "22:25: duplicate '1' in batch",
    ),
    "sweep of nothing": (
        [("  at: {one: {batch: 1}}", "  at: {one: {batch: 1}}\n  sweep: {batch: []}")],
        "22:3: the sweep needs batch sizes; e.g. batch: [1, 8, 32]",
    ),
    "streams twice": (
        [("  at: {one: {batch: 1}}", "  at: {one: {batch: 1}}\n  streams: [2, 2]")],
        "22:16: duplicate '2' in streams",
    ),
    "too many streams": (
        [("  at: {one: {batch: 1}}", "  at: {one: {batch: 1}}\n  streams: [100]")],
        "22:13: performance.streams: 100 is not allowed; it should be at most 64",
    ),
    "unknown kernels": (
        [("  at: {one: {batch: 1}}", "  at: {one: {batch: 1}}\n  serving: {kernels: lasy}")],
        "22:22: performance.serving.kernels: 'lasy' is not a choice; did you mean 'lazy'?",
    ),
    "int8 without data": (
        [("  calibration: {npz: calib.npz}\n", "")],
        "10:20: int8 needs calibration data; add data.calibration; random numbers are never used",
    ),
    "no limits": ([("    int8: {cosine: 0.98}\n", "")], "10:20: no accuracy limit for int8"),
    "metric limit without metric": (
        [("  metric: top1\n", ""), ("{cosine: 0.98}", "{metric_ratio: 0.9}")],
        "int8: 'metric_ratio' needs accuracy.metric",
    ),
    "unknown output": ([("  metric: top1", "  metric: top1\n  output: logit")], "no output 'logit'; did you mean 'logits'?"),
    "unknown input in data": ([("npz: calib.npz", "npz: calib.npz, names: {img: x}")], "the model has no input 'img'"),
    "unknown target": ([("[cpu]", "[cpu, rtx4]")], "19:16: unknown target 'rtx4'; did you mean 'rtx40'?"),
    "target twice": ([("[cpu]", "[cpu, cpu]")], "19:16: duplicate 'cpu' in targets"),
    "missing model": ([("tiny.onnx", "tinny.onnx")], "4:24: 'tinny.onnx': no such file"),
    "missing data": ([("calib.npz", "calibration.npz")], "12:22: 'calibration.npz': no such file"),
    "path that leaves": (
        [("npz: calib.npz", "npz: ../../../etc/passwd")],
        "12:22: '../../../etc/passwd' leaves the repository and the data roots",
    ),
    "absolute path": ([("npz: calib.npz", "npz: /etc/passwd")], "'/etc/passwd' leaves the repository"),
    "labels that are not there": ([("labels: label", "labels: lable")], "did you mean 'label'?"),
    "array that is not there": ([("npz: calib.npz", "npz: calib.npz, names: {image: x}")], "holds no array 'x' for input 'image'"),
    "more samples than there are": ([("npz: calib.npz", "npz: calib.npz, samples: 99")], "99 samples are asked for, the file has 24"),
    "other dtype": ([("dtype: float32", "dtype: float16")], "'image' is float32, input 'image' is float16"),
    "other shape": ([("[batch, 1, 4, 4]", "[batch, 3, 4, 4]")], "'image' has shape [24, 1, 4, 4], input 'image' needs [samples, 3, 4, 4]"),
    "unknown hub id": ([("onnx: tiny.onnx", "huggingface: no/such-model")], "neither a folder at"),
    "no such module": ([("onnx: tiny.onnx", "torch: nowhere:factory")], "no module 'nowhere' beside the recipe"),
    "mistyped metric": ([("metric: top1", "metric: top2")], "15:11: accuracy.metric: 'top2' is not a choice; did you mean 'top1'?"),
    "mistyped metric with settings": ([("metric: top1", "metric: {topk: 5}")], "15:12: unknown metric 'topk'; did you mean 'top_k'?"),
    "metric of no name": ([("metric: top1", "metric: {}")], "15:11: accuracy.metric: an empty mapping is not allowed; it should name a metric, e.g. {top_k: 5}"),
    "wrong setting of a metric": ([("metric: top1", "metric: {top_k: 0}")], "15:19: accuracy.metric.top_k: 0 is not allowed; it should be at least 1"),
    "unknown setting of a metric": ([("metric: top1", "metric: {f1: macro, treshold: 1}")], "15:23: unknown key 'treshold'; did you mean 'threshold'?"),
    "unknown average": ([("metric: top1", "metric: {f1: weighted}")], "15:16: accuracy.metric.f1: 'weighted' is not a choice"),
    "metric without labels": (
        [("metric: top1", "metric: auc"), (", labels: label", "")],
        "15:11: the metric 'auc' needs labels, and data.evaluation names none",
    ),
    "limits upside down": (
        [("{cosine: 0.98}", "{metric_between: [0.9, 0.8]}")], "18:28: metric_between: [0.9, 0.8] is upside down",
    ),
    "delta without metric": ([("  metric: top1\n", ""), ("{cosine: 0.98}", "{metric_delta: 0.01}")], "int8: 'metric_delta' needs accuracy.metric"),
    "range upside down": ([("[batch, 1, 4, 4]}", "[batch, 1, 4, 4], range: [1, 0]}")], "6:59: input 'image': range [1, 0] is upside down"),
    "range of a bool": ([("dtype: float32", "range: [0, 1], dtype: bool")], "input 'image': range [0, 1]: a bool has no range"),
    "range too wide": ([("dtype: float32", "range: [0, 256], dtype: uint8")], "input 'image': range [0, 256] does not fit uint8"),
    "metric module missing": ([("metric: top1", "metric: {python: nowhere:f}")], "no module 'nowhere' beside the recipe"),
    "slices without a metric": (
        [("labels: label}", "labels: label, slices: part}"), ("  metric: top1\n", "")],
        "recipes/tiny.yaml:13:46: slices need accuracy.metric, which is computed on each; e.g. metric: top1",
    ),
    "a limit on slices that are not named": (
        [("{cosine: 0.98}", "{worst_slice_ratio: 0.9}")],
        "recipes/tiny.yaml:18:12: worst_slice_ratio: data.evaluation names no slices",
    ),
    "slices that are not in the file": (
        [("labels: label}", "labels: label, slices: lable}")],
        "recipes/tiny.yaml:13:54: test.npz: holds no array 'lable' with slices; did you mean 'label'?",
    ),
    "slices of images": (
        [("labels: label}", "labels: label, slices: image}")],
        "test.npz: 'image' has shape [16, 1, 4, 4] for 16 samples; one name of a slice per sample",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=list(CASES))
def test_one_clear_message(repository: Path, case: str) -> None:
    edits, message = CASES[case]
    found = problems(repository, *edits)
    assert any(message in problem for problem in found), found


def test_the_recipe_itself_is_right(repository: Path) -> None:
    assert problems(repository) == []


@pytest.mark.parametrize(
    "metric",
    ["top1", "{top_k: 2}", "f1", "{f1: binary, threshold: 0.0}", "auc", "spearman", "perplexity", "word_error",
     "{word_error: ctc, blank: 3, space: 4}", "{character_error: ids}", "mean_average_precision", "cosine"],
)  # fmt: skip
def test_a_metric_may_be_named_in_these_ways(repository: Path, metric: str) -> None:
    assert problems(repository, ("metric: top1", f"metric: {metric}")) == []


@pytest.mark.parametrize("path", RENAMED, ids=lambda path: ".".join(path))
def test_an_old_key_is_refused_with_the_new_one_at_its_place(repository: Path, path: tuple[str, ...]) -> None:
    *above, old = path
    new, value = RENAMED[path], {"calibration": "fp32"}.get(path[0], "60")
    text = f"{old}: {value}"
    for key in reversed(above):
        text = f"{key}: {{{text}}}"
    if above == ["performance", "regression"]:
        edit, place = ("  at:", f"  regression: {{latency: 5%, {old}: {value}}}\n  at:"), "21:29"
    else:
        edit, place = ("targets: [cpu]", f"{text}\ntargets: [cpu]"), f"19:{len(above[0]) + 4}"
    sentence = f"unknown key '{old}': it is called '{new}' now"
    assert problems(repository, edit) == [f"recipes/tiny.yaml:{place}: {sentence}"]
    corrected = (edit[0], edit[1].replace(old, new))
    assert problems(repository, corrected) == []


def test_what_is_wrong_next_to_an_old_key_is_reported_in_the_same_go(repository: Path) -> None:
    both = problems(
        repository, ("targets: [cpu]", "calibration: {around: fp16, unquantized: fp16}\ntargets: [gpu]")
    )  # fmt: skip
    assert [problem.split(": ", 1)[1] for problem in both] == [
        "unknown key 'around': it is called 'unquantized' now",
        "unknown target 'gpu'; did you mean 'cpu'?",
    ]


def test_all_problems_come_at_once(repository: Path) -> None:
    found = problems(
        repository, ("precisions:", "precison: []\nprecisions:"), ("[1, 4, 16]", "[9, 4, 16]"), ("calib.npz", "x.npz"), ("[cpu]", "[gpu]")
    )  # fmt: skip
    assert len(found) == 4


def test_a_problem_of_the_defaults_is_told_with_their_place(repository: Path) -> None:
    (repository / "recipes" / "_defaults.yaml").write_text("calibration: {metod: entropy}\n", encoding="utf-8")
    assert problems(repository) == ["recipes/_defaults.yaml:1:15: unknown key 'metod'; did you mean 'method'?"]


def test_defaults_lie_under_the_recipe(repository: Path) -> None:
    text = "calibration: {method: minmax, batch: 3}\nowner: default@example.com\n"
    (repository / "recipes" / "_defaults.yaml").write_text(text, encoding="utf-8")
    recipe = load_recipe(repository / "recipes" / "tiny.yaml").recipe
    assert (recipe.calibration.method, recipe.calibration.batch) == ("minmax", 3)
    assert recipe.owner == "tests@example.com"


def test_a_link_that_leaves_the_repository_is_refused(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "calib.npz"
    outside.write_bytes((repository / "recipes" / "calib.npz").read_bytes())
    (repository / "recipes" / "linked.npz").symlink_to(outside)
    assert "leaves the repository" in problems(repository, ("npz: calib.npz", "npz: linked.npz"))[0]
    path = repository / "recipes" / "tiny.yaml"
    assert load_recipe(path, data_roots=[outside.parent]).name == "tiny"


def write_npz(write: Callable[[Path], None], repository: Path) -> list[str]:
    write(repository / "recipes" / "calib.npz")
    return problems(repository)


def test_pickled_arrays_are_refused_unread(repository: Path) -> None:
    found = write_npz(lambda p: np.savez(p, image=np.array([{"a": 1}], dtype=object)), repository)
    assert "holds pickled Python objects, which could run code" in found[0]


def test_a_file_that_is_no_npz(repository: Path) -> None:
    found = write_npz(lambda p: p.write_bytes(b"PK nonsense") and None, repository)
    assert "is not a .npz file that can be read" in found[0]


def test_labels_of_the_wrong_length(repository: Path) -> None:
    images = np.zeros((5, 1, 4, 4), np.float32)
    np.savez(repository / "recipes" / "test.npz", image=images, label=np.zeros(4, np.int64))
    assert "4 labels in 'label' for 5 samples" in problems(repository)[0]


def test_data_longer_than_every_profile(repository: Path) -> None:
    np.savez(repository / "recipes" / "calib.npz", image=np.zeros((5, 1, 9, 4), np.float32))
    found = problems(
        repository, ("shape: [batch, 1, 4, 4]", "shape: [batch, 1, height, 4]"), ("batch: [1, 4, 16]", "batch: [1, 4, 16], height: [1, 4, 8]"),
        ("one: {batch: 1}", "one: {batch: 1, height: 4}"),
    )  # fmt: skip
    assert any("'image' has height 9, which no profile allows" in p for p in found)


def test_a_model_that_is_no_protobuf(repository: Path) -> None:
    (repository / "recipes" / "tiny.onnx").write_bytes(b"<html>not found</html>")
    assert "'tiny.onnx': not an ONNX model: its protobuf does not parse" in problems(repository)[0]


def test_two_recipes_of_one_name(repository: Path) -> None:
    (repository / "recipes" / "other.yaml").write_text(RECIPE, encoding="utf-8")
    with pytest.raises(RecipeError, match="the name 'tiny' is also that of"):
        load_recipes(find_recipes(repository / "recipes"))
