"""PyTorch factories → ONNX. Runs where torch and onnxscript are installed (make test-torch)."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from engineworks.errors import ExportError, ModelError
from engineworks.model.export.from_torch import export_torch
from engineworks.model.export.interface import ExportReport, Interface
from engineworks.tensors import Dim, InputRange, Profile, TensorSpec

pytestmark = pytest.mark.torch

CNN = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.features = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU())
        self.classifier = torch.nn.Linear(4, 3)

    def forward(self, image):
        return self.classifier(self.features(image).mean((2, 3)))

def factory():
    return Net()
"""

IMAGES: dict[str, tuple[Dim, ...]] = {"image": ("batch", 1, 8, 8)}


@pytest.fixture(autouse=True)
def _same_imports() -> Iterator[None]:
    modules, finders, path = set(sys.modules), list(sys.meta_path), list(sys.path)
    yield
    sys.meta_path[:], sys.path[:] = finders, path
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in ("net", "parts"):
            del sys.modules[name]


def interface(
    inputs: dict[str, tuple[Dim, ...]], outputs: dict[str, tuple[Dim, ...]],
    dims: dict[str, tuple[int, int, int]], *, opset: int = 18, dtype: str = "float32",
) -> Interface:  # fmt: skip
    specs = tuple(TensorSpec(name, dtype, shape) for name, shape in inputs.items())
    ranges = {s.name: InputRange(*(s.concrete({d: r[i] for d, r in dims.items()}) for i in range(3))) for s in specs}
    return Interface(specs, outputs, (Profile("default", ranges),), opset)


class Bench:
    """A recipe's folder with one factory module, and a folder for the result."""

    def __init__(self, root: Path) -> None:
        self.root, self.out = root / "recipes", root / "out"
        self.root.mkdir()
        self.out.mkdir()

    def write(self, source: str) -> None:
        (self.root / "net.py").write_text(source, encoding="utf-8")

    def export(self, source: str, said: Interface, **options: Any) -> ExportReport:
        self.write(source)
        return export_torch("net:factory", self.root, said, self.out, **options)

    @property
    def model(self) -> onnx.ModelProto:
        return onnx.load(self.out / "model.onnx")

    def run(self, feeds: dict[str, Any]) -> list[Any]:
        session = onnxruntime.InferenceSession(str(self.out / "model.onnx"), providers=["CPUExecutionProvider"])
        return list(session.run(None, feeds))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def images(opset: int = 18) -> Interface:
    return interface(IMAGES, {"logits": ("batch", 3)}, {"batch": (1, 4, 16)}, opset=opset)


def shapes(model: onnx.ModelProto) -> dict[str, list[Any]]:
    ends = [*model.graph.input, *model.graph.output]
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in ends}


def test_inputs_outputs_and_dimensions_have_the_names_of_the_recipe(bench: Bench) -> None:
    report = bench.export(CNN, images())
    assert shapes(bench.model) == {"image": ["batch", 1, 8, 8], "logits": ["batch", 3]}
    assert report.exporter == "torch.onnx (dynamo)"
    assert report.files == ("model.onnx",)
    assert "torch" in report.versions


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_model_computes_what_the_module_does_at_every_batch(bench: Bench, batch: int) -> None:
    import torch

    bench.export(CNN + "\n\ntorch.manual_seed(3)\nNET = Net().eval()\ndef factory(): return NET\n", images())
    x = np.random.default_rng(1).standard_normal((batch, 1, 8, 8)).astype(np.float32)
    with torch.no_grad():
        expected = sys.modules["net"].NET(torch.from_numpy(x)).numpy()
    assert np.allclose(bench.run({"image": x})[0], expected, atol=1e-5)


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
def test_the_asked_opset_is_had(bench: Bench, opset: int) -> None:
    bench.export(CNN, images(opset))
    assert [o.version for o in bench.model.opset_import if o.domain == ""] == [opset]


@pytest.mark.parametrize("opset", [13, 18])
def test_both_exporters_name_nodes_by_the_module_they_come_from(bench: Bench, opset: int) -> None:
    bench.export(CNN, images(opset))
    names = [n.name for n in bench.model.graph.node]
    assert "features/0/Conv" in names
    assert any(n.startswith("classifier/") for n in names)
    assert len(set(names)) == len(names)


def test_weights_keep_the_names_of_the_module(bench: Bench) -> None:
    bench.export(CNN, images())
    assert "features.0.weight" in {t.name for t in bench.model.graph.initializer}


@pytest.mark.parametrize("opset", [13, 18])
def test_the_same_factory_gives_the_same_bytes_in_every_process(bench: Bench, tmp_path: Path, opset: int) -> None:
    """Both exporters, a warm process and cold ones; random weights are drawn from one seed."""
    digests = set()
    for _ in range(2):
        bench.export(CNN, images(opset))
        digests.add(hashlib.sha256((bench.out / "model.onnx").read_bytes()).hexdigest())
    code = (
        "import json, sys; from pathlib import Path; from engineworks.model.export.from_torch import export_torch; "
        "from engineworks.model.export.interface import interface_from_json; "
        "export_torch('net:factory', Path(sys.argv[1]), interface_from_json(json.loads(sys.argv[3])), Path(sys.argv[2]))"
    )
    arguments = [str(bench.root), str(bench.out), json.dumps(images(opset).to_json())]
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, env=env, cwd=tmp_path, capture_output=True)
    digests.add(hashlib.sha256((bench.out / "model.onnx").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_nothing_of_this_machine_is_left_in_the_file(bench: Bench) -> None:
    bench.export(CNN, images())
    content = (bench.out / "model.onnx").read_bytes()
    assert str(bench.root).encode() not in content
    assert b"site-packages" not in content


def test_an_output_named_like_an_inner_value_gives_a_model_that_checks(bench: Bench) -> None:
    """The trap: torch's own renaming writes the name twice."""
    bench.export(CNN, images())
    inner = [o for n in bench.model.graph.node for o in n.output if o != "logits"]
    for name in inner[:3]:
        bench.export(CNN, interface(IMAGES, {name: ("batch", 3)}, {"batch": (1, 4, 16)}))
        onnx.checker.check_model(bench.model, full_check=True)
        assert shapes(bench.model)[name] == ["batch", 3]


def test_an_input_named_like_a_weight_gives_a_model_that_checks(bench: Bench) -> None:
    source = CNN.replace("def forward(self, image)", "def forward(self, x)").replace("features(image)", "features(x)")
    bench.export(
        source, interface({"classifier.weight": ("batch", 1, 8, 8)}, {"y": ("batch", 3)}, {"batch": (1, 4, 16)})
    )
    onnx.checker.check_model(bench.model, full_check=True)
    assert "classifier.weight" in shapes(bench.model)


def test_outputs_that_are_one_value_or_an_input_each_get_their_own(bench: Bench) -> None:
    source = """
import torch
class Net(torch.nn.Module):
    def forward(self, x):
        y = x * 2
        return y, y, x
def factory(): return Net()
"""
    bench.export(source, interface({"x": ("n", 2)}, {"a": ("n", 2), "b": ("n", 2), "c": ("n", 2)}, {"n": (1, 2, 3)}))
    onnx.checker.check_model(bench.model, full_check=True)
    a, b, c = bench.run({"x": np.ones((3, 2), np.float32)})
    assert (a[0, 0], b[0, 0], c[0, 0]) == (2, 2, 1)


TWO = """
import torch
class Net(torch.nn.Module):
    def forward(self, mask, ids):
        return {"extra": ids, "sum": (ids + mask).float(), "only_mask": mask.float()}
def factory(): return Net()
"""


def test_inputs_go_to_the_parameters_of_their_name_whatever_their_order(bench: Bench) -> None:
    both: dict[str, tuple[Dim, ...]] = {"ids": ("batch", "sequence"), "mask": ("batch", "sequence")}
    said = interface(both, {"only_mask": ("batch", "sequence"), "sum": ("batch", "sequence")},
                     {"batch": (1, 2, 8), "sequence": (2, 2, 2)}, dtype="int64")  # fmt: skip
    bench.export(TWO, said)
    assert list(shapes(bench.model).values()) == [["batch", "sequence"]] * 4
    only_mask, total = bench.run({"ids": np.full((5, 7), 10), "mask": np.full((5, 7), 3)})
    assert (only_mask[4, 6], total[4, 6]) == (3, 13)


def test_dimensions_of_one_length_stay_apart(bench: Bench) -> None:
    """Height and width have the same lengths in every profile; the model must take others all the same."""
    source = """
import torch
class Net(torch.nn.Module):
    def forward(self, x): return torch.nn.functional.avg_pool2d(x, 2).flatten(1).sum(1, keepdim=True)
def factory(): return Net()
"""
    said = interface({"x": ("n", 1, "h", "w")}, {"y": ("n", 1)}, {"n": (1, 2, 4), "h": (4, 8, 16), "w": (4, 8, 16)})
    bench.export(source, said)
    assert bench.run({"x": np.ones((3, 1, 6, 10), np.float32)})[0].tolist() == [[15.0]] * 3


def test_a_batch_that_the_module_freezes_is_found(bench: Bench) -> None:
    source = """
import torch
class Net(torch.nn.Module):
    def forward(self, x): return x.reshape(4, -1)
def factory(): return Net()
"""
    with pytest.raises((ExportError, ModelError), match=r"shape|output"):
        bench.export(source, interface({"x": ("n", 4)}, {"y": ("n", 4)}, {"n": (1, 4, 8)}))


def test_where_dynamo_fails_torchscript_is_tried_and_the_report_says_so(bench: Bench) -> None:
    source = """
import torch
class Net(torch.nn.Module):
    def forward(self, x):
        return x * 2 if float(x.abs().sum()) >= 0 else x
def factory(): return Net()
"""
    report = bench.export(source, interface({"x": ("n", 2)}, {"y": ("n", 2)}, {"n": (1, 2, 4)}))
    assert report.exporter == "torch.onnx (TorchScript)"
    assert any(n.startswith("torch.onnx (dynamo) failed:") for n in report.notes)
    assert any("may have frozen a choice at net.py:5" in n for n in report.notes)


def test_a_choice_by_value_that_tracing_froze_is_found(bench: Bench) -> None:
    source = """
import torch
class Net(torch.nn.Module):
    def forward(self, x):
        return x * 2 if int(x.shape[0]) + float(x.abs().max() * 0) > 1.5 else x
def factory(): return Net()
"""
    with pytest.raises(ExportError, match="no exporter gave a model"):
        bench.export(source, interface({"x": ("n", 2)}, {"y": ("n", 2)}, {"n": (1, 2, 4)}))


def test_an_input_that_the_model_does_not_use_stays_an_input(bench: Bench) -> None:
    source = """
import torch
class Net(torch.nn.Module):
    def forward(self, x, unused): return x * 2
def factory(): return Net()
"""
    for opset in (13, 18):
        bench.export(
            source, interface({"x": ("n", 2), "unused": ("n", 3)}, {"y": ("n", 2)}, {"n": (1, 2, 4)}, opset=opset)
        )
        assert list(shapes(bench.model)) == ["x", "unused", "y"]


def test_a_module_in_training_mode_is_exported_for_inference(bench: Bench) -> None:
    source = """
import torch
def factory(): return torch.nn.Sequential(torch.nn.Dropout(0.9), torch.nn.BatchNorm1d(4))
"""
    bench.export(source, interface({"x": ("n", 4)}, {"y": ("n", 4)}, {"n": (1, 2, 4)}))
    y = bench.run({"x": np.ones((2, 4), np.float32)})[0]
    assert np.allclose(y, 1, atol=1e-4)


def test_large_weights_go_beside_the_model(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engineworks.model.export.torch_onnx.EXTERNAL_ABOVE_BYTES", 1000)
    source = "import torch\ndef factory(): return torch.nn.Linear(64, 64)\n"
    report = bench.export(source, interface({"x": ("n", 64)}, {"y": ("n", 64)}, {"n": (1, 2, 4)}))
    assert report.files == ("model.onnx", "model.onnx.data")
    assert report.bytes > 64 * 64 * 4
    assert numpy_helper.to_array(bench.model.graph.initializer[0]).any()


def test_a_half_precision_module_keeps_its_dtype(bench: Bench) -> None:
    source = "import torch\ndef factory(): return torch.nn.Linear(8, 8).half()\n"
    bench.export(source, interface({"x": ("n", 8)}, {"y": ("n", 8)}, {"n": (1, 2, 4)}, dtype="float16"))
    assert bench.model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16


EXAMPLES = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(50, 3)
    def forward(self, ids):
        assert int(ids.min()) >= 40 if not torch.compiler.is_compiling() else True
        return self.table(ids)
def factory(): return Net(), %s
"""


def ids() -> Interface:
    return interface({"ids": ("n", "t")}, {"y": ("n", "t", 3)}, {"n": (1, 2, 4), "t": (2, 4, 8)}, dtype="int64")


@pytest.mark.parametrize(
    "given", ["(torch.full((1, 2), 41),)", "{'ids': torch.full((1, 2), 41)}", "torch.full((1, 2), 41)"]
)
def test_example_inputs_of_the_factory_are_used_in_place_of_made_ones(bench: Bench, given: str) -> None:
    bench.export(EXAMPLES % given, ids())
    assert bench.run({"ids": np.full((3, 5), 44)})[0].shape == (3, 5, 3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("(torch.full((1, 2), 41.0),)", r"'ids' is float32\[1, 2\], the recipe says ids: int64\[n, t\]"),
        ("(torch.full((1,), 41),)", r"'ids' is int64\[1\]"),
        ("(torch.full((1, 2), 41), torch.zeros(1))", r"gave 2 example inputs .* the recipe has ids"),
        ("{'id': torch.full((1, 2), 41)}", r"gave 1 example inputs \(id\)"),
    ],
)
def test_example_inputs_that_do_not_fit_the_recipe_are_refused(bench: Bench, given: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        bench.export(EXAMPLES % given, ids())


def test_a_module_that_fails_on_made_inputs_is_told_with_their_shapes(bench: Bench) -> None:
    with pytest.raises(ExportError, match=r"^net\.py:8: the model, called with ids \[1, 2\], raised AssertionError"):
        bench.export(EXAMPLES % "None", ids())


READS = """
import pathlib, torch
HERE = pathlib.Path(__file__).parent
def factory():
    net = torch.nn.Linear(2, 2)
    %s
    return net
"""


def linear() -> Interface:
    return interface({"x": ("n", 2)}, {"y": ("n", 2)}, {"n": (1, 2, 4)})


@pytest.mark.parametrize("kind", ["torch", "safetensors", "numpy"])
def test_a_file_that_the_factory_reads_must_be_declared(bench: Bench, kind: str) -> None:
    import torch

    net, path = torch.nn.Linear(2, 2), bench.root / "weights.bin"
    if kind == "torch":
        torch.save(net.state_dict(), path)
        code = "net.load_state_dict(torch.load(HERE / 'weights.bin'))"
    elif kind == "numpy":
        np.save(bench.root / "weights.bin.npy", np.ones(2))
        path = bench.root / "weights.bin.npy"
        code = "import numpy; numpy.load(HERE / 'weights.bin.npy', mmap_mode='r')"
    else:
        safetensors = pytest.importorskip("safetensors.torch")
        safetensors.save_file(net.state_dict(), path)
        code = "from safetensors.torch import load_file; net.load_state_dict(load_file(HERE / 'weights.bin'))"
    with pytest.raises(ExportError) as caught:
        bench.export(READS % code, linear())
    assert str(caught.value) == (
        f"the factory read '{path.name}', which model.files does not list; list it so that a change rebuilds"
    )
    bench.export(READS % code, linear(), files=[path])


def test_modules_that_the_factory_imports_need_not_be_declared(bench: Bench) -> None:
    (bench.root / "parts").mkdir()
    (bench.root / "parts" / "sizes.py").write_text("WIDTH = 2")
    bench.export(
        "import torch\nfrom parts.sizes import WIDTH\ndef factory(): return torch.nn.Linear(WIDTH, 2)", linear()
    )


def test_a_module_imported_by_a_computed_name_must_be_declared(bench: Bench) -> None:
    (bench.root / "parts").mkdir()
    (bench.root / "parts" / "sizes.py").write_text("WIDTH = 2")
    code = "import importlib; importlib.import_module('parts.' + 'sizes')"
    with pytest.raises(ExportError, match=r"the factory read 'parts/sizes\.py'"):
        bench.export(READS % code, linear())


def test_what_the_factory_raises_is_told_at_its_own_line_with_the_traceback_in_the_log(bench: Bench) -> None:
    with pytest.raises(ExportError) as caught:
        bench.export("def helper():\n    return {}['width']\ndef factory():\n    return helper()\n", linear())
    assert str(caught.value) == "net.py:2: factory 'net:factory' raised KeyError: 'width'"
    assert "in factory" in caught.value.log


@pytest.mark.parametrize(
    ("returned", "what"), [("torch.nn.Linear", "the class Linear"), ("None", "a NoneType"), ("{}", "a dict")]
)
def test_what_is_no_module_is_refused(bench: Bench, returned: str, what: str) -> None:
    with pytest.raises(ModelError, match=f"returned {what}, not a torch.nn.Module"):
        bench.export(f"import torch\ndef factory(): return {returned}", linear())


def test_outputs_that_do_not_fit_the_recipe_are_refused(bench: Bench) -> None:
    with pytest.raises(
        ModelError, match=r"output 'logits' of the model has shape \[1, 3\] at batch=1; the recipe says \[batch, 10\]"
    ):
        bench.export(CNN, interface(IMAGES, {"logits": ("batch", 10)}, {"batch": (1, 4, 16)}))
    with pytest.raises(ModelError, match=r"returns 1 values, the recipe names 2 outputs \(a, b\)"):
        bench.export(CNN, interface(IMAGES, {"a": ("batch", 3), "b": ("batch", 3)}, {"batch": (1, 4, 16)}))
    both: dict[str, tuple[Dim, ...]] = {"ids": ("n",), "mask": ("n",)}
    with pytest.raises(ModelError, match="no output 'total'; its outputs are: extra, sum, only_mask"):
        bench.export(TWO, interface(both, {"total": ("n",)}, {"n": (1, 2, 3)}, dtype="int64"))


def test_a_module_whose_outputs_are_random_is_exported_and_the_report_says_what_was_not_compared(bench: Bench) -> None:
    source = """
import torch
class Net(torch.nn.Module):
    def forward(self, x): return x + torch.rand_like(x)
def factory(): return Net()
"""
    report = bench.export(source, linear())
    assert "two runs of the module differ: its outputs were not compared" in report.notes
