"""A decoder on the CPU beside onnxruntime-genai: processor time per token, same threads, same prompt; in fp32, in int4
weights with activations in fp32 (accuracy level 1), and with activations in int8 (level 4).

    python -m onnxruntime_genai.models.builder -m x -i FOLDER -o GENAI32 -p fp32 -e cpu -c CACHE
    python -m onnxruntime_genai.models.builder -m x -i FOLDER -o GENAI4 -p int4 -e cpu -c CACHE
    python benchmarks/decoder_cpu.py FOLDED.onnx DECODER.json RESULT.json --genai fp32=GENAI32 --genai w4a8=GENAI4 \
        --genai int4_weights=GENAI4_LEVEL_1

GENAI4_LEVEL_1 is GENAI4 with `accuracy_level` 1 in every MatMulNBits. FOLDED.onnx and DECODER.json are the result of a
decoder's `fold` step. Every engine has a new process in every round: where its weights lie in memory differs from
process to process by as much as the engines do. Processor time, not wall time: a shared host disturbs it less. Each
figure is the median of nine rounds, and all engines run in every round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

ROUNDS, PROMPT, NEW, THREADS = 9, 128, 16, 2
OPTIONS: dict[str, object] = {"threads": THREADS, "spinning": False}
SPAWN = multiprocessing.get_context("spawn")

Run = Callable[[], tuple[float, float]]
"""Milliseconds of processor time: of the prompt, and of each token after it."""


def build(lowered: Path, interface: Path, precision: str, out: Path) -> None:
    """Build the engine as the step `build` does."""
    from engineworks.engines.backends import onnxruntime as backend
    from engineworks.engines.backends.base import BuildRequest
    from engineworks.model.decoder.interface import DecoderInterface
    from engineworks.steps.decoder.fused_model import SourceModel, fused_model

    face = DecoderInterface.from_json(json.loads(interface.read_text(encoding="utf-8")))
    out.mkdir()
    made = fused_model(SourceModel(lowered, face), out / "fused.onnx") or SourceModel(lowered, face)
    request = BuildRequest(made.path, out, precision, profiles=(), options=OPTIONS, computes=(precision, "fp32"))
    report = backend.build(request, lambda _: None)
    (out / "built.json").write_text(json.dumps({"engine": report.file, "interface": made.interface.to_json()}))


def engineworks(out: Path, ids: Any) -> Run:
    from engineworks.engines.decoder.open import open_onnx_decoder
    from engineworks.model.decoder.interface import DecoderInterface

    built = json.loads((out / "built.json").read_text(encoding="utf-8"))
    session = open_onnx_decoder(out / built["engine"], DecoderInterface.from_json(built["interface"]), 1, OPTIONS)

    def run() -> tuple[float, float]:
        session.reset()
        start = time.process_time()
        token = int(session.last_logits({0: ids})[0].argmax())
        middle = time.process_time()
        for _ in range(NEW):
            token = int(session.last_logits({0: np.array([token], np.int64)})[0].argmax())
        return 1000 * (middle - start), 1000 * (time.process_time() - middle) / NEW

    return run


def genai(folder: Path, ids: Any) -> Run:
    import onnxruntime_genai as og

    path = folder / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    options = config["model"]["decoder"]["session_options"]
    options |= {"intra_op_num_threads": THREADS, "session.intra_op.allow_spinning": "0"}
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")
    model = og.Model(str(folder))

    def run() -> tuple[float, float]:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=PROMPT + NEW + 2, min_length=PROMPT + NEW + 2, do_sample=False)
        generator = og.Generator(model, params)
        start = time.process_time()
        generator.append_tokens(ids.astype(np.int32))
        generator.generate_next_token()
        middle = time.process_time()
        for _ in range(NEW):
            generator.generate_next_token()
        return 1000 * (middle - start), 1000 * (time.process_time() - middle) / NEW

    return run


class Worker:
    """An engine in a process of its own."""

    def __init__(self, load: Callable[[Path, Any], Run], folder: Path, ids: Any) -> None:
        self._pipe, other = SPAWN.Pipe()
        self._process = SPAWN.Process(target=work, args=(other, load, folder, ids), daemon=True)
        self._process.start()

    def run(self) -> tuple[float, float]:
        self._pipe.send("run")
        prompt_ms, token_ms = self._pipe.recv()
        return prompt_ms, token_ms

    def end(self) -> None:
        self._pipe.close()
        self._process.join()


def one_round(load: Callable[[Path, Any], Run], folder: Path, ids: Any) -> tuple[float, float]:
    """Run twice in a new process, and return the second run's times: the first warms up."""
    worker = Worker(load, folder, ids)
    worker.run()
    found = worker.run()
    worker.end()
    return found


def work(pipe: Any, load: Callable[[Path, Any], Run], folder: Path, ids: Any) -> None:
    run = load(folder, ids)
    with contextlib.suppress(EOFError):  # the benchmark has ended
        while pipe.recv():
            pipe.send(run())


def quantized(folded: Path, out: Path) -> Path:
    """Write the folded model with int4 weights, as the `lower` step does."""
    from engineworks.model.lower.quantize import name_nodes, quantize, raise_opset_for
    from engineworks.model.onnx_files import load_model, save_model
    from engineworks.steps.decoder.lower import CPU_BLOCKS

    globs = {"int4_weights": ("worthwhile:*",)}
    model = name_nodes(raise_opset_for(name_nodes(load_model(folded)), globs))
    save_model(quantize(model, None, globs=globs, blocks=CPU_BLOCKS).model, out)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("folded", "interface", "result"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--genai", action="append", default=[], metavar="NAME=FOLDER")
    given = parser.parse_args()
    vocabulary = json.loads(given.interface.read_text(encoding="utf-8"))["vocabulary"]
    ids = np.random.default_rng(0).integers(0, vocabulary, PROMPT)
    with tempfile.TemporaryDirectory() as folder:
        out, face = Path(folder), given.interface
        lowered = {"fp32": given.folded} | dict.fromkeys(
            ("int4_weights", "w4a8"), quantized(given.folded, out / "int4.onnx")
        )
        runs: dict[str, Callable[[], tuple[float, float]]] = {}
        for precision, model in lowered.items():
            builder = SPAWN.Process(target=build, args=(model, face, precision, out / precision))
            builder.start()
            builder.join()
            runs[f"engineworks {precision}"] = partial(one_round, engineworks, out / precision, ids)
        for pair in given.genai:
            name, _, place = pair.partition("=")
            runs[f"onnxruntime-genai {name}"] = partial(one_round, genai, Path(place), ids)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for number, (name, run) in product(range(ROUNDS), runs.items()):
            times[name].append(run())
            prompt_ms, token_ms = times[name][-1]
            print(f"{number} {name}: prompt {prompt_ms:.0f} ms, {token_ms:.1f} ms a token", flush=True)
    engines = {
        name: {"prompt_ms": median(p for p, _ in rounds), "token_ms": median(t for _, t in rounds), "rounds": rounds}
        for name, rounds in times.items()
    }
    report = {
        "what": "processor time in ms, median of nine", "prompt": PROMPT, "new": NEW, "threads": THREADS,
        "processor": platform.processor() or platform.machine(),
        "versions": {n: version(n) for n in ("onnxruntime", *(["onnxruntime-genai"] if given.genai else []))},
        "engines": engines,
    }  # fmt: skip
    given.result.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, row in engines.items():
        print(f"{name:34} prompt {row['prompt_ms']:8.0f} ms   token {row['token_ms']:7.1f} ms")


if __name__ == "__main__":
    main()
