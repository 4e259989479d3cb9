"""A model that takes the inputs of another and answers at once: what serving alone costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engineworks.serving.answers import Question

NAME = "engineworks-identity"

MODEL = '''"""Answers at once with outputs of the right shapes."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as triton

OUTPUTS = json.loads(Path(__file__).with_name("outputs.json").read_text())


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        rows = triton.get_input_tensor_by_name(request, INPUT).shape()[0]
        tensors = []
        for name, (shape, dtype) in OUTPUTS.items():
            capsule = np.zeros([rows, *shape[1:]], dtype).__dlpack__()
            tensors.append(triton.Tensor.from_dlpack(name, capsule))
        return triton.InferenceResponse(output_tensors=tensors)
'''


def write_identity(repository: Path, config: Mapping[str, Any], question: Question) -> None:
    """Write the model into a repository. config: of the model that it stands beside, as the server gives it."""
    folder = repository / NAME / "1"
    folder.mkdir(parents=True, exist_ok=True)
    outputs = {name: [list(a.shape), np.dtype(a.dtype).name] for name, a in question.outputs.items()}
    (folder / "outputs.json").write_text(json.dumps(outputs), encoding="utf-8")
    text = MODEL.replace("INPUT", repr(next(iter(question.feeds))))
    (folder / "model.py").write_text(text, encoding="utf-8")
    (repository / NAME / "config.pbtxt").write_text(f'name: "{NAME}" backend: "python"\n', encoding="utf-8")


def identity_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity model's configuration: the other's tensors, batch and place, without batching."""
    kept = {k: config[k] for k in ("input", "output", "max_batch_size") if k in config}
    groups = [{**group, "count": 1} for group in config["instance_group"][:1]]
    return {"name": NAME, "backend": "python", **kept, "instance_group": groups}
