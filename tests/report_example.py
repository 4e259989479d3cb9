"""A build with everything that a report can show: a failing engine, a failed one, ladders, peers, a sweep, a champion comparison, a trend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from engineworks.builds.blame_result import Blame
from engineworks.builds.calibration_health import CalibrationHealth
from engineworks.builds.comparison import Comparison, ComparisonRow
from engineworks.builds.results import BuildResult, EngineResult, Failure, StepCounts
from engineworks.builds.step_facts import StepFact
from engineworks.measure.accuracy_report import Accuracy
from engineworks.measure.champion_report import ChampionComparison
from engineworks.measure.check import Check
from engineworks.measure.ladder.ladder import Candidate, TargetLadder
from engineworks.measure.latency_report import Latency
from engineworks.measure.layers import Layer, Layers
from engineworks.measure.slices import Slice
from engineworks.measure.sweep import Recommendation
from engineworks.plan.plan import Refused
from engineworks.report.background import Background, Before, ChampionValues, Link, Point
from tests.typed_reports import comparison_json, latency_json, shape_json, sidecar

NOW = 1_795_200_000.0
P50 = {"fp32": 0.182, "fp16": 0.097, "int8": 0.071}
HOSTILE = "<script>document.title='owned'</script> & \"quotes\" | pipes"


def example() -> tuple[BuildResult, Background]:
    """The result and its background."""
    engines = (*(measured(p, "h100") for p in P50), unmeasured(), failed())
    result = BuildResult(
        "classifier", "0123456789abcdef0123456789abcdef", engines,
        (Refused("classifier/fp8/rtx30", "compute capability 8.6 has no fp8; use int8 or fp16 on this target"),),
        StepCounts(9, 4, 1), seconds=83.2, warnings=("int8: 24 samples are few for entropy",), comparison=comparison(),
        calibration=(health(),), ladder=(ladder(),), dag=tuple(dag(engines)),
    )  # fmt: skip
    return result, replace(background(engines), blames={"classifier/int8/h100": blame()})


def measured(precision: str, target: str) -> EngineResult:
    bad = precision == "int8"
    checks = [
        Check("cosine[logits]", "fail" if bad else "pass", f"logits: cosine is {0.981 if bad else 0.99998}, limit 0.99."),
        Check("single.p50_ms", "pass", f"single: median latency is {P50[precision]} ms, budget at most 0.25 ms."),
        Check("regression.latency[single]", "inconclusive" if precision == "fp16" else "pass",
              "single: 1.2% slower than the champion (version 3 of classifier)."),
    ]  # fmt: skip
    verdict: Any = "fail" if bad else "inconclusive" if precision == "fp16" else "pass"
    size = {"fp32": 44, "fp16": 22, "int8": 12}[precision] * 2**20
    return EngineResult(
        f"classifier/{precision}/{target}", verdict, tuple(checks),
        sidecar=sidecar(bytes=size, sha256=precision * 8, build_seconds=12.5, versions={}),
        accuracy=accuracy(precision), latency=latency(precision), champion_comparison=champion_comparison(),
        recommendation=Recommendation(16, "batch 16: 88,000 samples/s at 0.18 ms, within 0.5 ms"),
        layers=layers(precision),
    )  # fmt: skip


def layers(precision: str) -> Layers:
    """int8 runs half of its products without tensor cores, and quantizes in a layer of its own."""
    each = {"fp32": 0.03, "fp16": 0.015, "int8": 0.01}[precision]
    kernels = ("ffma_gemm", "imma_gemm") if precision == "int8" else ("hmma_gemm", "hmma_gemm")
    products = [
        Layer(f"p{i}", "gemm", each, (f"p{i}", f"p{i}/bias"), ("MatMul", "Add"), kernels[i % 2]) for i in range(4)
    ]
    rounding = [Layer("q", "pointwise", 0.01, ("q",), ("QuantizeLinear",))] if precision == "int8" else []
    return Layers("single", 20, "the runtime's profiler", (*products, *rounding, Layer("s", "softmax", 0.01)))


def blame() -> Blame:
    piece = {"tensor": HOSTILE, "error": 0.62, "node": "p1 (MatMul)", "nodes": ["q (QuantizeLinear)", "p1 (MatMul)"]}
    sentence = f"classifier/int8/h100: the lowered ONNX is already wrong in ONNX Runtime: {HOSTILE}"
    return Blame(
        "classifier/int8/h100", "lowered", sentence, ("p1 (MatMul)",), error=0.62, searched_nodes=40, bundle="/a/bundle",
        details=("Alone on fp32's values, p1 has an error of 0.62.",), pieces=(piece,),
    )  # fmt: skip


def unmeasured() -> EngineResult:
    why = Check("accuracy", "unmeasured", "Not run: no NVIDIA GPU here; the target's engines run on 8.9.")
    return EngineResult(
        "classifier/fp16/rtx40", "unmeasured", (why,),
        sidecar=sidecar(bytes=21 * 2**20, sha256="r" * 32, build_seconds=9.0, versions={}),
    )  # fmt: skip


def failed() -> EngineResult:
    message = f"calibration.keep: no node of this model is called 'no-such-node' {HOSTILE}"
    return EngineResult(
        "classifier/int8/rtx40", "failed", (), failure=Failure("classifier/int8/lower", message, "line one\nline <b>two</b>\n")
    )  # fmt: skip


def samples(p50: float, count: int = 900) -> list[float]:
    random = np.random.default_rng(round(p50 * 1e6))
    found = p50 * (1 + np.abs(random.normal(0, 0.02, count)))
    found[:: count // 9] *= 3
    return [round(float(x), 6) for x in found]


def values(p50: float, batch: int) -> dict[str, Any]:
    known = samples(p50)
    return shape_json() | {
        "dims": {"batch": batch}, "latency_ms_p50": p50, "latency_ms_p90": p50 * 1.06, "latency_ms_p99": p50 * 2.8,
        "latency_ms_mean": p50 * 1.04, "median_interval": [p50 * 0.998, p50 * 1.003], "device_ms_p50": p50 * 0.9,
        "device_ms_p99": p50 * 1.2, "copies_ms_p50": p50 * 1.5, "copies_ms_p99": p50 * 3, "first_run_ms": 41.0,
        "throughput_per_s": 1000 * batch / p50, "memory_mib": 310.0 + batch, "runs": len(known), "notes": [],
        "complaints": [], "samples": known, "streams": [],
    }  # fmt: skip


def latency(precision: str) -> Latency:
    p50 = P50[precision]
    sweep = [{**values(p50 * (1 + b / 40), b), "batch": b} for b in (1, 2, 4, 8, 16, 32)]
    bulk = values(p50 * 4, 64) | {"complaints": ["the GPU was throttled: thermal"], "notes": ["p99 is uncertain"]}
    return Latency.from_json(latency_json() | {
        "load_ms": 310.0, "engine_mib": 22.0, "memory_total_mib": 81_000.0, "sweep": sweep,
        "shapes": {"single": values(p50, 1), "bulk": bulk}, "notes": [],
        "device": {"readings": [], "complaints": ["bulk: the GPU was throttled: thermal"]},
    })  # fmt: skip


def accuracy(precision: str) -> Accuracy:
    error = {"fp32": 1e-5, "fp16": 2e-3, "int8": 0.4}[precision]
    output = {"max_abs": error * 9, "mean_abs": error, "cosine": 1 - error / 20, "sqnr_db": 38.0, "nonfinite": 0, "elements": 5970,
              "worst_row": 17, "worst_row_cosine": 1 - error / 5}  # fmt: skip
    record = {"error": error, "most": error, "row": 0, "sample": 1, "cosine": 0.99, "nonfinite": 0, "run": 1}
    visits = [
        {"profile": "default", "role": "opt", "dims": {"batch": b}, "batch": b, "lengths": [], "tour": 1, "first_row": 0,
         "data": "evaluation", "samples": 13, "pool_rows": [], "picks": [], "moved": {}, "runs_before_warm_up": 14, "runs": 14,
         "outputs": {"logits": {"first": [record], "later": [{**record, "most": error * (1 + b / 100)}]}}}
        for b in (1, 8, 64)
    ]  # fmt: skip
    metric = {"name": "top1", "kind": "labels", "samples": 597, "lower_is_better": False, "engine": 0.99 - error / 9,
              "reference": 0.99, "ratio": 1 - error / 9}  # fmt: skip
    metric["slices"] = [
        Slice("bright", 400, 0.99, 0.99, 1.0, 0.992, 1.01, 0.98, 1.0).to_json(),
        Slice(HOSTILE, 197, 0.3, 0.99, 0.3, 0.25, 0.36, 0.24, 0.37).to_json(),
        Slice("rare", 2, None, None, None, 0, 1, why="only one class").to_json(),
    ]
    served = {"precision": precision, "sequence": visits, "failures": [], "rows": {"logits": {"tested": True, "samples": 13}},
              "reference": {"of": "fp32", "why": "", "mode": "rows", "mixing": {}}, "lost": [], "notes": [], "session": [],
              "seconds": 1.0, "processor_seconds": 1.0}  # fmt: skip
    return Accuracy.from_json(
        {"outputs": {"logits": output}, "metric": metric, "samples": 597, "batches": [64], "served": served}
    )


def champion_comparison() -> ChampionComparison:
    shape = {"verdict": "pass", "ratio": 1.012, "interval": [1.004, 1.021], "rounds": 14}
    blocks = {"single": [{"order": "ABBA", "ms": [[1.0], [1.0], [1.0], [1.0]]}]}
    quiet = {"loaded": ["champion", "candidate"], "disturbances": [], "log_ratios": {"single": 0.01}, "blocks": blocks}
    attempt = {"seconds": 9.0, "shapes": {"single": shape}, "rounds": [quiet | {"disturbances": ["clock"]}, quiet]}
    report = comparison_json(shapes={"single": shape}, attempts=[attempt])
    report["champion"] |= {"model": "classifier", "version": "3"}
    return ChampionComparison.from_json(report)


def comparison() -> Comparison:
    def row(name: str, framework: str, precision: str, p50: float | None, **more: Any) -> ComparisonRow:
        known = {"latency_ms_p50": p50, "latency_ms_p99": p50 * 2, "throughput_per_s": 1000 / p50, "memory_mib": 900.0,
                 "load_ms": 210.0, "cosine": {"logits": 0.99999}, "right": True, "speedup": 1.61 / p50} if p50 else {}  # fmt: skip
        return ComparisonRow(name, framework, precision, "single", dims={"batch": 1}, **known, **more)

    rows = [row(f"{p}/h100", "TensorRT-RTX engine, h100", p, ms, engine=True) for p, ms in P50.items()]
    rows += [row("pytorch-fp32", "PyTorch eager, CUDA", "fp32", 1.61)]
    rows += [row("ort-cuda-fp32", "ONNX Runtime, CUDA", "fp32", None, note="libcudnn.so.9 is missing")]
    return Comparison("PyTorch eager fp32", ("single",), tuple(rows))


def health() -> CalibrationHealth:
    known: dict[str, Any] = {
        "step": "classifier/int8/calibrate", "method": "entropy", "samples": 24, "provider": "CPU", "tensors": 4,
        "constants": [], "empty": [], "data": {"sha256": "0" * 64, "samples": 24, "of": 24}, "saturated": {"mean": 1e-4, "largest": {"relu": 4e-4}},
        "unused": {"mean": 0.6, "largest": {"image": 0.93, "relu": 0.5}}, "moved": {"mean": 0.01, "largest": {"view": 0.02}},
        "warnings": ["24 samples are few for entropy"], "inputs": {"image": {
            "dtype": "float32", "samples": 24, "minimum": 0.0, "maximum": 1.0, "mean": 0.3, "std": 0.37, "nonfinite": 0,
        }},
    }  # fmt: skip
    return CalibrationHealth.from_json(known)


def ladder() -> TargetLadder:
    candidates = [
        Candidate("fp16", "pass", "classifier/fp16/h100", latency_ms=0.097, bytes=22 * 2**20, quality=0.9998, chosen=True, pareto=True),
        Candidate("fp32", "pass", "classifier/fp32/h100", latency_ms=0.182, bytes=44 * 2**20, quality=1.0, dropped="is slower than fp16"),
        Candidate("int8", "fail", "classifier/int8/h100", latency_ms=0.071, bytes=12 * 2**20, quality=0.95, dropped="fails its gate"),
    ]  # fmt: skip
    return TargetLadder("h100", tuple(candidates), "measured", "single")


def dag(engines: tuple[EngineResult, ...]) -> Iterator[StepFact]:
    """A step of each kind, with all the states that there are."""
    yield StepFact("classifier/export", "export", "export", "reused", 0.0, "", ())
    yield StepFact("classifier/fold", "fold", "fold", "reused", 0.0, "", ("export",))
    yield StepFact("classifier/reference", "reference", "reference", "run", 3.2, "file labels changed", ("fold",))
    for precision in P50:
        state: Any = "failed" if precision == "int8" else "run"
        yield StepFact(
            f"classifier/{precision}/lower", "lower", f"lower {precision}", state, 0.4, "never built", ("fold",)
        )
    for engine in engines:
        _, precision, target = engine.id.split("/")
        gone = engine.failure is not None
        key = f"{precision} {target}"
        yield StepFact(f"{engine.id}/build", "build", f"build {key}", "skipped" if gone else "run", 12.5, "never built",
                       (f"lower {precision}",))  # fmt: skip
        word: Any = "needs another GPU" if engine.latency is None else "run"
        for kind, inputs in (("compare", (f"build {key}", "reference")), ("measure", (f"build {key}",))):
            yield StepFact(
                f"{engine.id}/{kind}", kind, f"{kind} {key}", word, 4.0 * (word == "run"), "never built", inputs
            )


def points(precision: str, count: int = 24) -> tuple[Point, ...]:
    """A build a night; the driver and then the model change on the way."""
    random = np.random.default_rng(len(precision))
    found = []
    for i in range(count):
        versions = {"tensorrt_rtx": "1.6.1" if i >= 15 else "1.5.0", "driver": "580.159" if i >= 8 else "570.86",
                    "model": "8c1f02ab" if i >= 20 else "77aa01fe"}  # fmt: skip
        p50 = P50[precision] * (1 + 0.02 * random.normal()) * (1.15 if i < 15 else 1)
        found.append(
            Point(f"run{i}", NOW - (count - 1 - i) * 86400, "fail" if precision == "int8" and i > 20 else "pass", f"d{i}",
                  {"single": p50}, 0.99 - 0.001 * (i >= 20), 0.9999, 22 * 2**20 * (0.97 if i >= 15 else 1), versions)
        )  # fmt: skip
    return tuple(found)


def background(engines: tuple[EngineResult, ...]) -> Background:
    known = {f"classifier/{p}/h100": points(p) for p in P50}
    passport = {
        "recipe": {"sha256": "b41fdf0d" * 8, "changed": []}, "versions": {"engineworks": "0.1.0", "tensorrt_rtx": "1.6.1"},
        "digests": {"export": {"model.onnx": "310e8d81" * 8}, "reference": {"evaluation": "861ab9cf" * 8}},
        "hardware": {"measure": {"gpu": "NVIDIA H100", "driver": "580.159", "cuda": "13.0"}},
    }  # fmt: skip
    changes = (
        "classifier/int8/h100: pass → fail: logits: cosine is 0.981, limit 0.99.",
        "classifier/fp16/h100: median 0.11 → 0.097 ms (-12%)",
    )
    return Background(
        at=NOW, description="Intent classifier of the support bot",
        facts={"recipe file": "recipes/classifier.yaml", "commit": "71c9c4e6d8b39703347f057e", "owner": "nlp@example.com",
               "host": "gpu-07"},
        links=(Link("MLflow run", "http://127.0.0.1:5000/#/experiments/1/runs/0123"),),
        passports={e.id: passport for e in engines if e.sidecar},
        resolved={"performance": {"budget": {"single": {"p50_ms": 0.25}}, "sweep": {"latency_ms": 0.25}},
                  "accuracy": {"limits": {"int8": {"cosine": 0.99}}}},
        before=Before("fedc", NOW - 86400, changes, ("model.onnx: other contents (77aa → 8c1f) (export)",)),
        points=known,
        champions={"classifier/fp16/h100": ChampionValues("classifier", "3", known["classifier/fp16/h100"][3])},
        runs={e.id: f"{i:032x}" for i, e in enumerate(engines)},
    )  # fmt: skip
