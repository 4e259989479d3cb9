"""Processor time of a cold build of ResNet-50 in int8 for the CPU, next to the quantizer that Olive calls.

    python benchmarks/cold_resnet.py [--runs 3] [--out benchmarks/results/cold-resnet-cpu.json]

Both get the same model (torchvision's architecture, random weights) and the same 16 images, each run in a new process.
Engineworks: the whole command `engineworks build` with empty artifacts, its server and children included. The other:
ONNX Runtime's `quant_pre_process` and `quantize_static`, as Olive 0.13's pass OnnxStaticQuantization calls them; Olive
itself adds its own imports, among them PyTorch. `parts_s` divides a build's time: its steps by the last line of their
logs; the rest is the command, Prefect's server, the starts of children and the record in MLflow.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from calibration import ResNet50, images

ROOT = Path(__file__).parents[1]
PROGRAM = Path(sys.executable).parent / "engineworks"
SAMPLES = 16
"""Images to calibrate with; a quarter of them to compare with."""
RECIPE = """\
recipe: resnet50
model: {source: {onnx: resnet50.onnx}}
inputs:
  image: {dtype: float32, shape: [batch, 3, 224, 224]}
outputs: {logits: [batch, 1000]}
shapes:
  default: {batch: [1, 1, 4]}
precisions: [int8]
data:
  calibration: {npz: images.npz}
  evaluation: {npz: few.npz}
targets: [cpu]
accuracy:
  limits: {int8: {cosine: 0.9}}
"""

QUANTIZER = """
import sys
import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from onnxruntime.quantization.preprocess import quant_pre_process

class Images(CalibrationDataReader):
    def __init__(self):
        self.left = iter(np.load("images.npz")["image"])
    def get_next(self):
        image = next(self.left, None)
        return None if image is None else {"image": image[None]}

quant_pre_process("resnet50.onnx", "prepared.onnx", skip_symbolic_shape=True)
quantize_static("prepared.onnx", "quantized.onnx", Images(), quant_format=QuantFormat.QDQ, per_channel=True)
"""


def processor_seconds(command: list[str | Path], folder: Path, parts: list[dict[str, float]]) -> float:
    """The processor time of the command and all that it started. A build's parts are added to `parts`."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("ENGINEWORKS_", "MLFLOW_"))}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory(prefix="cold-resnet-") as artifacts:
        env["ENGINEWORKS_ARTIFACTS"] = artifacts
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
        steps = dict(sorted(step_seconds(Path(artifacts))))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stdout}{done.stderr}")
    taken = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if steps:
        parts.append({**steps, "all else": round(taken - sum(steps.values()), 2)})
    return taken


def step_seconds(artifacts: Path) -> Iterator[tuple[str, float]]:
    """Yield each stored step's kind and processor time."""
    for log in artifacts.glob("store/objects/*/*/log.txt"):
        step = json.loads((log.parent / "manifest.json").read_text(encoding="utf-8"))["step"]
        if found := re.search(r"^took ([0-9.]+) s of processor time$", log.read_text(encoding="utf-8"), re.MULTILINE):
            yield step, float(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    contenders: dict[str, list[str | Path]] = {
        "engineworks": [PROGRAM, "build", "resnet50.yaml"], "quantizer": [sys.executable, "-c", QUANTIZER],
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    parts: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="cold-resnet-") as name:
        folder = Path(name)
        onnx.save(ResNet50().build(), folder / "resnet50.onnx")
        drawn = np.concatenate([batch["image"] for batch in images(SAMPLES, 1)])
        np.savez(folder / "images.npz", image=drawn)
        np.savez(folder / "few.npz", image=drawn[: SAMPLES // 4])
        (folder / "resnet50.yaml").write_text(RECIPE, encoding="utf-8")
        for _ in range(options.runs):
            for contender, command in contenders.items():
                taken = processor_seconds(command, folder, parts)
                seconds[contender].append(round(taken, 2))
                print(f"{contender:12} {taken:6.1f} s of processor time", flush=True)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = round(median["engineworks"] / median["quantizer"], 2)
    print(f"ratio {ratio}")
    facts = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
    if options.out:
        shares = {name: statistics.median(part[name] for part in parts) for name in parts[0]}
        found = {"median_s": median, "parts_s": shares, "seconds": seconds, "ratio": ratio, "host": facts}
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
