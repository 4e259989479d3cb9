"""What an ONNX file says of itself, without ONNX: as ONNX reads it, and as `validate` compares it with a recipe."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import tiny_model
from onnx import TensorProto, helper, numpy_helper

from engineworks.errors import ModelError, RecipeError
from engineworks.model.export.outline import Declared, Outline, read_outline
from engineworks.recipe.load import load_recipe, load_recipes

REPOSITORY = Path(__file__).parents[2]


def refused(*recipes: str) -> list[str]:
    try:
        load_recipes([Path("recipes") / f"{name}.yaml" for name in recipes or ("tiny",)])
    except RecipeError as error:
        return [str(problem) for problem in error.problems]
    return []


def changed(change: Callable[[onnx.ModelProto], object]) -> list[str]:
    """What `validate` says of the tiny recipe whose model was changed."""
    model = tiny_model()
    change(model)
    onnx.save(model, "recipes/tiny.onnx")
    return refused()


def dim(value: onnx.ValueInfoProto, axis: int) -> Any:
    return value.type.tensor_type.shape.dim[axis]


def own(model: onnx.ModelProto) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Inputs and outputs by ONNX's own parser: name, element type, dimensions."""
    weights = {t.name for t in model.graph.initializer}
    both = [v for v in model.graph.input if v.name not in weights], model.graph.output
    return tuple(
        [
            (v.name, v.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
            for v in values
        ]
        for values in both
    )  # type: ignore[return-value]


@pytest.mark.parametrize("file", sorted((REPOSITORY / "recipes").rglob("*.onnx")), ids=lambda f: f.name)
def test_the_outline_is_what_onnx_reads(file: Path) -> None:
    found, model = read_outline(file), onnx.load(str(file), load_external_data=False)
    names = {v: k for k, v in {"float32": 1, "int64": 7, "bool": 9, "float16": 10, "int32": 6}.items()}
    for read, wanted in zip((found.inputs, found.outputs), own(model), strict=True):
        assert [one.name for one in read] == [name for name, _, _ in wanted]
        assert [one.dtype for one in read] == [names[kind] for _, kind, _ in wanted]
        assert [known(one.shape or ()) for one in read] == [known(dims) for _, _, dims in wanted]


def known(dims: Iterable[Any]) -> list[Any]:
    """Without what exporters write for a dimension that they do not know."""
    return [dim for dim in dims if dim not in (None, "", "?", 0)]


def test_every_form_of_a_declaration(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    inputs = [
        value("a", TensorProto.FLOAT16, ["n", None, "?", 3]), value("scalar", TensorProto.INT64, []),
        value("w", TensorProto.FLOAT, [2]), value("free", TensorProto.BOOL, None),
        helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None),
    ]  # fmt: skip
    dim(inputs[0], 1).dim_value = -1
    weights = [numpy_helper.from_array(np.zeros(2, np.float32), "w")]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["y"])], "g", inputs, [onnx.ValueInfoProto(name="y")], weights
    )
    onnx.save(helper.make_model(graph, ir_version=3), tmp_path / "m.onnx")
    assert read_outline(tmp_path / "m.onnx") == Outline(
        {},
        (
            Declared("a", "tensor", "float16", ("n", None, None, 3)), Declared("scalar", "tensor", "int64", ()),
            Declared("free", "tensor", "bool", None), Declared("s", "sequence"),
        ),
        (Declared("y", ""),),
    )  # fmt: skip


def test_a_model_that_fits_is_valid_and_so_is_one_whose_dims_have_no_names(repository: Path) -> None:
    def unnamed(model: onnx.ModelProto) -> None:
        for v in (model.graph.input[0], model.graph.output[0]):
            dim(v, 0).Clear()

    assert changed(lambda model: None) == []
    assert changed(unnamed) == []
    assert changed(lambda model: model.graph.output[0].type.tensor_type.ClearField("shape")) == []
    weights_too = [helper.make_tensor_value_info("w", TensorProto.FLOAT, [8, 1, 3, 3])]  # as before IR 4
    assert changed(lambda model: model.graph.input.extend(weights_too)) == []
    stale = changed(lambda model: setattr(dim(model.graph.output[0], 0), "dim_value", 1))
    assert stale == []


def extra(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.BOOL, ["n", 7]))


CASES: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "renamed input": (
        lambda m: setattr(m.graph.input[0], "name", "images"),
        "recipes/tiny.yaml:6:3: the model has no input 'image'; did you mean 'images'?",
    ),
    "another input": (extra, "5:1: the model has an input that the recipe does not declare: mask: bool[n, 7]"),
    "renamed output": (
        lambda m: setattr(m.graph.output[0], "name", "logit"),
        "7:11: the model has no output 'logits'; did you mean 'logit'?",
    ),
    "dtype": (
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.DOUBLE),
        "6:18: input 'image' is float64 in the model, float32 in the recipe",
    ),
    "rank": (
        lambda m: m.graph.input[0].type.tensor_type.shape.dim.pop(),
        "6:34: input 'image' has 3 dimensions in the model (image: float32[batch, 1, 4]), 4 in the recipe",
    ),
    "fixed length": (
        lambda m: setattr(dim(m.graph.input[0], 2), "dim_value", 8),
        "6:45: input 'image', axis 2: fixed to 8 in the model, 4 in the recipe; write 8",
    ),
    "fixed batch": (
        lambda m: setattr(dim(m.graph.input[0], 0), "dim_value", 8),
        "6:35: input 'image', axis 0: fixed to 8 in the model, 'batch' in the recipe; write 8, or export the model with",
    ),
    "rank of an output": (
        lambda m: m.graph.output[0].type.tensor_type.shape.dim.pop(),
        "7:11: output 'logits' has 1 dimensions in the model (logits: float32[batch]), 2 in the recipe ([batch, 3])",
    ),
    "length of an output": (
        lambda m: setattr(dim(m.graph.output[0], 1), "dim_value", 5),
        "7:27: output 'logits', axis 1: 5 in the model, 3 in the recipe; write 5",
    ),
    "no tensor": (
        lambda m: m.graph.output.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)),
        "7:1: output 's' is no tensor but a sequence; export the model with tensors only",
    ),
    "no nodes": (lambda m: m.graph.ClearField("node"), "4:24: 'tiny.onnx': not an ONNX model: it holds no nodes or no"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_does_not_fit_is_one_problem_at_its_place(repository: Path, name: str) -> None:
    change, wanted = CASES[name]
    found = changed(change)
    assert len(found) == (2 if name == "renamed input" else 1), found
    assert wanted in found[0] or wanted in found[-1], found


def test_problems_of_the_model_of_the_fields_and_of_other_recipes_come_in_one_go(repository: Path) -> None:
    text = Path("recipes/tiny.yaml").read_text()
    Path("recipes/other.yaml").write_text(
        text.replace("recipe: tiny", "recipe: other").replace("[1, 4, 16]", "[1, 4, .inf]")
    )
    model = tiny_model()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    model.graph.output[0].name = "scores"
    onnx.save(model, "recipes/tiny.onnx")
    found = refused("other", "tiny")
    for recipe in ("other", "tiny"):
        of_it = [line for line in found if line.startswith(f"recipes/{recipe}.yaml")]
        assert any("is int64 in the model" in line for line in of_it)
        assert any("no output 'logits'" in line for line in of_it)
    assert any("recipes/other.yaml:9:27: shapes.default.batch: inf is not allowed" in line for line in found)


def test_a_wrong_field_of_an_input_is_not_reported_twice(repository: Path) -> None:
    path = Path("recipes/tiny.yaml")
    path.write_text(
        path.read_text().replace("[batch, 1, 4, 4]", "[batch, 1, 4, .nan]").replace("[batch, 3]", "[batch, -3]")
    )
    found = refused()
    assert [line.split(": ")[1] for line in found] == ["inputs.image.shape", "outputs.logits"]


@pytest.mark.parametrize("cut", [0, 1, 10, 200, -1, -300])
def test_a_file_that_is_cut_short_is_one_sentence(repository: Path, cut: int) -> None:
    path = Path("recipes/tiny.onnx")
    path.write_bytes(path.read_bytes()[:cut])
    found = refused()
    assert len(found) == 1
    assert found[0].startswith("recipes/tiny.yaml:4:24: 'tiny.onnx': not an ONNX model: ")


def test_damaged_files_never_raise_anything_else(tmp_path: Path) -> None:
    good, random = tiny_model().SerializeToString(), np.random.default_rng(0)
    path = tmp_path / "m.onnx"
    for _ in range(300):
        data = bytearray(good)
        for at in random.integers(0, len(data), 5):
            data[at] = random.integers(0, 256)
        path.write_bytes(data)
        with suppress(ModelError):
            read_outline(path)


def test_external_data_that_is_missing_or_cut_short(repository: Path) -> None:
    onnx.save_model(
        tiny_model(), "recipes/tiny.onnx", save_as_external_data=True, location="tiny.data", size_threshold=0
    )
    assert refused() == []
    data = Path("recipes/tiny.data")
    data.write_bytes(data.read_bytes()[:-1])
    assert "'tiny.onnx' needs" in refused()[0]
    data.unlink()
    assert "keeps weights in 'tiny.data', which is missing" in refused()[0]


def test_a_large_file_is_not_read_and_onnx_is_not_imported(repository: Path) -> None:
    """A gibibyte of weights in a sparse file: what is read of it would show in the process's memory."""
    graph = tiny_model().graph
    size = 1 << 30
    head = TensorProto(name="big", data_type=TensorProto.INT8, dims=[size]).SerializeToString()
    tensor = head + b"\x4a" + varint(size)  # raw_data = 9
    begin = tiny_model()
    begin.ClearField("graph")
    whole = graph.SerializeToString()
    length = len(whole) + 1 + len(varint(len(tensor) + size)) + len(tensor) + size
    with Path("recipes/tiny.onnx").open("wb") as file:
        file.write(begin.SerializeToString() + b"\x3a" + varint(length))
        file.write(b"\x2a" + varint(len(tensor) + size) + tensor)
        file.seek(size, 1)
        file.write(whole)
    code = (
        "import sys; from pathlib import Path; from engineworks.recipe.load import load_recipe;"
        "load_recipe(Path('recipes/tiny.yaml')); assert 'onnx' not in sys.modules;"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"  # ru_maxrss outlives an exec
    )
    made = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(made.stdout) < (1 << 20) / 2  # KiB


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def test_a_recipe_of_the_repository_still_loads() -> None:
    assert load_recipe(REPOSITORY / "recipes" / "digits.yaml").name == "digits"
