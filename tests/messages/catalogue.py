"""What goes wrong, and how: each case is a title, what is done to a repository with one small recipe, and a command."""

from __future__ import annotations

import os
import runpy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from conftest import RECIPE, TARGETS
from onnx import TensorProto, helper

from engineworks.engines.signing import write_key_pair

TESTS = Path(__file__).parents[1]
RECIPE_FILE = Path("recipes/tiny.yaml")
VALIDATE = ("validate", "recipes/tiny.yaml")
Edit = tuple[str, str]


@dataclass(frozen=True)
class Case:
    """One command that goes wrong. prepare: run in the repository before it. environment: set while it runs."""

    title: str
    command: tuple[str, ...]
    prepare: Callable[[], object] = lambda: None
    environment: Mapping[str, str] = field(default_factory=dict)


def edited(*edits: Edit) -> Callable[[], object]:
    def write() -> None:
        text = RECIPE
        for old, new in edits:
            assert old in text, old
            text = text.replace(old, new, 1)
        RECIPE_FILE.write_text(text, encoding="utf-8")

    return write


def written(path: str, text: str | bytes) -> Callable[[], object]:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda: (Path(path).parent.mkdir(parents=True, exist_ok=True), Path(path).write_bytes(data))


def linked(path: str, target: str) -> Callable[[], object]:
    return lambda: Path(path).symlink_to(target)


def decoder(decoders: Mapping[str, Any], edit: Edit) -> Callable[[], object]:
    """Lay out what the recipes of decoders name beside the recipe, and write that with one edit."""

    def write() -> None:
        decoders["lay_out"](RECIPE_FILE.parent)
        RECIPE_FILE.write_text(decoders["RECIPE"].replace(*edit, 1), encoding="utf-8")

    return write


def functions(*calls: tuple[str, str]) -> Callable[[], object]:
    """The small model with functions that each call another one twice, and a node of the first."""

    def write() -> None:
        model, opsets = onnx.load("recipes/tiny.onnx"), [helper.make_opsetid("own", 1)]
        for name, called in calls:
            nodes = [helper.make_node(called, [a], [b], domain="own") for a, b in (("x", "t"), ("t", "y"))]
            model.functions.append(helper.make_function("own", name, ["x"], ["y"], nodes, opsets))
        model.graph.node.append(helper.make_node(calls[0][0], ["image"], ["unused"], domain="own"))
        onnx.save(model, "recipes/tiny.onnx")

    return write


def npz(path: str, **arrays: np.ndarray) -> Callable[[], object]:  # type: ignore[type-arg]
    return lambda: np.savez(path, **arrays)  # type: ignore[arg-type]


def in_turn(*actions: Callable[[], object]) -> Callable[[], object]:
    return lambda: [action() for action in actions]


def recipe_cases() -> Iterator[Case]:
    """Those of the tests of recipes, and the release block's."""
    for title, (edits, _) in runpy.run_path(str(TESTS / "recipe/test_load.py"))["CASES"].items():
        yield Case(title, VALIDATE, edited(*edits))
    decoders = runpy.run_path(str(TESTS / "recipe/test_decoder_recipe.py"))
    for title, (edit, _) in decoders["CASES"].items():
        yield Case(title, VALIDATE, decoder(decoders, edit))
    for title, (line, _) in runpy.run_path(str(TESTS / "release/test_release_block.py"))["CASES"].items():
        yield Case(title, VALIDATE, in_turn(edited(), lambda line=line: RECIPE_FILE.open("a").write(line + "\n")))


ZEROS = np.zeros((24, 1, 4, 4), np.float32)

FILE_CASES = (
    Case("no such recipe", ("validate", "recipes/none.yaml")),
    Case("a folder for a recipe", ("validate", "recipes")),
    Case("a named pipe for a recipe", ("validate", "recipes/pipe.yaml"), lambda: os.mkfifo("recipes/pipe.yaml")),
    Case("a named pipe for the defaults", VALIDATE, lambda: os.mkfifo("recipes/_defaults.yaml")),
    Case("a device for a recipe", ("validate", "recipes/link.yaml"), linked("recipes/link.yaml", "/dev/zero")),
    Case("a link out of the repository", ("validate", "recipes/link.yaml"), linked("recipes/link.yaml", "/etc/passwd")),
    Case("a loop of links", ("validate", "recipes/link.yaml"), linked("recipes/link.yaml", "link.yaml")),
    Case(
        "a named pipe for a model", VALIDATE,
        in_turn(edited(("tiny.onnx", "pipe.onnx")), lambda: os.mkfifo("recipes/pipe.onnx")),
    ),
    Case("an empty recipe", VALIDATE, written("recipes/tiny.yaml", "")),
    Case("a recipe that is a list", VALIDATE, written("recipes/tiny.yaml", "- recipe: tiny\n")),
    Case("YAML that does not parse", VALIDATE, written("recipes/tiny.yaml", "recipe: [tiny\nmodel: {")),
    Case("a tab", VALIDATE, written("recipes/tiny.yaml", "model:\n\tsource: {}\n")),
    Case("a merge conflict", VALIDATE, written("recipes/tiny.yaml", "<<<<<<< HEAD\nrecipe: a\n=======\nrecipe: b\n")),
    Case("text that is not UTF-8", VALIDATE, written("recipes/tiny.yaml", b"recipe: tin\xff\n")),
    Case("an escape beyond Unicode", VALIDATE, edited(("owner: tests@example.com", 'owner: "a \\U00110000"'))),
    Case("a lone surrogate", VALIDATE, edited(("owner: tests@example.com", 'owner: "a \\uD800"'))),
    Case("a key twice", VALIDATE, edited(("owner: tests@example.com", "owner: a\nowner: b"))),
    Case("a tag", VALIDATE, edited(("owner: tests@example.com", "owner: !!python/name:os.system a"))),
    Case("a merge key", VALIDATE, edited(("inputs:\n", "inputs:\n  <<: {a: 1}\n"))),
    Case("text for a mapping", VALIDATE, edited(("model: {source: {onnx: tiny.onnx}}", "model: tiny.onnx"))),
    Case("a list for a mapping", VALIDATE, edited(("shapes:\n  default: {batch: [1, 4, 16]}", "shapes: [1, 4, 16]"))),
    Case("a mapping for text", VALIDATE, edited(("owner: tests@example.com", "owner: {name: me}"))),
    Case("two numbers for three", VALIDATE, edited(("[1, 4, 16]", "[1, 4]"))),
    Case("a name with capitals", VALIDATE, edited(("recipe: tiny", "recipe: Tiny Model"))),
    Case("a limit above one", VALIDATE, edited(("{cosine: 0.98}", "{cosine: 98}"))),
    Case("a limit that is text", VALIDATE, edited(("{cosine: 0.98}", "{cosine: high}"))),
    Case("an opset out of range", VALIDATE, edited(("{source: {onnx: tiny.onnx}}", "{source: {onnx: tiny.onnx}, opset: 9}"))),
    Case("a dtype of another library", VALIDATE, edited(("dtype: float32", "dtype: float"))),
    Case("everything at once", VALIDATE, edited(
        ("precisions:", "precison: []\nprecisions:"), ("[1, 4, 16]", "[9, 4, 16]"), ("calib.npz", "x.npz"),
        ("[cpu]", "[gpu]"), ("dtype: float32", "dtype: fp32"), ("metric: top1", "metric: accuracy"),
    )),
    Case("defaults with a mistake", VALIDATE, in_turn(edited(), written("recipes/_defaults.yaml", "calibration: {metod: mse}\n"))),
    Case("targets with an unknown backend", VALIDATE, in_turn(edited(), written("recipes/_targets.yaml", "targets: {cpu: {backend: openvino}}\n"))),
    Case("targets with an unknown option", VALIDATE, in_turn(edited(), written("recipes/_targets.yaml", "targets: {cpu: {backend: onnxruntime, options: {thread: 2}}}\n"))),
    Case("an option of the wrong type", VALIDATE, in_turn(edited(), written("recipes/_targets.yaml", "targets: {cpu: {backend: onnxruntime, options: {threads: two}}}\n"))),
    Case("a compute capability that is none", VALIDATE, in_turn(edited(), written("recipes/_targets.yaml", "targets: {cpu: {backend: tensorrt_rtx, compute_capability: [sm_89]}}\n"))),
    Case("two recipes of one name", ("validate",), in_turn(edited(), written("recipes/other.yaml", RECIPE))),
    Case("a model that is a web page", VALIDATE, in_turn(edited(), written("recipes/tiny.onnx", "<html>404</html>"))),
    Case("an empty model", VALIDATE, in_turn(edited(), written("recipes/tiny.onnx", ""))),
    Case("an output of another shape", VALIDATE, edited(("logits: [batch, 3]", "logits: [batch, 4]"))),
    Case("an output of another name", VALIDATE, edited(("{logits: [", "{scores: ["))),
    Case("an input of another name", VALIDATE, edited(
        ("  image:", "  picture:"), ("npz: calib.npz", "npz: calib.npz, names: {picture: image}"),
        ("npz: test.npz", "npz: test.npz, names: {picture: image}"))),
    Case("data that is no .npz", VALIDATE, in_turn(edited(), written("recipes/calib.npz", "1,2,3\n"))),
    Case("pickled data", VALIDATE, in_turn(edited(), npz("recipes/calib.npz", image=np.array([{"a": 1}], dtype=object)))),
    Case("data without arrays", VALIDATE, in_turn(edited(), npz("recipes/calib.npz"))),
    Case("labels of another length", VALIDATE, in_turn(edited(), npz("recipes/test.npz", image=ZEROS, label=np.zeros(4, np.int64)))),
    Case("data that git does not keep", VALIDATE, edited(("npz: calib.npz", "npz: fetched/calib.npz"))),
)  # fmt: skip

COMMAND_CASES = (
    Case("an unknown command", ("biuld", "recipes/tiny.yaml")),
    Case("an unknown option", ("build", "recipes/tiny.yaml", "--olny", "*")),
    Case("no recipe named", ("build",)),
    Case("a mode that is none", ("build", "recipes/tiny.yaml", "--mode", "quick")),
    Case("--only that matches nothing", ("plan", "recipes/tiny.yaml", "--only", "tiny/int4/cpu")),
    Case("a peer that is none", ("plan", "recipes/tiny.yaml", "--compare", "pytroch")),
    Case("no recipes here", ("validate",), lambda: [p.unlink() for p in Path("recipes").glob("*.yaml")]),
    Case("a target that cannot do it", ("plan", "recipes/tiny.yaml"), in_turn(
        edited(("[fp32, int8]", "[fp8]"), ("    int8:", "    fp8:"), ("[cpu]", "[cpu, rtx40, old]")),
        written("recipes/_targets.yaml", TARGETS + "  old: {backend: tensorrt_rtx, compute_capability: [7.5]}\n"))),
    Case("a GPU that runs here only with another version", ("plan", "recipes/tiny.yaml"), in_turn(
        edited(("[cpu]", "[hopper]")),
        written("recipes/_targets.yaml", "targets: {hopper: {backend: tensorrt_rtx, compute_capability: [9.0]}}\n"))),
    Case("init without a model", ("init",)),
    Case("init of a file that is not there", ("init", "model.onnx")),
    Case("init of a folder", ("init", "recipes")),
    Case("init over a recipe", ("init", "recipes/tiny.onnx")),
    Case("init with a precision that is none", ("init", "recipes/tiny.onnx", "--name", "b", "--precisions", "fp61")),
    Case("init of a model of maps", ("init", "maps.onnx"), lambda: maps("maps.onnx")),
    Case("init from a trtexec line without a model", ("init", "--from-trtexec", "trtexec --fp16")),
    Case("inspect nothing", ("inspect", "tiny/int8/cpu")),
    Case("inspect a file that is not there", ("inspect", "models/none.onnx")),
    Case("inspect data", ("inspect", "recipes/calib.npz")),
    Case("inspect a folder", ("inspect", "recipes")),
    Case("inspect a damaged sidecar", ("inspect", "recipes"), written("recipes/engine.json", "{}")),
    Case("a model whose function calls itself", ("inspect", "recipes/tiny.onnx"), functions(("F", "F"))),
    Case("a model whose functions double", ("inspect", "recipes/tiny.onnx"), functions(*((f"F{n}", f"F{n - 1}") for n in range(30, 0, -1)))),
    Case("inspect a named pipe", ("inspect", "pipe.engine"), lambda: os.mkfifo("pipe.engine")),
    Case("verify what was not built", ("verify", "tiny/int8/cpu")),
    Case("verify nonsense", ("verify", "nonsense")),
    Case("report before any build", ("report", "tiny")),
    Case("why before any build", ("why", "tiny/int8/cpu")),
    Case("list what is not listed", ("list", "engine")),
    Case("changed outside of git", ("changed", "--since", "main"), lambda: Path(".git").rmdir()),
    Case("sensitivity of a float", ("sensitivity", "recipes/tiny.yaml", "--precision", "fp16")),
    Case("sensitivity for no target", ("sensitivity", "recipes/tiny.yaml", "--target", "gpu")),
    Case("sensitivity on too many samples", ("sensitivity", "recipes/tiny.yaml", "--samples", "99")),
    Case("blame of what is no engine", ("blame", "tiny")),
    Case("blame of an unknown recipe", ("blame", "huge/int8/cpu")),
    Case("blame of an engine that the recipe does not have", ("blame", "tiny/fp8/cpu")),
    Case("rehearse without a version", ("rehearse", "recipes/tiny.yaml", "--with", "onnxruntime")),
    Case("keygen over a key", ("keygen", "keys"), written("keys/engineworks.key", "mine")),
    Case("package before any build", ("package", "recipes/tiny.yaml", "--out", "models")),
    Case("serve without a server", ("serve", "recipes/tiny.yaml")),
    Case("serve on an address that is none", ("serve", "recipes/tiny.yaml"),
         environment={"ENGINEWORKS_TRITON": "http://127.0.0.1:none"}),
    Case("serve champions beside themselves", ("serve", "recipes/tiny.yaml", "--shadow", "--champions")),
    Case("serve requests without a shadow", ("serve", "recipes/tiny.yaml", "--requests", "r.jsonl")),
    Case("serve with a budget of what is not together", ("serve", "recipes/tiny.yaml", "--memory-mib", "100")),
    Case("serve a shadow together", ("serve", "recipes/tiny.yaml", "--shadow", "--together")),
    Case("serve a shadow on a running server", ("serve", "recipes/tiny.yaml", "--shadow"),
         environment={"ENGINEWORKS_TRITON": "http://127.0.0.1:8000"}),
    Case("serve recorded requests that are none",
         ("serve", "recipes/tiny.yaml", "--shadow", "--requests", "r.jsonl"),
         written("r.jsonl", '{"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1]}]}'),
         {"ENGINEWORKS_TRITON": "bin/tritonserver"}),
    Case("rollback before any release", ("rollback", "recipes/tiny.yaml")),
    Case("an artifacts folder that is a file", ("build", "recipes/tiny.yaml"), written("artifacts", "")),
    Case("a store without its library", ("plan", "recipes/tiny.yaml"), environment={"ENGINEWORKS_STORE": "gs://b/e"}),
    Case("a store of no kind", ("plan", "recipes/tiny.yaml"), environment={"ENGINEWORKS_STORE": "s4://b/e"}),
    Case("MLflow is down", ("report", "tiny"), environment={"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}),
    Case("garbage before any build", ("gc",)),
    Case("garbage of the future", ("gc", "--keep-hours", "-1")),
    Case("garbage while MLflow is down", ("gc",), environment={"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}),
    Case("a release without the key that is required", ("release", "recipes/tiny.yaml"),
         in_turn(edited(), lambda: write_key_pair(Path("keys"), "mine")),
         {"ENGINEWORKS_TRUSTED_KEYS": "keys/mine.pub"}),
    Case("a signing key that others may read", ("release", "recipes/tiny.yaml"),
         in_turn(edited(), lambda: write_key_pair(Path("keys"), "mine")[0].chmod(0o644)),
         {"ENGINEWORKS_SIGNING_KEY": "keys/mine.key"}),
    Case("trusted keys that are empty", ("verify", "recipes"), environment={"ENGINEWORKS_TRUSTED_KEYS": ""}),
    Case("a signing key that is none", ("verify", "recipes"), environment={"ENGINEWORKS_TRUSTED_KEYS": "nowhere.pub"}),
)  # fmt: skip


def maps(path: str) -> None:
    """A model whose output is a sequence of maps, as scikit-learn's classifiers are exported."""
    kind = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    )
    nodes = [helper.make_node("ZipMap", ["x"], ["p"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])]
    graph = helper.make_graph(nodes, "maps", given, [helper.make_value_info("p", kind)])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def metric(text: str) -> Callable[[], object]:
    return in_turn(edited(("metric: top1", "metric: {python: own:score}")), written("recipes/own.py", text))


def operator(kind: str, domain: str = "", **attributes: object) -> Callable[[], object]:
    """The small model with one more node, and a recipe of it."""

    def write() -> None:
        edited()()
        model = onnx.load("recipes/tiny.onnx")
        for node in model.graph.node:
            node.output[:] = ["before" if name == "logits" else name for name in node.output]
        model.graph.node.append(
            helper.make_node(kind, ["before"], ["logits"], name="last", domain=domain, **attributes)
        )
        if domain:
            model.opset_import.append(helper.make_opsetid(domain, 1))
        onnx.save(model, "recipes/tiny.onnx")

    return write


def calibration(images: np.ndarray) -> Callable[[], object]:  # type: ignore[type-arg]
    return in_turn(edited(), npz("recipes/calib.npz", image=images))


NANS = np.full_like(ZEROS, np.nan)

BUILD_CASES = (
    Case("calibration data of NaN", ("int8",), calibration(NANS)),
    Case("calibration data that is constant", ("int8",), calibration(ZEROS)),
    Case("a keep glob for nothing", ("int8",), edited(("data:\n", "calibration: {keep: [clasifier]}\ndata:\n"))),
    Case("an operator of another framework", ("fp32",), operator("Grid", "com.example")),
    Case("random numbers in the model", ("fp32",), operator("RandomNormalLike", seed=1.0)),
    Case("a metric that returns text", ("fp32",), metric("def score(outputs, labels, inputs):\n    return 'good'\n")),
    Case("a metric that raises", ("fp32",), metric("def score(outputs, labels, inputs):\n    return 1 / 0\n")),
    Case("a metric that ends its process", ("fp32",), metric("import os\ndef score(*_):\n    os._exit(3)\n")),
    Case("a metric that raises SystemExit", ("fp32",), metric("def score(*_):\n    raise SystemExit(3)\n")),
    Case("a metric that returns 10**400", ("fp32",), metric("def score(*_):\n    return 10**400\n")),
    Case("a metric without its function", ("fp32",), metric("def scores():\n    return 1\n")),
)  # fmt: skip
"""Those that a step of a build finds: `command` names the precision."""


def all_cases() -> list[Case]:
    """Every case that needs no build. Titles are unique."""
    return [*recipe_cases(), *FILE_CASES, *COMMAND_CASES]
