"""The recipes for speed: their inputs and random weights are the same on every host, whatever the versions there."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Factories and scripts import their neighbours, as when they are run; nothing of it is left for other tests."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(RECIPES))
    monkeypatch.syspath_prepend(str(RECIPES / "fetch"))
    yield
    for name in {"speed", "packages", "random_weights", "bert_mini", "resnet50"} - before:
        sys.modules.pop(name, None)


def load(name: str) -> Any:
    return importlib.import_module(name)


@pytest.mark.parametrize(("file", "count", "more"), [("test", 256, 0), ("calib", 64, 1)])
def test_the_tokens_in_git_are_those_that_the_script_makes(file: str, count: int, more: int) -> None:
    speed = load("speed")
    made = speed.tokens(count, speed.SEED + more)
    with np.load(RECIPES / f"data/bert_mini_{file}.npz") as kept:
        assert kept.files == list(made)
        for name, array in made.items():
            np.testing.assert_array_equal(kept[name], array)


def test_tokens_are_texts_with_padding_behind() -> None:
    made = load("speed").tokens(100, 0)
    assert {a.dtype.name for a in made.values()} == {"int64"}
    lengths = made["attention_mask"].sum(axis=1)
    assert lengths.min() >= 8
    assert len(set(lengths.tolist())) > 20
    assert not made["input_ids"][made["attention_mask"] == 0].any()
    assert (np.diff(made["attention_mask"], axis=1) <= 0).all()
    assert made["input_ids"].max() < 30522


def test_images_differ_in_what_a_model_can_see() -> None:
    images = load("speed").images(4, 0)["image"]
    assert images.shape == (4, 3, 224, 224)
    assert images.dtype == np.float32
    blocks = images.reshape(4, 3, 14, 16, 14, 16).mean(axis=(3, 5))
    assert blocks.std() > 0.5  # noise alone would average to 0.1 / 16
    assert np.abs(blocks[0] - blocks[1]).mean() > 0.5


def test_weights_depend_on_seed_and_name_only() -> None:
    values = load("random_weights")._values
    weights = values("layer.weight", (8, 4, 3, 3), 1.0, False).astype(np.float32)
    assert hashlib.sha256(weights.tobytes()).hexdigest().startswith("542859482d4b14c9")
    assert abs(weights.sum(axis=(1, 2, 3))).max() < 1e-5
    assert 0.1 < weights.std() * 6 < 1.2
    assert not np.array_equal(weights, values("other.weight", (8, 4, 3, 3), 1.0, False).astype(np.float32))


@pytest.mark.torch
@pytest.mark.parametrize(
    ("module", "parameters", "digest"),
    [("bert_mini", 11_171_074, "1726b7e2e6b62ba5"), ("resnet50", 25_557_032, "8a6177236168749e")],
)
def test_the_models_are_the_known_architectures_with_the_same_weights_everywhere(
    module: str, parameters: int, digest: str
) -> None:
    """11.17 M is prajjwal1/bert-mini with its classifier, 25,557,032 torchvision's resnet50. The digests are the same
    with torch 2.11 and 2.13."""
    pytest.importorskip("torch", reason="needs the torch extra")
    if module == "bert_mini":
        pytest.importorskip("transformers", reason="needs the huggingface extra")
    model = load(module).classifier()
    assert sum(p.numel() for p in model.parameters()) == parameters
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.numpy().tobytes())
    assert found.hexdigest()[:16] == digest
