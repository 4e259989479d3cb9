"""A decoder's recipe on a host with a GPU, as users run it, beside transformers eager.

    python benchmarks/decoder_gpu.py run RESULT.json [--recipe recipes/smollm2.yaml] [--target h100]
        [--precisions fp16,int8_weights,int4_weights] [--transformers FOLDER] [--artifacts FOLDER] [--graph FOLDER]
    python benchmarks/decoder_gpu.py split FOLDER PIECES [--mib 56]      files into folders that each fit one transfer
    python benchmarks/decoder_gpu.py join PIECES FOLDER                  on the other host

`run` builds, compares and measures every precision by `engineworks build --only`, builds again (no step may run),
generates, opens the stored engine for the kernels of a step (torch.profiler) and for steps without the parts that serve
several streams, and times transformers eager in fp16 at the recipe's situations. Each part survives the failure of
another; one JSON is written after every part. The recipe's model must be there: `recipes/fetched` after `make fetch`,
and torch, transformers and onnxscript for its export. Where that export fails, the one of another host serves: --graph
names the folder of `decoder_graph.py strip`, whose weights come from the folder of --transformers. SmolLM2 takes some
four minutes a precision; called again, finished steps are not repeated. Without a GPU:
`run OUT.json --recipe recipes/tiny-decoder.yaml --target cpu --precisions fp32`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

COMMAND_S, STEPS = 420.0, 100
"""Seconds that one command may take: the other parts must fit into ten minutes too. And steps that are timed."""

WANTED = {"decode at batch 1": 1.85, "decode at batch 8": 2.0, "first token at batch 1": 2.3}
"""Milliseconds to reach with SmolLM2-135M in fp16 on an H100 or H200."""


def split(folder: Path, pieces: Path, mib: int) -> None:
    """Cut the folder's files into pieces/00, pieces/01, …, each of at most `mib` MiB."""
    limit, number, used = mib << 20, 0, 0
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        with file.open("rb") as source:
            part = 0
            while (chunk := source.read(limit - used)) or not part:
                place = pieces / f"{number:02}" / file.relative_to(folder).parent
                place.mkdir(parents=True, exist_ok=True)
                (place / f"{file.name}.part{part:03}").write_bytes(chunk)
                used, part = used + len(chunk), part + 1
                if used >= limit:
                    number, used = number + 1, 0
    print(f"{number + 1} folders under {pieces}")


def join(pieces: Path, folder: Path) -> None:
    """Put the pieces together."""
    for piece in sorted(p for p in pieces.iterdir() if p.is_dir()):
        for file in sorted(piece.rglob("*.part*")):
            name, _, number = file.name.rpartition(".part")
            whole = folder / file.relative_to(piece).parent / name
            whole.parent.mkdir(parents=True, exist_ok=True)
            with whole.open("wb" if int(number) == 0 else "ab") as target:
                target.write(file.read_bytes())


def run(
    result: Path, recipe: Path, target: str, precisions: str, transformers: Path | None, artifacts: Path,
    graph: Path | None,
) -> None:  # fmt: skip
    """Run every part and write its figures, or why there are none."""
    os.environ["ENGINEWORKS_ARTIFACTS"] = str(artifacts.resolve())
    found: dict[str, Any] = {}
    for name, part in _parts(recipe, target, precisions.split(","), transformers, graph):
        start = time.monotonic()
        print(f"{name} …", flush=True)
        try:
            found[name] = part()
        except Exception as error:  # noqa: BLE001 - one part may fail in any way; the others still run
            found[name] = {
                "error": f"{type(error).__name__}: {error}"[:1000],
                "traceback": traceback.format_exc()[-2000:],
            }
        print(f"  {time.monotonic() - start:.1f} s: {json.dumps(found[name])[:300]}", flush=True)
        result.write_text(json.dumps(found, indent=1))
    _table(found)


def _parts(
    recipe: Path, target: str, precisions: list[str], transformers: Path | None, graph: Path | None
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What uses the GPU in this process comes last: its memory stays taken, and measurements would be disturbed."""
    yield "host", _host
    source, engines = recipe, dict[str, str]()
    for precision in precisions:
        engine = engines[precision] = f"{recipe.stem}/{precision}/{target}"
        yield f"build {precision}", partial(_build, recipe, engine)
        if graph is not None and transformers is not None and not _has(engine.split("/")[0], "export"):
            recipe = _recipe_of_graph(recipe, graph, transformers)
            engine = engines[precision] = f"{recipe.stem}/{precision}/{target}"
            yield f"build {precision} from the graph", partial(_build, recipe, engine)
        yield f"figures {precision}", partial(recorded_measurements, engine)
        yield f"again {precision}", partial(_again, recipe, engine)
        yield f"generate {precision}", partial(_generate, engine)
    for precision, engine in engines.items():
        yield f"steps {precision}", partial(timed_steps, engine)
    if transformers is not None:
        yield "transformers", partial(_transformers, source, transformers)


def _has(name: str, step: str) -> bool:
    from engineworks.settings import read_settings
    from engineworks.store.shared import open_store

    return open_store(read_settings()).latest(f"{name}/{step}") is not None


def _recipe_of_graph(recipe: Path, graph: Path, folder: Path) -> Path:
    """Return a recipe beside the given one, which takes the graph and the folder's weights as its model."""
    from decoder_graph import DATA, fill

    if not (graph / DATA).exists():
        fill(graph, folder)
    name, model = f"{recipe.stem}-graph", (graph / "model.onnx").resolve()
    os.environ["ENGINEWORKS_DATA_ROOTS"] = str(model.parent)
    text = re.sub(r"(?m)^recipe: .*$", f"recipe: {name}", recipe.read_text(encoding="utf-8"))
    path = recipe.with_name(f"{name}.yaml")
    path.write_text(re.sub(r"source: \{.*\}", f"source: {{onnx: {model}}}", text), encoding="utf-8")
    return path


def _host() -> dict[str, Any]:
    from engineworks.host.gpu import first_gpu
    from engineworks.host.packages import installed_versions

    names = (
        "tensorrt-rtx",
        "onnxruntime",
        "onnxruntime-gpu",
        "onnx",
        "numpy",
        "torch",
        "transformers",
        "cuda-bindings",
    )
    return {"gpu": str(first_gpu()), "python": sys.version.split()[0], "versions": installed_versions(names)}


def _engineworks(*arguments: str) -> tuple[int, str, str]:
    """Run a command. Returns its exit code (124 where it was stopped), stdout and the rest of what it said."""
    command = [sys.executable, "-c", "from engineworks.cli import main; main()", *arguments]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        running = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=said, stderr=errors)
        try:
            code = running.wait(COMMAND_S)
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGINT)  # it stops its steps, so that none holds the GPU
            try:
                running.wait(20)
            finally:
                running.kill()
            code = 124
        said.seek(0)
        errors.seek(0)
        return code, said.read(), errors.read()


def _build(recipe: Path, engine: str) -> dict[str, Any]:
    """Build as users do. Returns the exit code, the seconds, and what was said."""
    start = time.monotonic()
    code, out, errors = _engineworks("build", str(recipe.resolve()), "--only", engine)
    print((errors + out)[-3000:], flush=True)
    return {"exit": code, "seconds": time.monotonic() - start, "said": out[-4000:], "errors": errors[-4000:]}


def _again(recipe: Path, engine: str) -> dict[str, Any]:
    """Build once more, where nothing has changed."""
    _, planned, _ = _engineworks("plan", str(recipe.resolve()), "--only", engine, "--json")
    states = [step["state"] for plan in json.loads(planned)["recipes"] for step in plan["steps"]]
    return {"to do": states.count("to do"), "cached": states.count("cached")}


def _generate(engine: str) -> dict[str, Any]:
    start = time.monotonic()
    code, text, errors = _engineworks("generate", engine, "The weather today is", "--new", "32")
    return {"exit": code, "seconds": time.monotonic() - start, "text": text[-500:], "errors": errors[-500:]}


def artifact(engine: str, step: str) -> Path:
    """Return the folder of the latest result of this step of the engine."""
    from engineworks.fingerprint import digest_of
    from engineworks.settings import read_settings
    from engineworks.store.shared import open_store

    store = open_store(read_settings())
    document = store.latest(f"{engine}/{step}")
    if document is None:
        raise RuntimeError(f"the store has no '{step}' of {engine}")
    return store.require(digest_of(document)).path


def recorded_measurements(engine: str) -> dict[str, Any]:
    """Return what the build's steps recorded: sizes, accuracy, situations with their tolerance, figures by shape."""
    from engineworks.engines.sidecar import Sidecar
    from engineworks.measure.accuracy_report import Accuracy
    from engineworks.measure.decoder.situations import is_right, tolerance
    from engineworks.measure.latency_report import Latency

    sidecar, accuracy = Sidecar.read(artifact(engine, "build")), Accuracy.read(artifact(engine, "compare"))
    shapes, decoder = Latency.read(artifact(engine, "measure")).shapes, accuracy.decoder
    if decoder is None:
        raise RuntimeError(f"{engine} is no decoder")
    plain = accuracy.to_json()
    wanted = (
        "dims", "first_token_ms", "latency_ms_p50", "latency_ms_p90", "tokens_per_s", "prefill_tokens_per_s",
        "memory_mib", "streams_that_fit",
    )  # fmt: skip
    return {
        "bytes": sidecar.bytes, "build_seconds": sidecar.build_seconds, "parts": sidecar.details.get("parts"),
        "metric": plain["metric"], "outputs": plain["outputs"], "moved": decoder.moved,
        "tolerance": tolerance(decoder.computes, decoder.moved),
        "situations": {
            name: {**f.to_json(), "right": is_right(f, decoder.computes, decoder.moved)}
            for name, f in decoder.situations.items()
        },
        "shapes": {name: {key: getattr(shape, key) for key in wanted} for name, shape in shapes.items()},
    }  # fmt: skip


def timed_steps(engine: str) -> dict[str, Any]:
    """Return, by streams, ms of a step with all parts and with those of one stream alone, and a step's kernels."""
    from engineworks.engines.decoder.open import one_by_one, open_decoder
    from engineworks.engines.verified import verified_engine

    found: dict[str, Any] = {}
    with verified_engine(artifact(engine, "build")) as opened:
        alone = one_by_one(opened)
        assert opened.sidecar.decoder is not None
        for streams in opened.sidecar.decoder.streams:
            for name, given in (("together", opened), ("alone", alone)):
                if given is None or (name == "alone" and streams == 1):
                    continue
                session = open_decoder(given, given.sidecar.target, streams)
                try:
                    made = {"step_ms": _step_ms(session), "notes": list(session.notes)}
                    if name == "together":
                        made["kernels"] = _kernels(session)
                finally:
                    session.close()
                found[f"{streams} {name}"] = made
    return found


def _step_ms(session: Any) -> float:
    ids, times = np.zeros(session.streams, np.int64), []
    for _ in range(min(STEPS, session.interface.context - 1)):
        start = time.perf_counter()
        session.next_step(ids)
        times.append(1000 * (time.perf_counter() - start))
    session.reset()
    return median(times[len(times) // 2 :])


def _kernels(session: Any) -> list[dict[str, Any]] | str:
    """The kernels of a step by time, as torch.profiler sees them; why not, where it does not."""
    try:
        import torch
        from torch.profiler import ProfilerActivity, profile
    except ImportError as error:
        return str(error)
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    ids = np.zeros(session.streams, np.int64)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(10):
            session.next_step(ids)
    rows = sorted(profiled.key_averages(), key=lambda e: -e.self_device_time_total)[:20]
    return [{"name": e.key[:120], "calls": e.count / 10, "us_per_step": e.self_device_time_total / 10} for e in rows]


def _transformers(recipe: Path, folder: Path) -> dict[str, Any]:
    """Time transformers eager at the recipe's situations: fp16 on a GPU, fp32 on a CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    from engineworks.recipe.load import load_recipe

    place, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, attn_implementation="eager").to(place).eval()
    wait = torch.cuda.synchronize if place == "cuda" else lambda: None
    found: dict[str, Any] = {}
    for name, at in load_recipe(recipe).recipe.performance.at.items():
        ids = torch.randint(0, model.config.vocab_size, (at["streams"], at["prompt"])).to(place)
        times: dict[int, list[float]] = {1: [], 33: []}
        with torch.no_grad():
            for _ in range(4):
                for new, into in times.items():
                    wait()
                    start = time.perf_counter()
                    model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False)
                    wait()
                    into.append(1000 * (time.perf_counter() - start))
        first, total = (median(t[1:]) for t in times.values())
        found[name] = {"first_token_ms": first, "step_ms": (total - first) / 32}
    return found


def _table(found: dict[str, Any]) -> None:
    print("precision      situation  first token ms  step ms  tokens/s  × eager")
    eager = found.get("transformers", {})
    for part, values in found.items():
        if not part.startswith("figures") or "shapes" not in values:
            continue
        for name, shape in values["shapes"].items():
            step = shape["latency_ms_p50"]
            times = f"{eager[name]['step_ms'] / step:8.1f}" if name in eager else ""
            first, rate = shape["first_token_ms"], shape["tokens_per_s"]
            print(f"{part[8:]:14} {name:10} {first:14.3f} {step:8.3f} {rate:9.0f} {times}")
        wrong = [name for name, f in values["situations"].items() if not f["right"]]
        ratio, allowed = values["metric"]["ratio"], values["tolerance"]
        print(f"  perplexity ratio {ratio:.5f}; situations wrong: {wrong or 'none'} (tolerance {allowed:.3g})")
    print("to reach in fp16:", WANTED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    cut = commands.add_parser("split")
    joined = commands.add_parser("join")
    for command, names in ((cut, ("folder", "pieces")), (joined, ("pieces", "folder"))):
        for name in names:
            command.add_argument(name, type=Path)
    cut.add_argument("--mib", type=int, default=56)
    ran = commands.add_parser("run")
    ran.add_argument("result", type=Path)
    ran.add_argument("--recipe", type=Path, default=ROOT / "recipes/smollm2.yaml")
    ran.add_argument("--target", default="h100")
    ran.add_argument("--precisions", default="fp16")
    ran.add_argument("--transformers", type=Path)
    ran.add_argument("--graph", type=Path)
    ran.add_argument("--artifacts", type=Path, default=ROOT / "artifacts/decoder-gpu")
    given = vars(parser.parse_args())
    parts: dict[str, Callable[..., object]] = {"split": split, "join": join, "run": run}
    parts[given.pop("command")](**given)


if __name__ == "__main__":
    main()
