"""Engines on a GPU against PyTorch and ONNX Runtime, side by side in one run, with every output checked.

    python benchmarks/gpu.py [--target h100] [--out FILE] [--seconds 0.25] [--rounds 7] [--case bert-mini/single]

Builds recipes/bert-mini.yaml and recipes/resnet50.yaml for the target through `engineworks build` (what the store has
is not built again), then times: engines fp32, fp16 and fp16 in a CUDA graph, PyTorch eager and ONNX Runtime in fp32 and
fp16, and the same engine by a loop that knows nothing of ours. Candidates take turns, so that a drifting clock is
everyone's. fp32 means fp32 for all: TF32 is off, for each by its own switch. Writes
results/GPU-DATE.json; the limits come last. Exit 1 if an output is wrong or a limit is missed.
`--target cpu` tries the script where there is no GPU: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from gpu_candidates import Arrays, Candidate, engine, independent_gpu, onnxruntime, pytorch

from engineworks.engines.engine_session import runner_of
from engineworks.host.file_digests import FileDigests
from engineworks.host.packages import installed_version
from engineworks.measure.latency_report import Latency
from engineworks.model.onnx_files import MODEL_FILE
from engineworks.plan.plan import Plan, plan_recipe
from engineworks.recipe.load import load_recipes
from engineworks.recipe.samples import feeds_at, samples_from_json
from engineworks.settings import read_settings
from engineworks.store.shared import open_store
from engineworks.store.store import Store
from engineworks.tensors import spec_from_json

ROOT = Path(__file__).parents[1]
CASES = (("bert-mini", "single"), ("resnet50", "bulk"), ("resnet50", "single"), ("bert-mini", "bulk"))
GRAPH, FP16, FP32 = "engine fp16 + graph", "engine fp16", "engine fp32"
WARM_UP_S = 3.0
"""Longest wait for specialized kernels, which TensorRT-RTX swaps in after the first runs."""

COSINE = {"fp32": 0.9999, "fp16": 0.999}
"""Smallest cosine with the fp32 reference by ONNX Runtime on the CPU."""

WANTED = (
    ("bert-mini", "single", GRAPH, "PyTorch fp32", 8.0),
    ("bert-mini", "single", GRAPH, "ORT fp16", 3.0),
    ("resnet50", "bulk", FP16, "ORT fp16", 1.8),
    ("resnet50", "bulk", FP16, "PyTorch fp16", 1.8),
)
MOST_APART, MOST_COST = 0.02, 1.5


@dataclass(frozen=True)
class Case:
    """One recipe at one named shape, with all that the store has of it by precision."""

    recipe: str
    shape: str
    factory: str
    target: Mapping[str, Any]
    feeds: Arrays
    engines: Mapping[str, Path]
    models: Mapping[str, Path]
    folded: Path
    measured: Mapping[str, Mapping[str, Any]]


def build(target: str, recipes: Iterable[str]) -> None:
    """The main job, by the command that users give."""
    for recipe in recipes:
        command = [sys.executable, "-c", "from engineworks.cli import main; main()", "build", f"recipes/{recipe}.yaml",
                   "--only", f"*/fp*/{target}"]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, check=False)
        if done.returncode not in (0, 1, 3):  # a verdict that is no pass is still built and measured
            raise SystemExit(f"{' '.join(command)}: exit {done.returncode}")


def cases(target: str, chosen: Sequence[tuple[str, str]]) -> Iterator[Case]:
    settings = read_settings()
    store = open_store(settings)
    digests = FileDigests(settings.artifacts / "digests.db")
    for recipe, shape in chosen:
        (loaded,) = load_recipes([ROOT / f"recipes/{recipe}.yaml"], data_roots=settings.data_roots)
        yield _case(plan_recipe(loaded, store, digests, only=f"*/fp*/{target}"), store, shape)


def _case(plan: Plan, store: Store, shape: str) -> Case:
    recipe, engines, models, measured = plan.loaded.recipe, {}, {}, {}
    for one in plan.engines:
        built = plan.steps[one.steps["build"]]
        lowered = plan.steps[built.inputs["lower"]]
        engines[one.precision], models[one.precision] = _folder(store, built.key), _folder(store, lowered.key)
        folded = _folder(store, lowered.inputs["fold"])
        measured[one.precision] = json.loads((_folder(store, one.steps["measure"]) / Latency.FILE).read_text())
    step = plan.steps[plan.engines[0].steps["measure"]]
    specs = tuple(spec_from_json(s) for s in step.params["inputs"])
    samples = samples_from_json(Path(step.unkeyed["evaluation"]), step.params["samples"])
    feeds = feeds_at(specs, samples, step.params["at"][shape]["dims"])
    assert recipe.model.source.torch is not None
    return Case(
        plan.recipe, shape, recipe.model.source.torch, step.params["target"], feeds, engines,
        {p: f / MODEL_FILE for p, f in models.items()}, folded / MODEL_FILE, measured,
    )  # fmt: skip


def _folder(store: Store, key: str) -> Path:
    artifact = store.get(key)
    if artifact is None:
        raise SystemExit(f"{key[:12]} is not in the store: run engineworks build first, on this host")
    return artifact.path


def candidates(case: Case, device: str) -> Iterator[tuple[str, Callable[[], Candidate]]]:
    """Names and how each is loaded. The loop that knows nothing of ours comes right after the engine it repeats."""
    gpu = device == "cuda"
    module = str(case.target["backend"])
    for precision in ("fp32", "fp16"):
        folder = case.engines[precision]
        yield (
            f"engine {precision}",
            lambda p=precision, f=folder: engine(  # type: ignore[misc]
                f"engine {p}", f, case.target, case.feeds, graphs=False
            ),
        )
        if gpu:
            yield (
                f"loop {precision}",
                lambda p=precision, f=folder: independent_gpu(  # type: ignore[misc]
                    f"loop {p}", f / "engine", module, case.feeds, graphs=False
                ),
            )
        else:
            yield (
                f"loop {precision}",
                lambda p=precision, f=folder: onnxruntime(  # type: ignore[misc]
                    f"loop {p}", f / "engine", case.feeds, device=device
                ),
            )
    if gpu:
        fp16 = case.engines["fp16"]
        yield GRAPH, lambda: engine(GRAPH, fp16, case.target, case.feeds, graphs=True)
        yield (
            "loop fp16 + graph",
            lambda: independent_gpu("loop fp16 + graph", fp16 / "engine", module, case.feeds, graphs=True),
        )
    for precision in ("fp32", "fp16"):
        if gpu or precision == "fp32":
            yield (
                f"PyTorch {precision}",
                lambda p=precision: pytorch(  # type: ignore[misc]
                    f"PyTorch {p}", case.factory, case.feeds, device=device, half=p == "fp16"
                ),
            )
        yield (
            f"ORT {precision}",
            lambda p=precision: onnxruntime(  # type: ignore[misc]
                f"ORT {p}", case.models[p], case.feeds, device=device
            ),
        )


def run_case(case: Case, device: str, seconds: float, rounds: int) -> dict[str, Any]:
    reference = onnxruntime("reference", case.folded, case.feeds, device="cpu").outputs
    loaded, rows, watch = [], {}, runner_of(case.target).device_watch()
    for name, load in candidates(case, device):
        try:
            loaded.append(load())
        except Exception as error:  # noqa: BLE001 - a peer that cannot run is a row that says so
            rows[name] = {"failed": f"{type(error).__name__}: {error}"}
    readings = [dict(watch.sample())]
    try:
        per_turn = {c.name: _runs_for(c, seconds) for c in loaded}
        samples: dict[str, list[Any]] = {c.name: [] for c in loaded}
        for _ in range(rounds):
            for candidate in loaded:
                candidate.time_runs(max(2, per_turn[candidate.name] // 4))
                samples[candidate.name].append(candidate.time_runs(per_turn[candidate.name]))
            readings.append(dict(watch.sample()))
        for c in loaded:
            rows[c.name] = _values(samples[c.name]) | _correct(c, reference) | {"notes": c.notes, "facts": c.facts}
    finally:
        for candidate in loaded:
            candidate.close()
    return {"rows": rows, "device_readings": readings, "complaints": list(watch.complaints(readings))}


def _runs_for(candidate: Candidate, seconds: float) -> int:
    """Warm up until three windows agree within 2 % (or the wait is over); the runs of one turn."""
    begin, middles = time.monotonic(), list[float]()
    while time.monotonic() - begin < WARM_UP_S:
        middles.append(median(candidate.time_runs(max(3, int(100 / middles[-1]) if middles else 3)).host_ms))
        last = middles[-3:]
        if time.monotonic() - begin > 2.0 and len(last) == 3 and max(last) <= 1.02 * min(last):
            break
    return max(5, int(1000 * seconds / middles[-1]))


def _values(turns: list[Any]) -> dict[str, Any]:
    host = [t for turn in turns for t in turn.host_ms]
    device = [t for turn in turns for t in turn.device_ms]
    return {
        "host_ms_p50": median(host),
        "host_ms_p99": float(np.quantile(host, 0.99)),
        "device_ms_p50": median(device) if device else None,
        "host_ms_p50_of_turns": [median(t.host_ms) for t in turns],
        "runs": len(host),
    }


def _correct(candidate: Candidate, reference: Mapping[str, np.ndarray]) -> dict[str, Any]:
    cosines, largest = [], []
    for name, wanted in reference.items():
        a, b = candidate.outputs[name].astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
        cosines.append(float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30)))
        largest.append(float(np.abs(a - b).max()))
    least = COSINE["fp16" if "fp16" in candidate.name else "fp32"]
    return {"cosine": min(cosines), "max_abs": max(largest), "correct": bool(min(cosines) >= least)}


def load_times(case: Case, work: Path) -> dict[str, Any]:
    """Each in a process of its own: without a cache, with an empty one that it fills, and with what that one left."""
    feeds, found = work / f"{case.recipe}-{case.shape}.npz", {}
    np.savez(feeds, **dict[str, Any](case.feeds))
    folder, target = str(case.engines["fp16"]), json.dumps(dict(case.target))
    for kernels in ("lazy", "eager"):
        cache = str(work / f"cache-{case.recipe}-{case.shape}-{kernels}")
        for name, more in (("without", []), ("filling", [cache]), ("with", [cache])):
            command = [sys.executable, str(ROOT / "benchmarks/gpu_load.py"), folder, target, str(feeds), kernels, *more]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            last = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()[-1:]
            text = last[0] if last else "it said nothing"
            found[f"{kernels}, {name} cache"] = json.loads(text) if done.returncode == 0 else {"failed": text}
    return found


def evaluate_limits(results: Mapping[str, Any]) -> Iterator[tuple[str, float | None, str, bool]]:
    """Every wanted limit: what, the figure (None if it could not be taken), the limit, whether it holds."""
    for recipe, shape, ours, theirs, least in WANTED:
        if f"{recipe}/{shape}" not in results:  # --case left it out
            continue
        rows = results[f"{recipe}/{shape}"]["rows"]
        have = "host_ms_p50" in rows.get(ours, {}) and "host_ms_p50" in rows.get(theirs, {})
        ratio = rows[theirs]["host_ms_p50"] / rows[ours]["host_ms_p50"] if have else None
        yield f"{recipe} {shape}: {ours} over {theirs}", ratio, f"≥ {least} ×", ratio is not None and ratio >= least
    for case, result in results.items():
        for name, row in result["rows"].items():
            loop = result["rows"].get(name.replace("engine", "loop"), {})
            if name.startswith("engine") and "host_ms_p50" in row and "host_ms_p50" in loop:
                clock = "device_ms_p50" if row["device_ms_p50"] and loop["device_ms_p50"] else "host_ms_p50"
                apart = abs(row[clock] / loop[clock] - 1)
                what = f"{case}: {name} against the independent loop ({clock.partition('_')[0]})"
                yield what, apart, f"≤ {MOST_APART:.0%}", apart <= MOST_APART
        for name, cost in result["cost_ratio"].items():
            if cost is not None:
                yield f"{case}: cost of measuring {name}", cost, f"≤ {MOST_COST} ×", cost <= MOST_COST


def host_facts(target: Mapping[str, Any]) -> dict[str, Any]:
    libraries = ("tensorrt-rtx", "tensorrt", "onnxruntime", "onnxruntime-gpu", "torch", "transformers", "onnx",
                 "cuda-bindings", "numpy")  # fmt: skip
    from engineworks.engines.backends import backend_facts

    return {
        "hardware": dict(backend_facts(str(target["backend"])).hardware()),
        "versions": {n: v for n in libraries if (v := installed_version(n))},
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="h100")
    parser.add_argument("--out", type=Path, help="default: results/GPU-DATE.json")
    parser.add_argument("--seconds", type=float, default=0.25, help="of one candidate's turn")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each candidate")
    parser.add_argument("--no-build", action="store_true", help="take what the store has")
    parser.add_argument("--case", action="append", metavar="RECIPE/SHAPE", help="only this one; may be repeated")
    given = parser.parse_args()
    chosen = [c for c in CASES if not given.case or "/".join(c) in given.case]
    if not given.no_build:
        build(given.target, dict(chosen))
    results: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        for case in cases(given.target, chosen):
            name = f"{case.recipe}/{case.shape}"
            device = "cpu" if case.target["backend"] == "onnxruntime" else "cuda"
            facts = facts or host_facts(case.target)
            results[name] = run_case(case, device, given.seconds, given.rounds)
            shapes = {p: m["shapes"][case.shape] for p, m in case.measured.items()}
            results[name]["cost_ratio"] = {p: s.get("cost_ratio") for p, s in shapes.items()}
            results[name]["measured_by_the_build"] = {
                p: {k: v for k, v in s.items() if not k.endswith("samples")} for p, s in shapes.items()
            }
            if case.shape == "single":
                results[name]["load"] = load_times(case, Path(work))
            print_case(name, results[name])
    verdicts = list(evaluate_limits(results))
    value = {**facts, "results": results, "limits": [list(v) for v in verdicts]}
    gpu = str(facts["hardware"].get("gpu", "cpu")).lower().replace("nvidia ", "").replace(" ", "-")
    out = given.out or ROOT / f"benchmarks/results/{gpu}-{facts['date']}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(value, indent=1, default=str) + "\n", encoding="utf-8")
    print(f"\n{facts['hardware']}\n{facts['versions']}\nwritten to {out}\n")
    for what, figure, limit, holds in verdicts:
        print(
            f"{'ok    ' if holds else 'MISSED'} {'not taken' if figure is None else f'{figure:9.3f}'} {limit:8} {what}"
        )
    wrong = [f"{c}: {n}" for c, r in results.items() for n, row in r["rows"].items() if row.get("correct") is False]
    for one in wrong:
        print(f"WRONG OUTPUTS {one}")
    return int(bool(wrong) or not all(holds for *_, holds in verdicts))


def print_case(name: str, result: Mapping[str, Any]) -> None:
    base = result["rows"].get("PyTorch fp32", {}).get("host_ms_p50")
    print(f"\n{name}\n  {'':22} {'p50 ms':>9} {'p99 ms':>9} {'GPU p50':>9} {'× eager fp32':>12} {'cosine':>9}")
    for row_name, row in result["rows"].items():
        if "failed" in row:
            print(f"  {row_name:22} {row['failed'][:150]}")
            continue
        gpu = f"{row['device_ms_p50']:9.4f}" if row["device_ms_p50"] else f"{'':9}"
        times = f"{base / row['host_ms_p50']:12.2f}" if base else f"{'':12}"
        print(f"  {row_name:22} {row['host_ms_p50']:9.4f} {row['host_ms_p99']:9.4f} {gpu} {times} {row['cosine']:9.6f}")
        for note in row["notes"]:
            print(f"    {note}")
    for complaint in result["complaints"]:
        print(f"  {complaint}")
    for load_name, load in result.get("load", {}).items():
        if "failed" in load:
            print(f"  load, {load_name}: {load['failed'][:150]}")
        else:
            print(f"  load, {load_name:22} {load['load_ms']:9.1f} ms, first run {load['first_run_ms']:9.1f} ms")


if __name__ == "__main__":
    sys.exit(main())
