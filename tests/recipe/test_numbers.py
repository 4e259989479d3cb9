"""Numbers that are not finite, or absurd: every numeric field of recipes, defaults and targets refuses them by place."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer.main
from conftest import RECIPE
from pydantic import BaseModel
from ruamel.yaml import YAML

from engineworks.cli import app, run_command
from engineworks.errors import RecipeError
from engineworks.recipe.load import load_recipe
from engineworks.recipe.metric import F1, CharacterError, TopK, WordError
from engineworks.recipe.recipe import Recipe
from engineworks.recipe.targets import Targets

BASE = YAML(typ="safe").load(RECIPE)
FULL: dict[str, Any] = {
    "model": {"source": {"onnx": "tiny.onnx"}, "opset": 18},
    "inputs": {"image": {"dtype": "float32", "shape": ["batch", 1, 4, 4], "range": [-2.0, 2.0]}},
    "data": {
        "calibration": {"npz": "calib.npz", "samples": 8},
        "evaluation": {"npz": "test.npz", "labels": "label", "samples": 8, "slices": "label"},
    },
    "calibration": {"method": "moving_average", "percentile": 99.0, "averaging": 0.01, "batch": 8},
    "accuracy": {
        "metric": {"f1": "binary", "threshold": 0.5},
        "limits": {
            "fp32": {
                "metric": 0.1, "metric_ratio": 0.9, "metric_delta": 0.1, "metric_between": [0.1, 0.2], "cosine": 0.9,
                "synthetic_cosine": 0.9, "sqnr_db": 10.0, "max_abs": 0.1, "mean_abs": 0.1, "worst_slice_ratio": 0.9,
            },
            "int8": {"cosine": 0.9},
        },
    },
    "performance": {
        "at": {"one": {"batch": 1}},
        "budget": {
            "one": {
                "p50_ms": 5, "p90_ms": 5, "p99_ms": 5, "throughput_per_s": 5, "memory_mib": 5, "load_ms": 5,
                "first_run_ms": 5, "engine_mib": 5,
            }
        },
        "sweep": {"batch": [1, 8], "at": "one", "latency_ms": 5},
        "streams": [1, 2],
        "serving": {"load": {"qps": 200, "p99_ms": 15, "seconds": 30}},
        "regression": {"latency": 0.05, "accuracy": 0.05, "max_s": 60},
    },
    "release": {"triton": {"dynamic_batching": {"preferred": [4, 8], "max_delay_us": 5}, "instances": 1, "warmup": 1}},
    "time_limits": dict.fromkeys(
        ("export", "prepare", "fold", "calibrate", "lower", "build", "reference", "lowered_reference", "compare", "measure",
         "compare_champion", "serve", "peer"), 9
    ),
}  # fmt: skip
"""The tiny recipe with every numeric field there is."""

TARGETS = {
    "targets": {
        "cpu": {"backend": "onnxruntime", "time_limit_s": 60, "options": {"intra_op_threads": 1}},
        "rtx": {"backend": "tensorrt_rtx", "compute_capability": [8.9], "options": {"workspace_mib": 64}},
    }
}

NEVER = (
    ".inf",
    "-.INF",
    ".nan",
    "1e400",
    "-1e400",
    "1" + 400 * "0",
    "1" + 5000 * "0",
    "true",
    "'.5'",
    "'inf'",
    "'nan'",
)
"""What no numeric field takes."""

SELDOM = {"-1": -1, "3e9": 3e9, "3000000000": 3_000_000_000, "0": 0, "1e300": 1e300}
"""What a field takes only if the number means something there; then the recipe holds it."""

Path_ = tuple[str | int, ...]


def leaves(value: Any, path: Path_ = (), *, marks: bool = False) -> Iterator[Path_]:
    """Paths of the numbers, or of the marks that stand for them, in the order in which they are written."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key), marks=marks)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, index), marks=marks)
    elif value == "@MARK" if marks else isinstance(value, int | float) and not isinstance(value, bool):
        yield path


def at(value: Any, path: Path_) -> Any:
    for step in path:
        value = value[step]
    return value


def numeric_fields(model: type[BaseModel]) -> set[str]:
    """Names of the fields of all models of the schema that may be numbers, or hold some."""
    found: set[str] = set()
    schema = model.model_json_schema()
    for part in (schema, *schema.get("$defs", {}).values()):
        for name, field in part.get("properties", {}).items():
            if '"type": "number"' in (text := json.dumps(field)) or '"type": "integer"' in text:
                found.add(name)
    return found


def flow(value: Any) -> str:
    """The value as YAML in flow style; texts that begin with '@' are written as they are."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    return value[1:] if isinstance(value, str) and value.startswith("@") else json.dumps(value)


def written(tree: dict[str, Any], paths: Sequence[Path_], text: str) -> tuple[str, dict[Path_, tuple[int, int]]]:
    """The tree as YAML text with `text` at all of the paths, and the lines and columns where that is."""
    tree = copy.deepcopy(tree)
    for path in paths:
        at(tree, path[:-1])[path[-1]] = "@MARK"
    made, places = "", {}
    parts = "".join(f"{key}: {flow(value)}\n" for key, value in tree.items()).split("MARK")
    ordered = [path for path in leaves(tree, marks=True) if path in paths]
    for path, part in zip(ordered, parts, strict=False):
        made += part
        places[path] = (made.count("\n") + 1, len(made) - made.rfind("\n"))
        made += text
    return made + parts[-1], places


def refused_at(file: str) -> tuple[set[tuple[int, int]], list[str]]:
    """Places in this file that loading the recipe refuses, and the messages."""
    try:
        load_recipe(Path("recipes/tiny.yaml"))
    except RecipeError as error:
        places = {(p.place.line, p.place.column) for p in error.problems if p.place.file == f"recipes/{file}"}
        return places, [str(p) for p in error.problems]
    return set(), []


METRICS: list[dict[str, Any]] = [
    {"top_k": 2}, {"word_error": "ctc", "blank": 1, "space": 2}, {"character_error": "ctc", "blank": 1},
]  # fmt: skip


TEXTS = {"text": "texts.csv", "max_length": 8}


WHOLE = BASE | FULL
TREES: list[tuple[dict[str, Any], list[Path_]]] = [
    (WHOLE, list(leaves(WHOLE))),
    (WHOLE | {"data": {"evaluation": TEXTS}}, [("data", "evaluation", "max_length")]),
]
TREES += [
    (WHOLE | {"accuracy": {**FULL["accuracy"], "metric": m}}, [("accuracy", "metric", *inner) for inner in leaves(m)])
    for m in METRICS
]
DECODER: dict[str, Any] = {
    "recipe": "tiny",
    "model": {"source": {"onnx": "tiny.onnx"}, "decoder": {"context": 64, "ties": {"head_size": 64}}},
    "precisions": ["fp32"],
    "targets": ["cpu"],
    "data": {"evaluation": {"text": "texts.csv"}},
    "accuracy": {"metric": "perplexity", "limits": {"fp32": {"greedy_agreement": 0.9, "token_agreement": 0.9}}},
    "performance": {
        "at": {"chat": {"prompt": 8, "new": 8, "streams": 1}},
        "budget": {"chat": {"first_token_ms": 5, "tokens_per_s": 5}},
    },
}
TREES += [(DECODER, list(leaves(DECODER)))]
NAMES = {".".join(map(str, path)) for _, paths in TREES for path in paths}


def test_the_recipe_above_has_every_numeric_field_of_the_schema() -> None:
    tried = {step for _, paths in TREES for path in paths for step in path}
    assert numeric_fields(Recipe) - {"metric"} <= tried
    assert {f for m in (TopK, F1, WordError, CharacterError) for f in numeric_fields(m)} <= tried
    assert numeric_fields(Targets) <= {step for path in leaves(TARGETS) for step in path}


@pytest.mark.parametrize("value", NEVER)
def test_every_field_refuses_what_is_no_usable_number_at_its_place(repository: Path, value: str) -> None:
    """All fields at once: so all of them are reported in one go."""
    for tree, paths in TREES:
        if value in ("'inf'", "'nan'"):  # these may name a dimension
            paths = [path for path in paths if not {"shape", "ties"} & set(path) and path[0] != "outputs"]
        text, wanted = written(tree, paths, value)
        (repository / "recipes" / "tiny.yaml").write_text(text)
        places, said = refused_at("tiny.yaml")
        assert wanted.keys() == set(paths)
        assert not [path for path, place in wanted.items() if place not in places]
        assert all(len(line) < 400 for line in said)


@pytest.mark.parametrize("value", list(SELDOM))
def test_a_field_takes_what_means_something_there_and_refuses_the_rest(repository: Path, value: str) -> None:
    assert LEGAL[value] <= NAMES
    for tree, paths in TREES:
        text, wanted = written(tree, paths, value)
        (repository / "recipes" / "tiny.yaml").write_text(text)
        places, said = refused_at("tiny.yaml")
        for path, place in wanted.items():
            if ".".join(map(str, path)) not in LEGAL[value]:
                assert place in places or place[0] in {line for line, _ in places if path[-2] == "range"}, (path, said)
                continue
            assert place not in places, (path, said)
            one = copy.deepcopy(tree)
            at(one, path[:-1])[path[-1]] = SELDOM[value]
            tensors = {"inputs": WHOLE["inputs"], "outputs": WHOLE["outputs"]}  # of decoders, the model names them
            assert at(Recipe.model_validate(tensors | one).model_dump(mode="json"), path) == SELDOM[value]


LIMITS = "accuracy.limits.fp32."
FREE = {*(f"{LIMITS}{f}" for f in ("metric", "sqnr_db")), "accuracy.metric.threshold"}
"""Fields in which any finite number means something."""
COUNTED = {n for n in NAMES if n.startswith(("performance.budget", "performance.sweep.latency"))}
POSITIVE = COUNTED | {f"{LIMITS}{field}" for field in ("metric_ratio", "metric_delta", "max_abs", "mean_abs")}
POSITIVE |= {"performance.serving.load.qps", "performance.serving.load.p99_ms"}
MAY_BE_ZERO = {
    "release.triton.dynamic_batching.max_delay_us", "release.triton.warmup", "accuracy.metric.blank",
    "accuracy.metric.space", *(f"shapes.default.batch.{i}" for i in range(3)), "performance.at.one.batch",
    *(f"performance.at.chat.{name}" for name in ("prompt", "new", "streams")),
}  # fmt: skip
BETWEEN = {f"{LIMITS}metric_between.0", f"{LIMITS}metric_between.1"}
RANGE = {"inputs.image.range.0", "inputs.image.range.1"}
LEGAL = {
    "-1": {*FREE, *BETWEEN, *RANGE},
    "0": {*FREE, *MAY_BE_ZERO, *BETWEEN, *RANGE},
    "3e9": {*FREE, *POSITIVE, *BETWEEN, *RANGE},
    "3000000000": {*FREE, *POSITIVE, *BETWEEN, *RANGE},
    "1e300": {*FREE, *POSITIVE, *BETWEEN},
}


@pytest.mark.parametrize("value", [*NEVER, "-1", "3e9", "3000000000"])
def test_targets_and_defaults_refuse_them_at_their_place_in_those_files(repository: Path, value: str) -> None:
    text, wanted = written(TARGETS, list(leaves(TARGETS)), value)
    (repository / "recipes" / "_targets.yaml").write_text(text)
    lines = {line for line, _ in refused_at("_targets.yaml")[0]}
    assert {line for line, _ in wanted.values()} <= lines
    (repository / "recipes" / "_targets.yaml").unlink()
    path = ("performance", "sweep", "batch", 0)
    text, wanted = written({"performance": {"sweep": {"batch": [1]}}}, [path], value)
    (repository / "recipes" / "_defaults.yaml").write_text(text)
    assert wanted[path] in refused_at("_defaults.yaml")[0]


@pytest.mark.parametrize("day", [".inf", ".nan", "1e400", "1" + 400 * "0", "-1", "2027"])
def test_a_waiver_has_a_day(repository: Path, day: str) -> None:
    waiver = {"check": "cosine", "owner": "a", "reason": "b", "expires": "2027-01-31"}
    path = ("waivers", 0, "expires")
    text, wanted = written(BASE | {"waivers": [waiver]}, [path], day)
    (repository / "recipes" / "tiny.yaml").write_text(text)
    assert wanted[path] in refused_at("tiny.yaml")[0]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (("[1, 4, 16]", "[1, 4, 2000000000]", "1, 4, 4]", "1, 400, 400]"), "would have at least 1,164 TiB"),
        (("[batch, 3]", "[batch, 2000000000, 2000000000]"), "output 'logits' would have at least"),
        (("[batch, 3]", f"[batch{', 2000000000' * 60}]"), "output 'logits' would have at least 1,000,000 TiB"),
        (("dtype: float32", "dtype: float16, range: [0, 70000]"), "does not fit float16; values from -65504 to 65504"),
        (("4, 4]}", "4, 4], range: [0, 1e39]}"), "does not fit float32"),
        (("dtype: float32", "dtype: float64, range: [-1e308, 1e308]"), "does not fit float64"),
    ],
)
def test_tensors_that_no_host_could_hold_and_values_that_no_type_has(
    repository: Path, edit: tuple[str, ...], said: str
) -> None:
    file = repository / "recipes" / "tiny.yaml"
    text = file.read_text()
    for old, new in zip(edit[::2], edit[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    assert any(said in line for line in refused_at("tiny.yaml")[1]), refused_at("tiny.yaml")[1]


def numeric_options() -> Iterator[tuple[str, str]]:
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        for option in command.params:
            if option.type_descriptor.annotation in (int, float):
                yield name, option.opts[0]


@pytest.mark.parametrize(("command", "option"), list(numeric_options()))
@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e400", "1" + 400 * "0", "-1", "3e9", "9" * 19])
def test_options_refuse_them(
    repository: Path, capsys: pytest.CaptureFixture[str], command: str, option: str, value: str
) -> None:
    named = {name: ["recipes/tiny.yaml"] for name in ("sensitivity", "serve")}.get(command, [])
    assert run_command([command, *named, option, value]) == 2
    assert option in capsys.readouterr().err


def test_numeric_options_are_found() -> None:
    assert ("gc", "--keep-hours") in list(numeric_options())
