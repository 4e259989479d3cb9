"""Placement policies of int8 on a GPU: ours, ONNX Runtime's and ModelOpt's Q/DQ, one builder, run side by side.

    python benchmarks/placement.py [--cases minilm,bert-base] [--rounds 5] [--out FILE]

Every contender gets the recipe's folded fp32 model and calibration samples, per channel and symmetric (min-max). Three
have fp32 around what they quantize, so that placement alone differs; beside them ours with attention's products too,
ours as it is built (fp16 around), ModelOpt's own fp16, and fp16 without int8. All are TensorRT-RTX engines in CUDA
graphs with specialized kernels, timed in turns by the device's clock (median over all rounds), each engine's outputs
held against fp32 by ONNX Runtime on the CPU. A contender that does not convert, build or run says so in its row.
Needs an NVIDIA GPU, the recipes' data, and for ModelOpt's rows torch, nvidia-modelopt, lief and onnxslim.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from precision import has_modelopt, quantize_by_modelopt, quantize_by_onnxruntime, versions
from precision_cases import Arrays, Case, folded

from engineworks.engines.backends import tensorrt_rtx
from engineworks.engines.backends.base import BuildRequest, Serving
from engineworks.errors import EngineworksError
from engineworks.host.file_digests import FileDigests
from engineworks.host.gpu import first_gpu
from engineworks.host.packages import installed_version
from engineworks.model.calibrate.collect import collect_ranges
from engineworks.model.calibrate.ranges import Ranges
from engineworks.model.lower.half.half import lower_half
from engineworks.model.lower.half.unquantized import halve_unquantized
from engineworks.model.lower.quantize import name_nodes, quantize, tensors_to_calibrate
from engineworks.plan.plan import plan_recipe
from engineworks.recipe.load import load_recipe
from engineworks.recipe.samples import feeds_at, samples_from_json
from engineworks.store.store import Store
from engineworks.tensors import Profile, profile_from_json, spec_from_json

ROOT = Path(__file__).resolve().parents[1]
JUDGED, RUNS, WARM_UP = 64, 200, 50


class Bench:
    """One recipe: its folded model, samples, profiles and the shapes to time."""

    def __init__(self, recipe: str, folder: Path) -> None:
        loaded = load_recipe(ROOT / "recipes" / f"{recipe}.yaml")
        store = Store(folder / "store")
        plan = plan_recipe(loaded, store, FileDigests(None), only="*/fp16/h100")
        calibration = loaded.files.calibration
        assert calibration is not None
        size = loaded.recipe.calibration.batch
        self.case = Case(
            recipe, folded(plan, store) / "model.onnx", lambda: calibration.batches([size]), calibration.count,
            lambda: iter(()), None, "", loaded.recipe.calibration.keep,
        )  # fmt: skip
        build = next(s for s in plan.steps.values() if s.kind == "build")
        measure = next(s for s in plan.steps.values() if s.kind == "measure")
        self.profiles: tuple[Profile, ...] = tuple(profile_from_json(p) for p in build.params["profiles"])
        specs = tuple(spec_from_json(s) for s in measure.params["inputs"])
        samples = samples_from_json(Path(measure.unkeyed["evaluation"]), measure.params["samples"])
        at: Mapping[str, Any] = measure.params["at"]
        self.feeds = {name: feeds_at(specs, samples, shape["dims"]) for name, shape in at.items()}
        self.judged = next(iter(loaded.files.evaluation.batches([min(JUDGED, self._widest())])))
        self.folder = folder

    def _widest(self) -> int:
        return min(r.max[0] for p in self.profiles[-1:] for r in p.inputs.values())

    def proof(self) -> Iterator[Arrays]:
        return iter([dict(batch) for _, batch in zip(range(4), self.case.calibration(), strict=False)])


def model_of(bench: Bench) -> Any:
    import onnx

    return name_nodes(onnx.load(str(bench.case.model)))


def ranges_of(bench: Bench) -> Ranges:
    tensors = tensors_to_calibrate(model_of(bench))
    return collect_ranges(bench.case.model, bench.case.calibration, tensors, method="minmax")


def ours(bench: Bench, out: Path, *, attention: bool = False, half: bool = False) -> None:
    import onnx

    model = model_of(bench)
    globs = {"int8": ("op:*",) if attention else ("*",)}
    made = quantize(model, ranges_of(bench), globs=globs, keep=bench.case.keep).model
    if half:
        made, _ = halve_unquantized(made, model, "float16", bench.proof())
    onnx.save(made, str(out))


def fp16(bench: Bench, out: Path) -> None:
    import onnx

    onnx.save(lower_half(model_of(bench), "float16", bench.proof())[0], str(out))


def modelopt_half(bench: Bench, out: Path) -> None:
    quantize_by_modelopt(bench.case, "minmax", out, unquantized="fp16")


CONTENDERS: Mapping[str, Callable[[Bench, Path], None]] = {
    "fp16": fp16,
    "engineworks int8, fp16 around": lambda bench, out: ours(bench, out, half=True),
    "engineworks int8, fp32 around": ours,
    "engineworks int8 and attention, fp32 around": lambda bench, out: ours(bench, out, attention=True),
    "engineworks int8 and attention, fp16 around": lambda bench, out: ours(bench, out, attention=True, half=True),
    "onnxruntime int8, fp32 around": lambda bench, out: quantize_by_onnxruntime(bench.case, "minmax", out),
    "modelopt int8, fp32 around": lambda bench, out: quantize_by_modelopt(bench.case, "minmax", out),
    "modelopt int8, fp16 around": modelopt_half,
}


def built(bench: Bench, model: Path) -> Path:
    out = model.with_suffix("")
    out.mkdir()
    gpu = first_gpu()
    assert gpu is not None
    request = BuildRequest(model, out, "int8", bench.profiles, (gpu.compute_capability,), computes=("int8", "fp16"))
    return out / tensorrt_rtx.build(request, lambda _: None).file


def reference(bench: Bench) -> Arrays:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(bench.case.model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(bench.judged)), strict=True))


def cosine(one: Arrays, other: Arrays) -> float | None:
    a, b = (np.concatenate([np.asarray(v[n], np.float64).ravel() for n in other]) for v in (one, other))
    found = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) if np.isfinite(a).all() else np.nan
    return round(found, 5) if np.isfinite(found) else None


def run_case(recipe: str, rounds: int, folder: Path) -> dict[str, Any]:
    bench = Bench(recipe, folder)
    exact = reference(bench)
    rows: dict[str, dict[str, Any]] = {}
    sessions: dict[str, Any] = {}
    for at, (name, make) in enumerate(CONTENDERS.items()):
        if "modelopt" in name and not has_modelopt():
            continue
        began, model = time.perf_counter(), folder / f"{recipe}-{at}.onnx"
        try:
            make(bench, model)
            engine = built(bench, model)
            session = tensorrt_rtx.load(engine, {}, serving=Serving(cuda_graphs=True, kernels="eager"))
            found = session.run(dict(bench.judged))
        except (EngineworksError, RuntimeError, ValueError, TypeError, AttributeError, ImportError) as error:
            rows[name] = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
            print(f"{recipe}: {name}: {rows[name]['failed']}", flush=True)
            continue
        sessions[name] = session
        rows[name] = {
            "cosine": cosine(found, exact), "engine_mib": round(engine.stat().st_size / 2**20, 1),
            "onnx_mib": round(model.stat().st_size / 2**20, 1),
        }  # fmt: skip
        print(f"{recipe}: {name}: {rows[name]}, {time.perf_counter() - began:.0f} s", flush=True)
    for shape, feeds in bench.feeds.items():
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for turn in range(rounds):
            for name, session in sessions.items():
                if not turn:
                    session.time_runs(feeds, WARM_UP)
                times[name].extend(session.time_runs(feeds, RUNS).device_ms)
        for name, values in times.items():
            rows[name][f"{shape}_ms"] = round(median(values), 4)
            print(f"{recipe}: {shape}: {name}: {median(values):.4f} ms", flush=True)
    for session in sessions.values():
        session.close()
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="minilm,bert-base")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    gpu = first_gpu()
    if gpu is None:
        sys.exit("there is no NVIDIA GPU here")
    out = given.out or ROOT / "benchmarks" / "results" / f"placement-{date.today()}.json"
    known = versions() | {"tensorrt_rtx": installed_version("tensorrt_rtx")}
    document: dict[str, Any] = {"gpu": gpu.to_json(), "versions": known, "cases": {}}
    for recipe in given.cases.split(","):
        with tempfile.TemporaryDirectory() as folder:
            document["cases"][recipe] = run_case(recipe, given.rounds, Path(folder))
        out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
