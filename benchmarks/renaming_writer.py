"""Whether an engine that runs is the one that was verified, while another process keeps renaming files over it.

The writer exchanges the engine (`one file`), or its weights (`external data`), for ones that answer -1 instead of 1,
thousands of times a second. Every load is refused, or answers; an answer of -1 is an unverified load. `by path`
verifies and then opens the path again: it shows that the race is real. With TensorRT-RTX and a GPU
(`--backend tensorrt_rtx`) the same is done to a plan.

Run: python benchmarks/renaming_writer.py [--loads 1000] [--backend onnxruntime]. Exits 1 after an unverified load.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engineworks.engines.backends import builder, runner
from engineworks.engines.backends.base import BuildReport, BuildRequest, Session
from engineworks.engines.engine_files import check_files
from engineworks.engines.engine_session import load_engine
from engineworks.engines.sidecar import Sidecar
from engineworks.errors import RunError, TrustError
from engineworks.host.file_digests import digest_file
from engineworks.host.gpu import first_gpu
from engineworks.tensors import InputRange, Profile, TensorSpec

RESULTS = Path(__file__).parent / "results"
WIDTH = 256
MOST_WAIT_S = 300
PROFILE = Profile("default", {"x": InputRange((1, WIDTH), (1, WIDTH), (1, WIDTH))})
FEEDS = {"x": np.full((1, WIDTH), 1 / WIDTH, np.float32)}

WRITER = """
import os, sys
place, good, evil = sys.argv[1:]
print("ready", flush=True)
while True:
    for source in (evil, good):
        os.link(source, place + ".new")
        os.rename(place + ".new", place)
"""


def write_model(path: Path, answer: float, *, external: bool) -> None:
    """Write one MatMul whose output is `answer` for `FEEDS`. external: with its weights next to the file."""
    weights = numpy_helper.from_array(np.full((WIDTH, WIDTH), answer, np.float32), "w")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, WIDTH]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [ends[0]], [ends[1]], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, path, save_as_external_data=external, location="engine.data", size_threshold=0)


def make_engine(folder: Path, backend: str, answer: float, *, external: bool) -> None:
    """Write the engine, its sidecar and a manifest of digests, as in an artifact of the store."""
    folder.mkdir()
    if backend == "onnxruntime":
        write_model(folder / "engine", answer, external=external)
    else:
        source = folder.with_name(folder.name + ".onnx")
        write_model(source, answer, external=False)
        gpu, build = first_gpu(), builder(backend)
        assert gpu is not None, "there is no GPU"
        assert build is not None
        build.build(BuildRequest(source, folder, "fp32", (PROFILE,), (gpu.compute_capability,)), lambda _: None)
    x, y = (TensorSpec(n, "float32", (1, WIDTH)) for n in ("x", "y"))
    report, request = BuildReport("engine", (x,), (y,), 0.0, {}), BuildRequest(folder / "engine", folder, "fp32", ())
    sidecar = Sidecar.of(request, report, {}, request.model)
    (folder / sidecar.FILE).write_text(json.dumps(sidecar.to_json()), encoding="utf-8")
    files = {f.name: {"sha256": digest_file(f), "bytes": f.stat().st_size} for f in folder.iterdir()}
    manifest = {"key": "", "step": "t/build", "document": {}, "seconds": 0.0, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def by_path(folder: Path, target: dict[str, Any]) -> Session:
    """Verify, then open the path again."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    check_files(folder, {name: facts["sha256"] for name, facts in manifest["files"].items()})
    run = runner(target["backend"])
    assert run is not None
    return run.load(folder / "engine", {})


def count(load: Callable[[], Session], loads: int) -> dict[str, int]:
    """Load and run until `loads` engines answered. Returns how many answered rightly, and how many tries were
    refused; what else was loaded is `unverified`."""
    outcomes: Counter[str] = Counter(verified=0, unverified=0, refused=0)
    end = time.monotonic() + MOST_WAIT_S
    while outcomes["verified"] + outcomes["unverified"] < loads and time.monotonic() < end:
        try:
            session = load()
        except TrustError:
            outcomes["refused"] += 1
            continue
        except RunError:  # weights of neither engine: only by path
            outcomes["unverified"] += 1
            continue
        right = np.allclose(session.run(FEEDS)["y"], 1.0)
        session.close()
        outcomes["verified" if right else "unverified"] += 1
    return dict(outcomes)


def attack(backend: str, loads: int, *, external: bool) -> dict[str, Any]:
    """Return the outcomes of our loader and of loading by path, each under a writer of its own."""
    exchanged = "engine.data" if external else "engine"
    gpu = first_gpu()
    capability = [gpu.compute_capability] if gpu is not None and backend != "onnxruntime" else []
    target = {"backend": backend, "compute_capability": capability, "options": {}}
    with tempfile.TemporaryDirectory(prefix="engineworks-") as name:
        root = Path(name)
        for which, answer in (("engine", 1.0), ("evil", -1.0)):
            make_engine(root / which, backend, answer, external=external)
        folder, good = root / "engine", root / "good"
        os.link(folder / exchanged, good)
        command = [sys.executable, "-c", WRITER, folder / exchanged, good, root / "evil" / exchanged]
        writer = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            start = time.perf_counter()
            ours = count(lambda: load_engine(folder, target), loads)
            seconds = time.perf_counter() - start
            before = count(lambda: by_path(folder, target), loads // 5)
        finally:
            writer.kill()
            writer.communicate()
    return {"exchanged": exchanged, "engineworks": ours, "by_path": before, "seconds": round(seconds, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", type=int, default=1000)
    parser.add_argument("--backend", default="onnxruntime", choices=["onnxruntime", "tensorrt_rtx"])
    given = parser.parse_args()
    gpu = first_gpu() if given.backend != "onnxruntime" else None
    library = {"onnxruntime": "onnxruntime", "tensorrt_rtx": "tensorrt-rtx"}[given.backend]
    result: dict[str, Any] = {
        "backend": given.backend, "versions": {library: version(library)}, "gpu": gpu.name if gpu else None,
        "loads": given.loads, "attacks": {},
    }  # fmt: skip
    for name, external in (("one file", False), ("external data", True)):
        if external and given.backend != "onnxruntime":
            continue
        result["attacks"][name] = found = attack(given.backend, given.loads, external=external)
        print(f"{given.backend}, {name}: {found}", flush=True)
    place = RESULTS / f"renaming-writer-{'cpu' if gpu is None else 'gpu'}.json"
    place.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(any(found["engineworks"]["unverified"] for found in result["attacks"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
