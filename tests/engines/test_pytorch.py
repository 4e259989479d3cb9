"""PyTorch eager as a peer: the recipe's own module, in fp32 and fp16. Needs torch (make test-torch)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engineworks.engines.peers import pytorch
from engineworks.engines.peers.base import Origin, PeerModel
from engineworks.errors import ExportError, RunError
from engineworks.model.export.interface import Interface
from engineworks.tensors import InputRange, Profile, TensorSpec

pytestmark = pytest.mark.torch

NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(6, 3)
        self.embed = torch.nn.Embedding(10, 6)

    def forward(self, {parameters}):
        {body}

def factory():
    return Net()
"""
BY_NAME = NET.format(parameters="image, word", body="return self.layer(image + self.embed(word))")
BY_POSITION = NET.format(parameters="a, b", body="return [self.layer(a + self.embed(b))]")
IN_A_MAPPING = NET.format(parameters="image, word", body="return {'other': 1, 'logits': self.layer(image)}")
BROKEN_IN_HALF = NET.format(
    parameters="image, word",
    body="assert image.dtype == torch.float32, 'only float32 here'\n        return self.layer(image)",
)

SPECS = (TensorSpec("image", "float32", ("batch", 6)), TensorSpec("word", "int64", ("batch",)))
FEEDS: dict[str, Any] = {
    "image": np.random.default_rng(0).normal(0, 1, (4, 6)).astype(np.float32), "word": np.array([1, 2, 3, 9]),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _same_imports() -> Iterator[None]:
    modules, finders, path = set(sys.modules), list(sys.meta_path), list(sys.path)
    yield
    sys.meta_path[:], sys.path[:] = finders, path
    for name in set(sys.modules) - modules:
        if name == "net":
            del sys.modules[name]


def interface(specs: tuple[TensorSpec, ...] = SPECS, **outputs: Any) -> Interface:
    ranges = {s.name: InputRange(*(s.concrete({"batch": n, "sequence": n}) for n in (1, 2, 4))) for s in specs}
    return Interface(specs, outputs or {"logits": ("batch", 3)}, (Profile("default", ranges),), 18)


def origin(folder: Path, source: str) -> Origin:
    (folder / "net.py").write_text(source, encoding="utf-8")
    return Origin("torch", folder / "net.py", folder, (), "net:factory", None, interface())


@pytest.mark.parametrize("source", [BY_NAME, BY_POSITION], ids=["by name", "by position"])
def test_the_module_runs_in_fp32_and_fp16_alike(tmp_path: Path, source: str) -> None:
    made = origin(tmp_path, source)
    full = pytorch.load(PeerModel("fp32", origin=made)).run(FEEDS)["logits"]
    half = pytorch.load(PeerModel("fp16", origin=made)).run(FEEDS)["logits"]
    assert (full.dtype.name, half.dtype.name) == ("float32", "float16")
    assert np.abs(full - half.astype(np.float32)).max() < 0.01
    assert not np.array_equal(full, half)


def test_the_weights_are_those_that_the_export_sees(tmp_path: Path) -> None:
    from engineworks.model.export.from_torch import load_module

    made = origin(tmp_path, BY_NAME)
    import torch

    module, _ = load_module("net:factory", tmp_path, made.interface, ())
    with torch.no_grad():
        wanted = module(torch.from_numpy(FEEDS["image"]), torch.from_numpy(FEEDS["word"])).numpy()
    assert np.array_equal(pytorch.load(PeerModel("fp32", origin=made)).run(FEEDS)["logits"], wanted)


def test_outputs_are_found_in_a_mapping(tmp_path: Path) -> None:
    session = pytorch.load(PeerModel("fp32", origin=origin(tmp_path, IN_A_MAPPING)))
    assert session.run(FEEDS).keys() == {"logits"}
    assert session.outputs == (TensorSpec("logits", "float32", ("batch", 3)),)


def test_every_run_is_timed_and_tf32_is_off(tmp_path: Path) -> None:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = True
    session = pytorch.load(PeerModel("fp32", origin=origin(tmp_path, BY_NAME)))
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"
    assert session.facts["tf32"] is False
    for copies in (False, True):
        times = session.time_runs(FEEDS, 3, copies=copies)
        assert len(times.host_ms) == 3
        assert len(times.device_ms) in (0, 3)


def test_nothing_is_kept_for_gradients(tmp_path: Path) -> None:
    session = pytorch.load(PeerModel("fp32", origin=origin(tmp_path, BY_NAME)))
    seen: list[bool] = []
    session._module.register_forward_hook(lambda module, given, result: seen.append(result.is_inference()))
    session.time_runs(FEEDS, 2)
    assert seen == [True, True]


def test_what_the_module_raises_is_one_sentence(tmp_path: Path) -> None:
    made = origin(tmp_path, BROKEN_IN_HALF)
    assert pytorch.load(PeerModel("fp32", origin=made)).run(FEEDS)
    session = pytorch.load(PeerModel("fp16", origin=made))
    with pytest.raises(RunError) as caught:
        session.run(FEEDS)
    assert str(caught.value) == "PyTorch failed at image [4, 6], word [4]: AssertionError: only float32 here"
    session.close()
    with pytest.raises(RunError, match="was closed"):
        session.run(FEEDS)


def test_what_the_factory_raises_has_its_place(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"net\.py:2: factory 'net:factory' raised ValueError: no"):
        pytorch.load(PeerModel("fp32", origin=origin(tmp_path, "def factory():\n    raise ValueError('no')\n")))


def test_hugging_face_models_get_the_attention_that_transformers_chooses(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=20
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    specs = tuple(TensorSpec(n, "int64", ("batch", "sequence")) for n in ("input_ids", "attention_mask"))
    said = interface(specs, last_hidden_state=("batch", "sequence", 16))
    made = Origin("huggingface", tmp_path / "bert", tmp_path, (), None, "feature-extraction", said)
    feeds: Any = {"input_ids": np.ones((2, 4), np.int64), "attention_mask": np.ones((2, 4), np.int64)}
    full = pytorch.load(PeerModel("fp32", origin=made))
    assert full.facts["attention"] == "sdpa"
    assert full.run(feeds)["last_hidden_state"].shape == (2, 4, 16)
    assert pytorch.load(PeerModel("fp16", origin=made)).run(feeds)["last_hidden_state"].dtype == np.float16
