"""The table of backends and what each module promises."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from engineworks.engines.backends import BACKENDS, backend, backend_facts, builder, runner
from engineworks.engines.backends.base import Builder, Option, Runner, check_options
from engineworks.errors import TargetError


def test_every_backend_of_the_table_can_be_loaded_and_builds() -> None:
    for name in BACKENDS:
        assert builder(name) is backend(name)


def test_only_a_backend_that_runs_engines_is_a_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(runner(name) is not None for name in BACKENDS)
    assert backend_facts("onnxruntime").why_not_run(()) is None
    monkeypatch.delattr("engineworks.engines.backends.tensorrt.load")
    assert runner("tensorrt") is None
    assert "not yet run" in str(backend_facts("tensorrt").why_not_run(("8.6",)))


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backends_functions_have_the_signatures_of_their_protocols(name: str) -> None:
    module = backend(name)
    for protocol in (Builder, Runner):
        for function in ("why_not_build", "build", "why_not_run", "load", "memory_meter", "device_watch"):
            if hasattr(module, function) and hasattr(protocol, function):
                wanted = list(inspect.signature(getattr(protocol, function)).parameters)[1:]
                assert list(inspect.signature(getattr(module, function)).parameters) == wanted


def test_an_unknown_backend_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(TargetError, match="unknown backend 'tensorrt_rtz'; did you mean 'tensorrt_rtx'"):
        backend("tensorrt_rtz")


def test_facts_come_from_package_metadata() -> None:
    facts = backend_facts("onnxruntime")
    assert facts.version is not None
    assert facts.version.startswith("1.")
    assert facts.libraries == ("onnxruntime",)
    assert backend_facts("tensorrt").needs_gpu_to_build


def test_reading_the_table_and_its_facts_imports_no_heavy_library() -> None:
    script = """
import sys
from engineworks.engines.backends import BACKENDS, backend_facts, builder
for name in BACKENDS:
    backend_facts(name).hardware(), builder(name)
heavy = {"numpy", "onnx", "onnxruntime", "tensorrt_rtx", "tensorrt", "torch", "mlflow", "prefect"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else 0)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


OPTIONS = {
    "level": Option(int, "how hard to try"),
    "fast": Option(bool, "whether to hurry"),
    "mode": Option(str, "the way", ("plain", "fancy")),
}


def test_options_that_a_backend_has_pass() -> None:
    check_options("Test", {"level": 3, "fast": False, "mode": "fancy"}, OPTIONS)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"levl": 3}, "unknown option 'levl' of Test; did you mean 'level'"),
        ({"level": "3"}, "option 'level' of Test is '3': a whole number is asked for; how hard to try"),
        ({"level": True}, "option 'level' of Test is True: a whole number is asked for"),
        ({"level": -1}, "option 'level' of Test is -1: it cannot be negative"),
        ({"fast": 1}, "option 'fast' of Test is 1: true or false is asked for"),
        ({"mode": "odd"}, "option 'mode' of Test is 'odd': one of plain, fancy; the way"),
    ],
)
def test_options_that_it_does_not_have_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(TargetError) as caught:
        check_options("Test", given, OPTIONS)
    assert str(caught.value).startswith(said)
