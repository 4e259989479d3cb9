"""The recipes that `init` writes: valid, their guesses marked, and every length in them ran."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import tiny_model
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engineworks.child import default_pool
from engineworks.errors import InputError
from engineworks.execution.step import run_step
from engineworks.fingerprint import FileDigests
from engineworks.init.draft import Wishes
from engineworks.init.render import GUESS
from engineworks.init.write import Written, write_recipe
from engineworks.plan import plan_recipe
from engineworks.settings import read_settings
from engineworks.store import open_store

Shape = list[int | str | None]
FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def save(
    path: Path, nodes: list[onnx.NodeProto], inputs: dict[str, tuple[int, Shape]], weights: dict[str, Any]
) -> Path:
    values = [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()]
    output = helper.make_tensor_value_info("y", FLOAT, None)
    constants = [numpy_helper.from_array(np.asarray(v), n) for n, v in weights.items()]
    graph = helper.make_graph(nodes, "g", values, [output], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def floats(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 0.3, shape).astype(np.float32)


def tokens(path: Path, positions: int = 32) -> Path:
    """ids[?, ?] and mask[?, ?] → y: looks up a table of 50 words and one of so many positions."""
    node = helper.make_node
    nodes = [
        node("Gather", ["words", "ids"], ["e"]), node("Shape", ["ids"], ["s"]), node("Gather", ["s", "one"], ["n"]),
        node("Range", ["zero", "n", "one"], ["p"]), node("Gather", ["places", "p"], ["pe"]),
        node("Add", ["e", "pe"], ["a"]), node("Cast", ["mask"], ["m"], to=FLOAT),
        node("Unsqueeze", ["m", "last"], ["mu"]), node("Mul", ["a", "mu"], ["b"]), node("MatMul", ["b", "w"], ["y"]),
    ]  # fmt: skip
    numbers = {"one": np.int64(1), "zero": np.int64(0), "last": np.array([-1])}
    weights = {"words": floats(50, 16), "places": floats(positions, 16), "w": floats(16, 7), **numbers}
    return save(path, nodes, {"ids": (INT, ["?", "?"]), "mask": (INT, ["?", "?"])}, weights)


def written(model: Path, **wishes: Any) -> Written:
    return write_recipe(Wishes(model=str(model), **wishes), Path("recipes") / f"{model.stem}.yaml", read_settings())


def test_a_model_without_data_gets_a_valid_recipe_and_stand_ins_that_say_so(repository: Path) -> None:
    onnx.save(tiny_model(), "recipes/new.onnx")
    made = written(Path("recipes/new.onnx"))
    text = made.recipe.read_text(encoding="utf-8")
    assert made.loaded.recipe.shapes == {"default": {"batch": (1, 4, 32)}}
    assert GUESS in text
    assert "STAND-IN" in text
    assert any("stand in" in note for note in made.notes)
    assert made.loaded.recipe.outputs == {"logits": ("batch", 3)}


def test_the_same_model_gets_the_same_stand_ins(repository: Path) -> None:
    onnx.save(tiny_model(), "recipes/new.onnx")
    file = written(Path("recipes/new.onnx")).files[-1]
    first = np.load(file)["image"]
    Path("recipes/new.yaml").unlink()
    assert np.array_equal(first, np.load(written(Path("recipes/new.onnx")).files[-1])["image"])


def test_the_longest_length_is_one_that_ran(repository: Path) -> None:
    recipe = written(tokens(repository / "recipes/tokens.onnx")).loaded.recipe
    assert recipe.shapes["default"]["sequence"][2] == 32
    assert recipe.shapes["default"]["batch"] == (1, 4, 32)
    assert recipe.inputs["ids"].range == (0, 49)
    assert recipe.inputs["mask"].range == (1, 1)
    assert recipe.outputs["y"] == ("batch", "sequence", 7)


def test_the_written_recipe_builds(repository: Path) -> None:
    loaded = written(tokens(repository / "recipes/tokens.onnx")).loaded
    store = open_store(read_settings())
    plan = plan_recipe(loaded, store, FileDigests(None), only="*/fp32/*")
    for step in plan.steps.values():
        if step.kind in ("export", "fold", "lower", "build", "reference", "compare"):
            run_step(step, store, default_pool(), say=lambda line: None)
    built = store.get(plan.engines[0].steps["compare"])
    assert built is not None
    assert built.read_json("accuracy.json")["outputs"]["y"]["cosine"] > 0.999


@pytest.mark.parametrize("shape", [[2, 3, 8, 8], [16], [16, 16]])
def test_fixed_shapes_need_no_profile(repository: Path, shape: list[int]) -> None:
    path = repository / "recipes/fixed.onnx"
    save(path, [helper.make_node("Mul", ["x", "w"], ["y"])], {"x": (FLOAT, [*shape])}, {"w": np.float32(2)})
    recipe = written(path).loaded.recipe
    assert recipe.shapes == {}
    assert recipe.inputs["x"].shape == tuple(shape)


def test_lengths_that_never_run_are_told(repository: Path) -> None:
    path = repository / "recipes/odd.onnx"
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    save(path, nodes, {"x": (FLOAT, ["n", 7])}, {"shape": np.array([11, 13, 7])})
    assert any("ran at none of the guessed lengths" in note for note in written(path).notes)


def test_asked_shapes_count_and_what_did_not_run_is_told(repository: Path) -> None:
    shapes = {"ids": ((1, 1), (2, 16), (4, 64)), "mask": ((1, 1), (2, 16), (4, 64))}
    made = written(tokens(repository / "recipes/tokens.onnx"), shapes=shapes)
    assert made.loaded.recipe.shapes["default"]["batch"] == (1, 2, 4)
    assert made.loaded.recipe.shapes["default"]["sequence"][2] == 16
    assert "asked for [1, 16, 64], of which this ran" in made.recipe.read_text(encoding="utf-8")


def test_own_data_is_matched_and_its_labels_become_a_metric(repository: Path) -> None:
    onnx.save(tiny_model(), "recipes/new.onnx")
    test = np.load("recipes/test.npz")
    np.savez("recipes/own.npz", pictures=test["image"], answer=test["label"])
    made = written(Path("recipes/new.onnx"), evaluation="recipes/own.npz", calibration="recipes/calib.npz")
    recipe = made.loaded.recipe
    assert recipe.data.evaluation.names == {"image": "pictures"}
    assert (recipe.data.evaluation.labels, recipe.accuracy.metric) == ("answer", "top1")
    assert recipe.precisions == ("fp32", "fp16", "int8")
    assert "STAND-IN" not in made.recipe.read_text(encoding="utf-8")


def test_with_data_no_range_is_guessed(repository: Path) -> None:
    onnx.save(tiny_model(), "recipes/new.onnx")
    recipe = written(Path("recipes/new.onnx"), evaluation="recipes/test.npz").loaded.recipe
    assert recipe.inputs["image"].range is None


@pytest.mark.parametrize("wish", [{"precisions": ("fp23",)}, {"evaluation": "/elsewhere/x.npz"}])
def test_a_wish_that_can_not_be_is_refused_before_anything_is_written(repository: Path, wish: dict[str, Any]) -> None:
    onnx.save(tiny_model(), "recipes/new.onnx")
    before = sorted(repository.rglob("*"))
    with pytest.raises(InputError):
        written(Path("recipes/new.onnx"), **wish)
    assert sorted(repository.rglob("*")) == before


def test_a_model_from_elsewhere_is_copied_beside_the_recipe(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("elsewhere") / "far.onnx"
    onnx.save(tiny_model(), outside)
    assert written(outside).loaded.recipe.model.source.onnx == "models/far.onnx"
    assert Path("recipes/models/far.onnx").is_file()


def test_a_recipe_that_is_there_is_not_replaced(repository: Path) -> None:
    onnx.save(tiny_model(), "recipes/tiny.onnx")
    with pytest.raises(InputError, match="is there already"):
        written(Path("recipes/tiny.onnx"))


def test_a_hugging_face_folder_is_read_by_its_config(repository: Path) -> None:
    folder = repository / "recipes" / "bert"
    folder.mkdir()
    config = {"architectures": ["BertForSequenceClassification"], "model_type": "bert", "vocab_size": 99,
              "type_vocab_size": 2, "max_position_embeddings": 128, "id2label": {"0": "a", "1": "b", "2": "c"}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"")
    recipe = written(folder).loaded.recipe
    assert recipe.model.source.task == "text-classification"
    assert recipe.shapes["default"]["sequence"] == (1, 64, 128)
    assert recipe.outputs == {"logits": ("batch", 3)}
    assert recipe.inputs["token_type_ids"].range == (0, 1)


def test_a_huggingface_folder_with_texts_gets_them_as_data(repository: Path) -> None:
    pytest.importorskip("tokenizers")
    from text_model import write_tokenizer

    made = repository / "recipes" / "bert"
    write_tokenizer(made)
    config = {"architectures": ["BertForSequenceClassification"], "vocab_size": 30, "max_position_embeddings": 64}
    (made / "config.json").write_text(json.dumps(config))
    (made / "model.safetensors").write_bytes(b"")
    texts = repository / "recipes" / "texts.csv"
    texts.write_text("sentence,label\ngood film,1\nbad film,0\n")
    wishes = Wishes(model=str(made), evaluation=str(texts), calibration=str(texts))
    written = write_recipe(wishes, repository / "recipes" / "bert.yaml", read_settings())
    said = (repository / "recipes" / "bert.yaml").read_text()
    assert "  evaluation: {text: texts.csv, columns: [sentence], labels: label}" in said
    assert "  calibration: {text: texts.csv, columns: [sentence]}" in said
    assert written.loaded.recipe.accuracy.metric == "top1"
    bare = write_recipe(Wishes(model=str(made)), repository / "recipes" / "bare.yaml", read_settings())
    assert "# texts: evaluation: {text: FILE.jsonl, labels: label}" in bare.recipe.read_text()
