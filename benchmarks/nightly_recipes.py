"""A repository of tiny recipes for the nightly's figures, with a model each or a few for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

TARGETS = """\
targets:
  cpu: {backend: onnxruntime, pool: cpu}
  rtx30: {backend: tensorrt_rtx, compute_capability: [8.6], pool: rtx30}
  rtx40: {backend: tensorrt_rtx, compute_capability: [8.9], pool: rtx40}
  rtx50: {backend: tensorrt_rtx, compute_capability: [12.0], pool: rtx50}
"""

RECIPE = """\
recipe: {name}
description: A classifier of four-by-four images
owner: demo@example.com
model: {{source: {{onnx: models/{model}.onnx}}}}
inputs:
  image: {{dtype: float32, shape: [batch, 1, 4, 4]}}
outputs: {{logits: [batch, 3]}}
shapes:
  default: {{batch: [1, 4, 16]}}
precisions: [{precisions}]
data:
  calibration: {{npz: data/calibration.npz}}
  evaluation: {{npz: data/evaluation.npz}}
accuracy:
  metric: top1
  limits: {{fp32: {{cosine: 0.9999}}, fp16: {{cosine: 0.999}}, int8: {{cosine: 0.9}}}}
targets: [{targets}]
performance:
  at: {{one: {{batch: 1}}}}
"""


def write_repository(
    folder: Path, recipes_of: Mapping[str, Sequence[str]], *, targets: Sequence[str], models: int | None = None
) -> list[Path]:
    """Recipes under folder/recipes (names with their precisions), models, data, `_targets.yaml`; the recipes' files.

    models: how many there are for the recipes to take in turns, by default one each.
    """
    recipes = folder / "recipes"
    for place in (folder / ".git", recipes / "models", recipes / "data"):
        place.mkdir(parents=True, exist_ok=True)
    (recipes / "_targets.yaml").write_text(TARGETS, encoding="utf-8")
    random = np.random.default_rng(1)
    for name in ("calibration", "evaluation"):
        images: NDArray[np.float32] = random.normal(0, 1, (24, 1, 4, 4)).astype(np.float32)
        np.savez(recipes / "data" / f"{name}.npz", image=images)
    files = []
    for index, (name, precisions) in enumerate(recipes_of.items()):
        seed = index % (models or len(recipes_of))
        model = f"m{seed:03}"
        onnx.save(tiny_model(seed), recipes / "models" / f"{model}.onnx")
        text = RECIPE.format(name=name, model=model, precisions=", ".join(precisions), targets=", ".join(targets))
        file = recipes / f"{name}.yaml"
        file.write_text(text, encoding="utf-8")
        files.append(file)
    return files


def tiny_model(seed: int) -> onnx.ModelProto:
    """image f32[batch,1,4,4] → Conv, Relu, Flatten, Gemm → logits f32[batch,3], opset 17."""
    random = np.random.default_rng(seed)
    shapes = {"w": (8, 1, 3, 3), "b": (8,), "fw": (32, 3), "fb": (3,)}
    weights = {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "w", "b"], ["c"], name="conv"),
            helper.make_node("Relu", ["c"], ["r"], name="relu"),
            helper.make_node("Flatten", ["r"], ["f"], name="flatten"),
            helper.make_node("Gemm", ["f", "fw", "fb"], ["logits"], name="classifier"),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
