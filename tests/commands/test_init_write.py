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

from engineworks.builds.step import run_step
from engineworks.commands.init.draft import InitOptions
from engineworks.commands.init.render import GUESS
from engineworks.commands.init.write import Written, write_recipe
from engineworks.errors import InputError
from engineworks.host.child import default_pool
from engineworks.host.file_digests import FileDigests
from engineworks.plan.plan import plan_recipe
from engineworks.settings import read_settings
from engineworks.store.shared import open_store

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


def written(model: Path, **options: Any) -> Written:
    return write_recipe(
        InitOptions(model=str(model), **options), Path("recipes") / f"{model.stem}.yaml", read_settings()
    )


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
    compare = plan.engines[0].steps["compare"]
    needed = plan.closure([compare])
    for key, step in plan.steps.items():
        if key in needed:
            run_step(step, store, default_pool(), echo=lambda line: None)
    built = store.get(compare)
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
    outside = tmp_path_factory.mktemp("needs another GPU") / "far.onnx"
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
    options = InitOptions(model=str(made), evaluation=str(texts), calibration=str(texts))
    written = write_recipe(options, repository / "recipes" / "bert.yaml", read_settings())
    said = (repository / "recipes" / "bert.yaml").read_text()
    assert "  evaluation: {text: texts.csv, columns: [sentence], labels: label}" in said
    assert "  calibration: {text: texts.csv, columns: [sentence]}" in said
    assert written.loaded.recipe.accuracy.metric == "top1"
    bare = write_recipe(InitOptions(model=str(made)), repository / "recipes" / "bare.yaml", read_settings())
    assert "# texts: evaluation: {text: FILE.jsonl, labels: label}" in bare.recipe.read_text()


def cache_model(path: Path, *, symbols: bool, layers: int = 14) -> Path:
    """ids[b, s] and a key and a value of each layer [b, 2, past, 8], every one with symbols of its own or with none."""
    node = helper.make_node
    inputs: dict[str, tuple[int, Shape]] = {"ids": (INT, ["s0", "s1"] if symbols else [None, None])}
    nodes = [
        node("Cast", ["ids"], ["f"], to=FLOAT), node("Unsqueeze", ["f", "axes"], ["f4"]),
        node("Mul", ["f4", "heads"], ["new"]),
    ]  # fmt: skip
    names = [f"past_key_values.{layer}.{what}" for layer in range(layers) for what in ("key", "value")]
    for at, name in enumerate(names):
        inputs[name] = (FLOAT, [f"s{2 * at + 2}", 2, f"s{2 * at + 3}", 8] if symbols else [None, 2, None, 8])
        nodes.append(node("Concat", [name, "new"], [name.replace("past_key_values", "present")], axis=2))
    presents = [n.output[0] for n in nodes[3:]]
    nodes.append(node("Sum", presents, ["y"]))
    save(path, nodes, inputs, {"axes": np.array([1, 3]), "heads": floats(1, 2, 1, 8)})
    model = onnx.load(path)
    model.graph.output.extend(helper.make_tensor_value_info(name, FLOAT, [None] * 4) for name in presents)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("symbols", [True, False])
def test_the_caches_of_all_layers_share_their_dimensions(repository: Path, symbols: bool) -> None:
    recipe = written(cache_model(repository / "recipes/kv.onnx", symbols=symbols)).loaded.recipe
    assert list(recipe.shapes["default"]) == ["batch", "sequence", "past"]
    assert {one.shape for name, one in recipe.inputs.items() if name != "ids"} == {("batch", 2, "past", 8)}
    own = {dim for shape in recipe.outputs.values() for dim in shape if isinstance(dim, str)}
    assert own == {"batch", "sequence_and_past"}


def test_caches_that_differ_in_length_are_not_tied(repository: Path) -> None:
    """One is always a token longer than the other: equal lengths never run."""
    path = repository / "recipes/odd.onnx"
    nodes = [
        helper.make_node("Concat", ["past.0.key", "pad"], ["longer"], axis=0),
        helper.make_node("Concat", ["longer", "past.0.value"], ["y"], axis=1),
    ]
    inputs: dict[str, tuple[int, Shape]] = {"past.0.key": (FLOAT, ["s0", 4, 4]), "past.0.value": (FLOAT, ["s2", 4, 4])}
    save(path, nodes, inputs, {"pad": floats(1, 4, 4)})
    shapes = [one.shape[0] for one in written(path).loaded.recipe.inputs.values()]
    assert len(set(shapes)) == 2


def test_lengths_that_follow_from_values_are_not_frozen(repository: Path) -> None:
    path = repository / "recipes/found.onnx"
    node = helper.make_node
    save(path, [node("NonZero", ["x"], ["at"]), node("Cast", ["at"], ["y"], to=FLOAT)], {"x": (FLOAT, ["n", 6])}, {})
    rank, length = written(path).loaded.recipe.outputs["y"]
    assert rank == 2
    assert isinstance(length, str)
    path = repository / "recipes/fixed_found.onnx"
    save(path, [node("NonZero", ["x"], ["at"]), node("Cast", ["at"], ["y"], to=FLOAT)], {"x": (FLOAT, [4, 6])}, {})
    assert isinstance(written(path).loaded.recipe.outputs["y"][1], str)


def test_an_output_length_that_depends_on_an_input_that_did_not_vary_has_a_name(repository: Path) -> None:
    path = repository / "recipes/strided.onnx"
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], strides=[4, 4])]
    save(path, nodes, {"x": (FLOAT, ["n", 3, "h", "w_"])}, {"w": floats(2, 3, 4, 4)})
    shape = (2, 3, 64, 64)
    recipe = written(path, shapes={"x": (shape, shape, shape)}).loaded.recipe
    assert recipe.outputs["y"] == ("n", 2, "y_2", "y_3")


@pytest.mark.parametrize(
    ("shapes", "kept"),
    [
        (((1, 3, 32, 32), (1, 3, 64, 64), (4, 3, 960, 960)), {"n": (1, 1, 4), "h": (32, 64, 960), "w": (32, 64, 960)}),
        (((4, 3, 960, 960),) * 3, {"n": (4, 4, 4), "h": (960, 960, 960), "w": (960, 960, 960)}),
    ],
)
def test_asked_shapes_that_are_too_large_to_be_tried_stay(repository: Path, shapes: Any, kept: dict[str, Any]) -> None:
    path = repository / "recipes/large.onnx"
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], strides=[4, 4])]
    save(path, nodes, {"x": (FLOAT, ["n", 3, "h", "w_"])}, {"w": floats(2, 3, 4, 4)})
    recipe = written(path, shapes={"x": shapes}).loaded.recipe
    assert recipe.shapes["default"] == kept
    assert recipe.outputs["y"] == ("n", 2, "y_2", "y_3")


@pytest.mark.parametrize(("operator", "bad"), [("Sqrt", True), ("Exp", False)])
def test_a_model_whose_own_output_is_nan_is_noticed(repository: Path, operator: str, bad: bool) -> None:
    path = repository / "recipes/root.onnx"
    save(path, [helper.make_node(operator, ["x"], ["y"])], {"x": (FLOAT, ["n", 3])}, {})
    notes = written(path).notes
    assert any("output 'y' of the model itself is NaN or infinite" in note for note in notes) == bad
    assert len(notes) == 1 + bad


LABELS: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({}, "holds no array 'label' with the labels"),
    "count": (
        {"label": np.zeros(5, np.int64)},
        r"the labels 'label' are int64\[5\]; labels are one whole number for each",
    ),
    "type": ({"label": np.zeros(24, np.float32)}, r"the labels 'label' are float32\[24\]"),
    "rank": ({"label": np.zeros((24, 3), np.int64)}, r"the labels 'label' are int64\[24, 3\]"),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_do_not_fit_are_refused_and_nothing_is_written(repository: Path, name: str) -> None:
    onnx.save(tiny_model(), "recipes/new.onnx")
    arrays, said = LABELS[name]
    np.savez("recipes/own.npz", image=np.zeros((24, 1, 4, 4), np.float32), **arrays)
    with pytest.raises(InputError, match=said):
        written(Path("recipes/new.onnx"), evaluation="recipes/own.npz", labels="label")
    assert not Path("recipes/new.yaml").exists()


def test_labels_without_data_or_without_classes_are_refused(repository: Path) -> None:
    onnx.save(tiny_model(), "recipes/new.onnx")
    with pytest.raises(InputError, match="there is no data with labels; name it with --evaluation"):
        written(Path("recipes/new.onnx"), labels="label")
    tokens(repository / "recipes/tokens.onnx")
    ids = np.zeros((8, 16), np.int64)
    np.savez("recipes/ids.npz", ids=ids, mask=ids + 1, label=np.zeros(8, np.int64))
    with pytest.raises(InputError, match=r"output 'y' is \[batch, sequence, 7\], and classes need"):
        written(Path("recipes/tokens.onnx"), evaluation="recipes/ids.npz", labels="label")


def test_calibration_data_is_never_made_up(repository: Path) -> None:
    onnx.save(tiny_model(), "recipes/new.onnx")
    with pytest.raises(InputError, match="int8: calibration data is needed, real samples; name it with --calibration"):
        written(Path("recipes/new.onnx"), precisions=("fp32", "int8"))
    made = written(Path("recipes/new.onnx"), precisions=("fp32", "int8"), kept=("translated from a command line",))
    assert made.loaded.recipe.precisions == ("fp32",)
    assert any(note.startswith("int8: left out: calibration data is needed") for note in made.notes)
    assert "#   int8: left out, for lack of calibration data" in made.recipe.read_text()
    assert made.loaded.recipe.data.calibration is None
