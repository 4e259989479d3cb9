"""Hostile and damaged input, made from a seed: each case changes a small whole repository and says what to try.

A case is a function of (folder, dice) that writes files below `folder` and returns attempts: named functions that give
an exit code. What is not an `EngineworksError` escapes them, and is a defect.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import os
import random
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from nightly_recipes import tiny_model
from onnx import TensorProto, helper

Attempts = Mapping[str, Callable[[], int]]
Case = Callable[[Path, random.Random], Attempts]

RECIPE: dict[str, Any] = {
    "recipe": "tiny", "owner": "me@example.com",
    "model": {"source": {"onnx": "tiny.onnx"}, "opset": 17},
    "inputs": {"image": {"dtype": "float32", "shape": ["batch", 1, 4, 4]}},
    "outputs": {"logits": ["batch", 3]},
    "shapes": {"default": {"batch": [1, 4, 16]}, "bulk": {"batch": [8, 32, 64]}},
    "precisions": ["fp32", "fp16", "int8"],
    "data": {"calibration": {"npz": "data.npz", "samples": 8}, "evaluation": {"npz": "data.npz", "labels": "label"}},
    "calibration": {"method": "entropy", "keep": ["classifier*"]},
    "accuracy": {"metric": "top1", "limits": {"fp32": {"cosine": 0.9}, "fp16": {"cosine": 0.99},
    "int8": {"cosine": 0.98, "metric_ratio": 0.9}}},
    "targets": ["cpu"],
    "performance": {
        "at": {"one": {"batch": 1}}, "budget": {"one": {"p99_ms": 3.0}}, "regression": {"latency": "5%"},
    },
    "release": {"model": "tiny", "triton": {"dynamic_batching": {"preferred": [8, 16], "max_delay_us": 500}}},
    "tags": ["vision"], "time_limits": {"build": 60},
}  # fmt: skip

DEEP: Any = 1
for _ in range(90):
    DEEP = [DEEP]

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**62, 2**63, 2**64, -(2**63), 10**400, 0.0, -0.0, 1e308, 1e-320, math.inf,
    -math.inf, math.nan, "", " ", "0", "nan", "5%", "-5%", "1e999%", "a" * 5000, "/" * 300, "../" * 50, "\0",
    "\x1b[31m",
    "\ud800", "\U0010ffff", "\u202e", "%s%n{0}", "*", "[", "**/*", "a/b/c", "~", "~root/x", "/dev/zero",
    "/proc/self/mem",
    "https://example.com", "models:/x/1", "module:function", "os:system", [], {}, [[]], [None], {"": None},
    {"a": {"b": 1}},
    DEEP, list(range(3000)), {str(n): n for n in range(500)}, [1, 4, 16], [16, 4, 1], [-1, 0, 2**40], "batch",
    ["batch"],
)  # fmt: skip
"""What takes the place of a value of a recipe."""

TEXTS = (
    '"\\U00110000"', '"\\ud800"', '"\\x00"', "'", '"', "&a [*a, *a]", "*missing", "<<: {a: 1}",
    "!!python/name:os.system x",
    "!!binary aGk=", "!<tag:yaml.org,2002:set> {a}", "? [a]\n: b", "---\na: 1", "%YAML 9.9", "\t", "\x07", "\x85",
    "\u2028",
    "[" * 200, "{a: " * 120, "- " * 300, "|\n  text", ">9\n x", "2001-13-45", "0o9", "0x", "1_0", "1:2:3", ".inf",
    "@x", "`x",
    "<<<<<<< HEAD", "\ufeff", "é" * 100, "x: " * 50, ": ", "a: b: c", "#", "&a " * 5, '"\\u12"', "!", "!!int x",
    "!!float [1]",
)  # fmt: skip
"""What is written into the text of a recipe."""


@cache
def template() -> Path:
    """A whole repository, made once per process."""
    folder = Path(tempfile.mkdtemp(prefix="engineworks-hostile-"))
    (folder / ".git").mkdir()
    (folder / "recipes").mkdir()
    dice = np.random.default_rng(0)
    onnx.save(tiny_model(0), folder / "recipes" / "tiny.onnx")
    images = dice.normal(0, 1, (16, 1, 4, 4)).astype(np.float32)
    np.savez(folder / "recipes" / "data.npz", image=images, label=np.arange(16) % 3)
    (folder / "recipes" / "tiny.yaml").write_text(json.dumps(RECIPE, indent=1))
    return folder


def fresh(folder: Path) -> Path:
    """The template's recipes in `folder`, which is the current one; returns recipes/."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template(), folder)
    os.chdir(folder)
    os.environ["ENGINEWORKS_ARTIFACTS"] = str(folder / "artifacts")
    return folder / "recipes"


def command(*arguments: str) -> Callable[[], int]:
    """One command, in this process."""
    from engineworks.cli import run_command

    return lambda: run_command(list(arguments))


def as_command(work: Callable[..., object], *given: Any) -> Callable[[], int]:
    """A function of the library that ends as a command would: with the exit code of its error."""
    from engineworks.errors import EngineworksError

    def run() -> int:
        try:
            work(*given)
        except EngineworksError as error:
            print(error)
            return error.exit_code
        return 0

    return run


# --- recipes


def recipe(folder: Path, dice: random.Random) -> Attempts:
    recipes = fresh(folder)
    value = json.loads(json.dumps(RECIPE))
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        _replace_value(value, dice)
    text = _as_yaml(value) if dice.random() < 0.7 else json.dumps(RECIPE, indent=1)
    for _ in range(dice.choice((0, 1, 1, 3)) if dice.random() < 0.7 else 0):
        text = _damage_text(text, dice)
    data = text.encode("utf-8", "surrogatepass")
    if dice.random() < 0.1:
        data = damaged(data, dice)
    name = dice.choice(("tiny.yaml",) * 8 + ("_defaults.yaml", "_targets.yaml"))
    (recipes / name).write_bytes(data)
    shown = ("validate", "recipes/tiny.yaml")
    if dice.random() < 0.01:
        names = ("recipes/" + "a" * 5000, _link_loop(recipes), "recipes/a\0b", "x/" * 2500, "")
        shown = ("validate", dice.choice(names))
    attempts = {"validate": command(*shown)}
    if dice.random() < 0.2:
        attempts["plan"] = command("plan", "recipes/tiny.yaml", "--json")
    return attempts


def _link_loop(recipes: Path) -> str:
    (recipes / "loop.yaml").symlink_to("loop.yaml")
    return "recipes/loop.yaml"


def _places(value: Any) -> list[tuple[Any, Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, below in inner for place in ((value, key), *_places(below))]


def _replace_value(value: Any, dice: random.Random) -> None:
    places = _places(value)
    if not places:
        return
    holder, key = dice.choice(places)
    what = dice.random()
    if what < 0.15:
        del holder[key]
    elif what < 0.3 and isinstance(holder, dict):
        holder[dice.choice([str(v) for v in VALUES if isinstance(v, str | int)])] = holder.pop(key)
    elif what < 0.4:
        other, at = dice.choice(places)
        holder[key] = json.loads(json.dumps(other[at])) if at in _keys(other) else None
    else:
        holder[key] = copy.deepcopy(dice.choice(VALUES))  # a later change must not reach VALUES


def _keys(holder: Any) -> Any:
    return holder if isinstance(holder, dict) else range(len(holder))


def _as_yaml(value: Any) -> str:
    """YAML in flow style: JSON but for what JSON cannot say."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(k))}: {_as_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_as_yaml, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return {"inf": ".inf", "-inf": "-.inf"}.get(str(value), ".nan")
    return json.dumps(value)


def _damage_text(text: str, dice: random.Random) -> str:
    lines = text.split("\n")
    at, what = dice.randrange(len(lines)), dice.randrange(6)
    column = dice.randrange(len(lines[at]) + 1)
    if what == 0:
        del lines[at]
    elif what == 1:
        lines.insert(at, lines[dice.randrange(len(lines))])
    elif what == 2:
        lines[at] = lines[at][:column]
    elif what == 3:
        lines[at] = lines[at][:column] + dice.choice(TEXTS) + lines[at][column:]
    elif what == 4:
        lines[at] = lines[at][:column] + dice.choice(TEXTS)
    else:
        lines[at] = " " * dice.randrange(9) + lines[at].lstrip()
    return "\n".join(lines)


def damaged(data: bytes, dice: random.Random) -> bytes:
    """Bytes flipped, cut, doubled, inserted or replaced."""
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 8))):
        at, what = dice.randrange(len(changed) or 1), dice.randrange(6)
        span = slice(at, at + dice.choice((1, 4, 8, 64, 1000)))
        if what == 0:
            changed[at : at + 1] = bytes([dice.randrange(256)])
        elif what == 1:
            del changed[at:]
        elif what == 2:
            del changed[span]
        elif what == 3:
            changed[at:at] = changed[span]
        elif what == 4:
            changed[at:at] = dice.randbytes(dice.choice((1, 4, 100)))
        else:
            changed[span] = dice.choice((b"\xff", b"\x00", b"\x7f")) * len(changed[span])
    return bytes(changed)


# --- models

DIMS = (0, -1, 1, 3, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63), 7)
DTYPES = (0, 1, 7, 8, 10, 16, 17, 20, 21, 22, 23, 24, 25, 26, 27, 99, 999, -1, 2**31 - 1)
NAMES = ("", "\0", "a\0b", "x" * 5000, "../../etc/passwd", "/etc/passwd", "\n", "w", "image", "logits", "é\u202e", " ")
SPANS = (
    "", "nan", "-1", "1e9", "0x10", str(2**62), str(2**64), "-" * 10, "0", "4", " 4 ", "٣", "9" * 5000, "4.0", "\0",
)  # fmt: skip


def model(folder: Path, dice: random.Random) -> Attempts:
    recipes = fresh(folder)
    proto = onnx.load(recipes / "tiny.onnx")
    for _ in range(dice.choice((1, 1, 2, 3))):
        with contextlib.suppress(DecodeError):  # protobuf itself refuses the change
            dice.choice(MODEL_CHANGES)(proto, recipes, dice)
    data = proto.SerializeToString()
    if dice.random() < 0.3:
        data = damaged(data, dice)
    (recipes / "tiny.onnx").write_bytes(data)
    return {
        "validate": command("validate", "recipes/tiny.yaml"),
        "inspect": command("inspect", "recipes/tiny.onnx", "--json"),
        "init": command("init", "recipes/tiny.onnx", "--name", "again"),
        "export and fold": as_command(_run_steps, recipes, ("export", "fold")),
    }


def _run_steps(recipes: Path, kinds: tuple[str, ...]) -> None:
    """The recipe's steps of these kinds, in children as in a build."""
    from engineworks.builds.step import run_step
    from engineworks.host.child import default_pool
    from engineworks.host.file_digests import FileDigests
    from engineworks.plan.plan import plan_recipe
    from engineworks.recipe.load import load_recipe
    from engineworks.store.store import Store

    store = Store(recipes.parent / "artifacts" / "store")
    plan = plan_recipe(load_recipe(recipes / "tiny.yaml"), store, FileDigests(None))
    for step in plan.to_do:
        if step.kind in kinds:
            run_step(step, store, default_pool(), echo=lambda _: None)


def _tensor(proto: onnx.ModelProto, dice: random.Random) -> Any:
    held = list(proto.graph.initializer)
    return dice.choice(held) if held else proto.graph.initializer.add(name="new", data_type=1)


def _node(proto: onnx.ModelProto, dice: random.Random) -> Any:
    return dice.choice(list(proto.graph.node)) if proto.graph.node else proto.graph.node.add(op_type="Relu")


def _change_dims(proto: onnx.ModelProto, _: Path, dice: random.Random) -> None:
    tensor = _tensor(proto, dice)
    if tensor.dims and dice.random() < 0.7:
        tensor.dims[dice.randrange(len(tensor.dims))] = dice.choice(DIMS)
    else:
        tensor.dims.extend(dice.choice(DIMS) for _ in range(dice.choice((1, 2, 40))))


def _change_dtype(proto: onnx.ModelProto, _: Path, dice: random.Random) -> None:
    values = [*proto.graph.input, *proto.graph.output]
    if values and dice.random() < 0.4:
        dice.choice(values).type.tensor_type.elem_type = dice.choice(DTYPES)
    else:
        _tensor(proto, dice).data_type = dice.choice(DTYPES)


def _make_external(proto: onnx.ModelProto, recipes: Path, dice: random.Random) -> None:
    tensor = _tensor(proto, dice)
    if dice.random() < 0.8:
        (recipes / "weights").write_bytes(bytes(dice.choice((0, 4, 1000))))
    tensor.data_location = TensorProto.EXTERNAL
    if dice.random() < 0.7:
        tensor.ClearField("raw_data")
    place = dice.choice(("weights",) * 8 + NAMES + (".", "recipes", "/dev/zero", "tiny.onnx", "pipe", "link"))
    if place == "pipe":
        os.mkfifo(recipes / "pipe")
    if place == "link":
        (recipes / "link").symlink_to("/etc/passwd")
    for key in ("location", "offset", "length", "checksum", "basepath"):
        if key == "location" or dice.random() < 0.6:
            tensor.external_data.add(key=key, value=place if key == "location" else dice.choice(SPANS))


def _change_data(proto: onnx.ModelProto, _: Path, dice: random.Random) -> None:
    tensor = _tensor(proto, dice)
    what = dice.randrange(4)
    if what == 0:
        tensor.raw_data = bytes(dice.choice((0, 1, 7, 10_000)))
    elif what == 1:
        tensor.float_data.extend([math.nan, math.inf, 1.0])
    elif what == 2:
        tensor.string_data.extend([b"\xff\xfe", b"x"])
    else:
        tensor.ClearField("raw_data")


def _change_name(proto: onnx.ModelProto, _: Path, dice: random.Random) -> None:
    name, node = dice.choice(NAMES), _node(proto, dice)
    what = dice.randrange(7)
    if what == 0 and node.input:
        node.input[dice.randrange(len(node.input))] = name
    elif what == 1 and node.output:
        node.output[0] = name
    elif what == 2:
        _tensor(proto, dice).name = name
    elif what == 3:
        node.op_type = dice.choice((*NAMES, "If", "Loop", "Scan", "Reshape", "Range", "ConstantOfShape", "Unknown"))
    elif what == 4:
        node.domain = dice.choice((*NAMES, "com.example", "ai.onnx.ml"))
    elif what == 5 and proto.graph.input:
        proto.graph.input[0].name = name
    elif proto.graph.output:
        proto.graph.output[0].name = name


def _change_shape(proto: onnx.ModelProto, _: Path, dice: random.Random) -> None:
    values = [*proto.graph.input, *proto.graph.output]
    if not values:
        return
    shape = dice.choice(values).type.tensor_type.shape
    if shape.dim and dice.random() < 0.7:
        dim = dice.choice(list(shape.dim))
        if dice.random() < 0.5:
            dim.dim_value = dice.choice(DIMS)
        else:
            dim.dim_param = dice.choice(NAMES)
    else:
        for _dim in range(dice.choice((1, 3, 200))):
            shape.dim.add(dim_value=dice.choice(DIMS))


def _nest(proto: onnx.ModelProto, _: Path, dice: random.Random) -> None:
    """Graphs inside of graphs; protobuf itself ends at 100."""
    depth, graph = dice.choice((2, 20, 45)), proto.graph
    for _level in range(depth):
        node = graph.node.add(op_type="If", name="if", input=["image"], output=["nested"])
        attribute = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
        graph = attribute.g


def _call_functions(proto: onnx.ModelProto, _: Path, dice: random.Random) -> None:
    """Functions that call others, or themselves, up to 2^40 times."""
    names = [f"F{n}" for n in range(dice.choice((1, 3, 40)))]
    for name, inner in zip(names, [*names[1:], dice.choice(("Relu", names[0], "Unknown"))], strict=True):
        domain = "own" if inner in names else ""
        nodes = [helper.make_node(inner, [a], [b], domain=domain) for a, b in (("x", "t"), ("t", "y"))]
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        proto.functions.append(helper.make_function("own", name, ["x"], ["y"], nodes, opsets))
    proto.graph.node.add(op_type=names[0], domain="own", input=["image"], output=["called"])
    if dice.random() < 0.8:
        proto.opset_import.append(helper.make_opsetid("own", 1))


def _change_structure(proto: onnx.ModelProto, _: Path, dice: random.Random) -> None:
    graph, what = proto.graph, dice.randrange(9)
    if what == 0:
        proto.ClearField("opset_import")
    elif what == 1:
        proto.opset_import[0].version = dice.choice((0, -1, 1, 12, 26, 27, 10**9, 2**62)) if proto.opset_import else 0
    elif what == 2:
        proto.ir_version = dice.choice((0, -1, 3, 14, 10**9, 2**62))
    elif what == 3:
        graph.node.extend([_node(proto, dice)] * dice.choice((1, 500)))
    elif what == 4 and graph.node:
        del graph.node[dice.randrange(len(graph.node))]
    elif what == 5:
        nodes = list(graph.node)
        dice.shuffle(nodes)
        graph.ClearField("node")
        graph.node.extend(nodes)
    elif what == 6:
        graph.initializer.extend([_tensor(proto, dice)])
    elif what == 7:
        graph.sparse_initializer.add().dims.extend(dice.choice(DIMS) for _ in range(2))
    else:
        entry = _node(proto, dice).attribute.add(name=dice.choice(("kernel_shape", "axis", "value", "pads", "x", "")))
        entry.type = dice.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 14))
        entry.ints.extend(dice.choice(DIMS) for _ in range(3))
        entry.i = dice.choice(DIMS)


MODEL_CHANGES = (
    _change_dims, _change_dtype, _make_external, _make_external, _change_data, _change_name, _change_shape, _nest,
    _change_structure, _call_functions,
)  # fmt: skip


# --- data

HEADERS = (
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 1, 4, 4), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (16, 1, -4, -4), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 1, 4, 4), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807, 2), }",
    "{'descr': '<f4', 'fortran_order': True, 'shape': (1000000000, 1, 4, 4), }",
    "{'descr': '<f4', 'fortran_order': 3, 'shape': (16,), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (16, 1, 4, 4), }",
    "{'descr': '<U999999999', 'fortran_order': False, 'shape': (16,), }",
    "{'descr': [('a', '<f4'), ('b', '|O')], 'fortran_order': False, 'shape': (16,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 1, 4, 4), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': 16, }", "{'descr': '<f4'}", "[]", "", "(" * 500, "1" * 5000,
    "{'descr': '<m8[9999999999Y]', 'fortran_order': False, 'shape': (16,), }", "{'descr': None}", "\0" * 50,
    "{'descr': '', 'fortran_order': False, 'shape': (16, 1, 4, 4), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (16, 1, 4, 4), 'extra': 1}",
    "{'descr': '|V0', 'fortran_order': False, 'shape': (16, 1, 4, 4), }",
    "{'descr': '>f4', 'fortran_order': False, 'shape': (16, 1, 4, 4), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (16, 1, 4, 4.0), }",
)  # fmt: skip


def arrays(folder: Path, dice: random.Random) -> Attempts:
    recipes = fresh(folder)
    file = recipes / "data.npz"
    what = dice.random()
    if what < 0.35:
        file.write_bytes(damaged(file.read_bytes(), dice))
    elif what < 0.65:
        _write_npz(file, dice, _npy(dice))
    else:
        _write_npz(file, dice, None)
        file.write_bytes(_change_zip(file.read_bytes(), dice))
    return {"validate": command("validate", "recipes/tiny.yaml"), "read": as_command(_read_samples, recipes)}


def _npy(dice: random.Random) -> bytes:
    header = dice.choice(HEADERS).encode()
    version = dice.choice((b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00", b"\xff\xff"))
    length = struct.pack("<H" if version[0] == 1 else "<I", min(len(header), 65535))
    magic = dice.choice((b"\x93NUMPY",) * 6 + (b"\x93NUMPZ", b"PK\x03\x04", b""))
    return magic + version + length + header + bytes(dice.choice((0, 10, 1024)))


def _write_npz(file: Path, dice: random.Random, image: bytes | None) -> None:
    with np.load(file) as archive:
        held = dict(archive)
    packing = dice.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(file, "w", packing) as archive:
        for name, array in held.items():
            plain = io.BytesIO()
            np.lib.format.write_array(plain, array)
            whole_bytes = image if image is not None and name == "image" else plain.getvalue()
            archive.writestr(f"{name}.npy", whole_bytes)
        if dice.random() < 0.2:
            names = ("../x.npy", "/x.npy", "image.npy", "a\\b.npy", ".npy", "x" * 900 + ".npy")
            archive.writestr(dice.choice(names), b"x")


def _change_zip(data: bytes, dice: random.Random) -> bytes:
    """A zip whose headers say what is not so: packing, flags, sizes, offsets, checksums."""
    changed = bytearray(data)
    central, local = changed.find(b"PK\x01\x02"), changed.find(b"PK\x03\x04")
    end = changed.find(b"PK\x05\x06")
    fields = [(central + at, size) for at, size in ((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (42, 4))]
    fields += [(local + at, size) for at, size in ((6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2))]
    fields += [(end + at, size) for at, size in ((8, 2), (10, 2), (12, 4), (16, 4), (20, 2))]
    for at, size in dice.sample(fields, dice.choice((1, 1, 2, 4))):
        values = (b"\xff" * size, b"\x01" + bytes(size - 1), dice.randbytes(size), bytes(size))
        changed[at : at + size] = dice.choice(values)
    return bytes(changed)


def _read_samples(recipes: Path) -> None:
    """Every sample and label, as steps read them."""
    from engineworks.recipe.load import load_recipe

    data = load_recipe(recipes / "tiny.yaml").files.evaluation
    for batch in data.batches([4]):
        assert all(isinstance(array, np.ndarray) for array in batch.values())
    data.read_labels()


def picture(folder: Path, dice: random.Random) -> Attempts:
    from PIL import Image

    from engineworks.recipe.datasets.preprocess_images import read_picture

    recipes, kind = fresh(folder), dice.choice(("png", "jpeg", "bmp", "webp", "tiff", "gif"))
    made = io.BytesIO()
    Image.new(dice.choice(("RGB", "L")), (16, 16), dice.randrange(200)).save(made, kind)
    data = bytearray(made.getvalue())
    if kind == "png" and dice.random() < 0.4:
        data[16:24] = struct.pack(">II", *(dice.choice((0, 1, 2**31 - 1, 2**16, 20_000)) for _ in range(2)))
    elif kind == "bmp" and dice.random() < 0.5:
        data[18:26] = struct.pack("<ii", *(dice.choice((0, -1, 2**31 - 1, 2**16, -(2**31))) for _ in range(2)))
    file = recipes / f"x.{kind}"
    file.write_bytes(damaged(bytes(data), dice) if dice.random() < 0.7 else data)
    return {"read": as_command(read_picture, file, file.name, "RGB")}


def table(folder: Path, dice: random.Random) -> Attempts:
    recipes, kind = fresh(folder), dice.choice((".csv", ".parquet", ".jsonl"))
    file = recipes / f"rows{kind}"
    file.write_bytes(_table(kind, dice))
    return {"read": as_command(_read_table, file)}


def _table(kind: str, dice: random.Random) -> bytes:
    rows = [{"text": f"row {n}", "label": n % 3} for n in range(20)]
    if kind == ".jsonl":
        lines = [json.dumps(row) for row in rows]
        bad: Sequence[str] = (
            "{", "[1]", "null", '{"text": NaN}', '{"a": ' * 3000, "[" * 100_000, '{"text": "\\ud800"}', "1" * 6000,
            "\0",
        )  # fmt: skip
        lines[dice.randrange(20)] = dice.choice(bad)
        return damaged("\n".join(lines).encode(), dice) if dice.random() < 0.5 else "\n".join(lines).encode()
    if kind == ".csv":
        lines = ["text,label", *(f"{row['text']},{row['label']}" for row in rows)]
        bad = ('"', 'a"b"c,1', "a,b,c", "", ",", "\0,1", "x" * 200_000 + ",1", '"' + "y\n" * 3000, "\r", "é,1")
        lines[dice.randrange(21)] = dice.choice(bad)
        return damaged("\n".join(lines).encode(), dice) if dice.random() < 0.5 else "\n".join(lines).encode()
    import pyarrow
    import pyarrow.parquet

    made = io.BytesIO()
    packing = dice.choice(("none", "snappy", "gzip", "zstd"))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), made, compression=packing)
    data = bytearray(made.getvalue())
    if dice.random() < 0.3:
        data[-8:-4] = struct.pack("<I", dice.choice((0, 1, 2**31, 2**32 - 1, len(data))))
    return damaged(bytes(data), dice)


def _read_table(file: Path) -> None:
    from engineworks.recipe.datasets.tables import look_at, read_rows

    _, count = look_at(file)
    list(read_rows(file, range(count), ("text", "label")))


# --- what we wrote ourselves: manifests, passports, packages

JSONS: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 2**63, 10**30, "", "x", "0" * 64, "\ud800", "../../x", "/etc/passwd", "\0", "a\0b", [], {},
    [1],
    {"a": 1}, {"": {}}, {"../x": {"bytes": 1, "sha256": "0" * 64}}, math.nan, math.inf, "x" * 5000, list(range(200)),
)  # fmt: skip
NESTED = ("[" * 100_000, '{"a":' * 100_000, "[" * 900 + "]" * 900, '{"a":' * 2000 + "1" + "}" * 2000)


def damaged_json(text: str, dice: random.Random) -> bytes:
    """JSON with other values, or other text."""
    what = dice.random()
    if what < 0.6:
        value = json.loads(text)
        for _ in range(dice.choice((1, 1, 2))):
            places = _places(value)
            holder, key = dice.choice(places)
            if dice.random() < 0.25:
                del holder[key]
            else:
                holder[key] = copy.deepcopy(dice.choice(JSONS))  # a later change must not reach JSONS
            if not _places(value):
                break
        return json.dumps(value).encode("utf-8", "surrogatepass")
    if what < 0.7:
        return dice.choice(NESTED).encode()
    if what < 0.75:
        return json.dumps(dice.choice(JSONS)).encode()
    if what < 0.8:
        at = text.find(":") + 1
        return (text[:at] + dice.choice(NESTED)[: dice.choice((100, 10_000))] + text[at:]).encode()
    return damaged(text.encode(), dice)


def manifest(folder: Path, dice: random.Random) -> Attempts:
    from engineworks.fingerprint import digest_of
    from engineworks.store.store import Store

    fresh(folder)
    store = Store(folder / "store")
    document = {"step": "build", "inputs": {"lower": "0" * 64}, "number": 1.5, "text": "é"}
    key = digest_of(document)
    with store.writing(key, document, "tiny/fp32/cpu/build") as writing:
        (writing.folder / "engine").write_bytes(b"engine" * 100)
        (writing.folder / "engine.json").write_text('{"samples": [1, 2, 3]}')
    file = store.place(key) / "manifest.json"
    content = file.read_text()
    bad = damaged_json(content, dice)
    file.chmod(0o644)
    file.write_bytes(bad)
    messages: list[str] = []

    def read() -> int:
        fresh = Store(folder / "store")
        here = fresh.has(key)
        fresh.size_of(key), fresh.age_s(key), fresh.peek(key)
        found = fresh.get(key, echo=messages.append)
        print(messages, here)
        if found is not None:
            for name in ("engine", "engine.json"):
                assert name in found.files, f"an artifact without {name} counts as whole"
            assert found.file("engine").read_bytes() == b"engine" * 100
            return 0
        assert messages, "a damaged artifact is a miss, without a word"
        with fresh.writing(key, document, "tiny/fp32/cpu/build") as again:
            assert again.hit is None
            (again.folder / "engine").write_bytes(b"engine" * 100)
        assert fresh.get(key) is not None
        return 0

    return {"read": read}


ENGINE, PACKAGED = "engine", "package/tiny-fp32-cpu/1/passports"


@cache
def _passports() -> Path:
    """A folder with an engine and its passport, and one with its package, made once per process."""
    from engineworks.engines.backends.base import BuildReport, BuildRequest, Serving
    from engineworks.engines.passport import read_passport
    from engineworks.engines.sidecar import Sidecar
    from engineworks.engines.signing import Trust
    from engineworks.package.draft import write_draft
    from engineworks.package.package import PackagedEngine, write_package
    from engineworks.recipe.load import load_recipe
    from engineworks.tensors import TensorSpec

    folder = Path(tempfile.mkdtemp(prefix="engineworks-hostile-"))
    engine, model = folder / ENGINE, folder / ENGINE / "engine.onnx"
    engine.mkdir()
    shutil.copy(template() / "recipes" / "tiny.onnx", model)
    specs = TensorSpec("image", "float32", ("batch", 1, 4, 4)), TensorSpec("logits", "float32", ("batch", 3))
    report = BuildReport(model.name, specs[:1], specs[1:], 0.0, {"onnxruntime": "1"})
    sidecar = Sidecar.of(BuildRequest(model, engine, "fp32", ()), report, CPU, model)
    (engine / sidecar.FILE).write_text(json.dumps(sidecar.to_json()))
    write_draft(engine / "passport.json", engine, "tiny/fp32/cpu", Serving().to_json())
    packaged = PackagedEngine(engine, read_passport(engine / "passport.json", Trust()))
    write_package(load_recipe(template() / "recipes" / "tiny.yaml"), [packaged], folder / "package")
    os.chdir(folder)
    assert {command("verify", name)() for name in ("engine", "package")} == {0}, "what is not damaged is refused"
    return folder


CPU: dict[str, Any] = {"backend": "onnxruntime", "compute_capability": [], "options": {}}


def passport(folder: Path, dice: random.Random) -> Attempts:
    from engineworks.host.file_digests import digest_file

    given = _passports()
    fresh(folder)
    shutil.copytree(given, folder / "given")
    changed = dice.choice((
        f"{ENGINE}/passport.json", f"{ENGINE}/passport.json", f"{ENGINE}/engine.json", f"{PACKAGED}/engines.json",
        f"{PACKAGED}/cpu.json", "package/engineworks-package.json",
    ))  # fmt: skip
    file = folder / "given" / changed
    file.write_bytes(damaged_json(file.read_text(), dice))
    if changed.startswith(PACKAGED) and dice.random() < 0.8:  # the package's own digests follow
        listing = folder / "given" / "package" / "engineworks-package.json"
        value = json.loads(listing.read_text())
        value["files"][changed.removeprefix("package/")] = digest_file(file)
        listing.write_text(json.dumps(value))
    attempts = {"verify": command("verify", f"given/{changed.partition('/')[0]}")}
    if changed.endswith("engine.json"):
        attempts |= {
            "inspect": command("inspect", "given/engine"),
            "load": as_command(_load, folder / "given" / "engine"),
        }
    return attempts


def _load(engine: Path) -> None:
    """Load an engine that only its sidecar describes."""
    from engineworks.engines.engine_session import load_engine

    load_engine(engine, CPU).close()


KINDS: Mapping[str, tuple[Case, int]] = {
    "recipes": (recipe, 10_000), "models": (model, 1_000), "npz": (arrays, 500), "images": (picture, 500),
    "tables": (table, 500), "manifests": (manifest, 3_000), "passports and packages": (passport, 500),
}  # fmt: skip
"""Each kind's cases, and how many of them are the figure."""
