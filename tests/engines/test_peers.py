"""The peers' table, and what each says of a host that cannot run it."""

from __future__ import annotations

import os

import pytest

from engineworks.engines.peers import PEERS, ort_cpu, ort_cuda, peer, pytorch, read_names
from engineworks.engines.peers.ort_cuda import kept_stderr
from engineworks.errors import InputError
from engineworks.host import gpu
from engineworks.host.gpu import Gpu

GPU = Gpu("NVIDIA Test", "9.0", "600.1", "13.0")


def test_names_come_in_the_order_of_the_table_each_once() -> None:
    assert read_names(" ort-cpu,pytorch, ort-cpu") == ("pytorch", "ort-cpu")
    assert read_names(None) == read_names("") == ()


def test_an_unknown_name_is_bad_input_with_the_nearest_known_one() -> None:
    with pytest.raises(InputError) as caught:
        read_names("ort-cpu,pytorc")
    assert str(caught.value) == "--compare: unknown peer 'pytorc'; did you mean 'pytorch'?"


def test_every_peer_says_what_its_figures_depend_on() -> None:
    for name in PEERS:
        module = peer(name)
        assert module.TITLE
        assert "fp32" in module.precisions(("int8",))
        assert "processor" in module.hardware()


def test_the_cpu_computes_in_fp16_only_where_the_recipe_asks() -> None:
    assert ort_cpu.precisions(("fp32", "int8")) == ("fp32",)
    assert ort_cpu.precisions(("fp32", "fp16")) == ("fp32", "fp16")


def test_without_a_gpu_or_the_package_the_cuda_peer_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_cuda, "first_gpu", lambda: None)
    assert ort_cuda.why_not("onnx", "fp16") == "no NVIDIA GPU is visible here"
    monkeypatch.setattr(ort_cuda, "first_gpu", lambda: GPU)
    monkeypatch.setattr(ort_cuda, "installed_versions", lambda names: dict.fromkeys(names))
    assert "pip install onnxruntime-gpu" in (ort_cuda.why_not("onnx", "fp16") or "")
    monkeypatch.setattr(ort_cuda, "installed_versions", lambda names: dict.fromkeys(names, "1.31.1"))
    assert ort_cuda.why_not("onnx", "fp16") is None
    monkeypatch.setattr(gpu, "first_gpu", lambda: GPU)
    assert ort_cuda.hardware()["gpu"] == "NVIDIA Test"


def test_pytorch_needs_a_module_and_says_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pytorch.why_not("onnx", "fp32") == "the recipe's source is onnx: there is no PyTorch module to run"
    monkeypatch.setattr(pytorch.importlib.util, "find_spec", lambda name: None if name == "torch" else name)
    assert pytorch.why_not("torch", "fp32") == "torch cannot be imported here; pip install 'engineworks[torch]'"
    monkeypatch.setattr(pytorch.importlib.util, "find_spec", lambda name: name)
    assert pytorch.why_not("huggingface", "fp32") is None


@pytest.mark.parametrize(
    ("gpu", "flags", "runs"),
    [(None, "avx2 avx512f", False), (None, "avx2 avx512_fp16", True), (GPU, "avx2", True)],
    ids=["no fp16 anywhere", "processor", "GPU"],
)
def test_pytorch_computes_in_fp16_only_where_something_can(
    monkeypatch: pytest.MonkeyPatch, gpu: Gpu | None, flags: str, runs: bool
) -> None:
    monkeypatch.setattr(pytorch.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(pytorch, "first_gpu", lambda: gpu)
    monkeypatch.setattr(pytorch.cpu, "read_text", lambda path: f"processor : 0\nflags : fpu {flags}\n")
    assert pytorch.why_not("torch", "fp16") == (None if runs else pytorch.NO_HALF)
    assert pytorch.why_not("torch", "fp32") is None


def test_what_libraries_write_on_descriptor_2_is_kept_and_handed_on(capfd: pytest.CaptureFixture[str]) -> None:
    with kept_stderr() as read:
        os.write(2, "libcudnn.so.9: cannot open — oh\n".encode())
        assert read() == "libcudnn.so.9: cannot open — oh\n"
        assert capfd.readouterr().err == ""
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "libcudnn.so.9: cannot open — oh\nafter\n"
