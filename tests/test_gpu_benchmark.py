"""What the GPU benchmark makes of figures: a limit that could not be taken is missed, never passed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("gpu_benchmark", BENCHMARKS / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("gpu_candidates", None)


def result(**rows: tuple[float, float | None]) -> dict[str, Any]:
    named = {name.replace("_", " "): {"host_ms_p50": h, "device_ms_p50": d} for name, (h, d) in rows.items()}
    return {"rows": named, "cost_ratio": {}}


def verdicts(gpu: Any, results: dict[str, Any]) -> dict[str, tuple[float | None, bool]]:
    return {what: (figure, holds) for what, figure, _, holds in gpu.evaluate_limits(results)}


def test_speed_ups_are_held_against_their_limits(gpu: Any) -> None:
    rows = result(**{gpu.GRAPH: (0.13, 0.12), "PyTorch fp32": (1.6, None), "ORT fp16": (0.3, None)})
    found = verdicts(gpu, {"bert-mini/single": rows})
    figure, holds = found["bert-mini single: engine fp16 + graph over PyTorch fp32"]
    assert holds
    assert figure == pytest.approx(12.3, abs=0.05)
    assert found["bert-mini single: engine fp16 + graph over ORT fp16"][1] is False


def test_a_peer_that_failed_leaves_its_limit_missed(gpu: Any) -> None:
    rows = result(**{gpu.GRAPH: (0.13, 0.12)})
    rows["rows"]["ORT fp16"] = {"failed": "no CUDA provider"}
    assert verdicts(gpu, {"bert-mini/single": rows}) == {
        "bert-mini single: engine fp16 + graph over PyTorch fp32": (None, False),
        "bert-mini single: engine fp16 + graph over ORT fp16": (None, False),
    }


def test_an_engine_is_held_against_the_loop_by_the_devices_clock(gpu: Any) -> None:
    found = verdicts(gpu, {"any/single": result(engine_fp16=(1.0, 0.50), loop_fp16=(1.5, 0.505))})
    assert list(found.values()) == [(pytest.approx(0.0099, abs=1e-4), True)]
    found = verdicts(gpu, {"any/single": result(engine_fp16=(1.0, None), loop_fp16=(1.5, None))})
    assert [holds for _, holds in found.values()] == [False]


def test_what_measuring_costs_is_judged_where_the_build_says_it(gpu: Any) -> None:
    one = result() | {"cost_ratio": {"fp16": 1.6, "fp32": None}}
    assert verdicts(gpu, {"any/single": one}) == {"any/single: cost of measuring fp16": (1.6, False)}


def test_wrong_outputs_are_told_by_the_worst_output(gpu: Any) -> None:
    import numpy as np

    reference = {"a": np.ones(4), "b": np.arange(4.0)}
    candidate = gpu.Candidate("engine fp16", {"a": np.ones(4), "b": -np.arange(4.0)}, lambda n: None, lambda: None)
    said = gpu._correct(candidate, reference)
    assert said["correct"] is False
    assert said["cosine"] == pytest.approx(-1)
    assert said["max_abs"] == 6
