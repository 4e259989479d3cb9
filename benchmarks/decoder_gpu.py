"""A decoder on TensorRT-RTX beside transformers eager: right in every situation, first token, steps, kernels, memory.

    python benchmarks/decoder_gpu.py prepare OUT TEXTS CONTEXT FOLDER    here: export, fold, lower; FOLDER: Hugging Face
    python benchmarks/decoder_gpu.py split OUT PIECES [--mib 56]         into folders that each fit one transfer
    python benchmarks/decoder_gpu.py join PIECES OUT                     on the GPU host
    python benchmarks/decoder_gpu.py run OUT RESULT.json [--hf FOLDER]   on the GPU host; four minutes

`run` builds static engines for the GPU at hand (decode at batch 1 and 8, prefill of 128 and 512 tokens), generates,
and writes one JSON. Every part survives the failure of another; a failure is in the JSON, with its reason. With --hf it
also times transformers eager, in fp16, with the same prompts: that needs torch and transformers on the host.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PRECISIONS = ("fp16", "int8_weights", "int4_weights")
DECODE, PREFILL = (1, 8), (128, 512)
PROMPT, TEXT_TOKENS, TEXTS = 128, 512, 2
BUDGET_S = {"fp16": 110.0, "int8_weights": 45.0, "int4_weights": 45.0}


def prepare(out: Path, texts: Path, context: int, folder: Path) -> None:
    """Write decoder.json, tokens.npy, reference.npz and one lowered ONNX file per precision."""
    from tokenizers import Tokenizer

    from engineworks.engines.decoder.open import open_onnx_decoder
    from engineworks.model.decoder.from_huggingface import export_decoder
    from engineworks.model.decoder.half_cache import halve_cache
    from engineworks.model.fold.fold import fold_model
    from engineworks.model.lower.half.half import lower_half
    from engineworks.model.lower.half.unquantized import halve_unquantized
    from engineworks.model.lower.quantize import name_nodes, quantize, raise_opset_for
    from engineworks.model.onnx_files import graph_inputs, load_model, save_model
    from engineworks.steps.decoder.made_feeds import example_feeds

    out = out.resolve()
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "model.onnx").exists():
        report, face = export_decoder(str(folder.resolve()), Path(), context, work)
        print(*report.notes, sep="\n", flush=True)
        (out / "decoder.json").write_text(json.dumps(face.to_json()))
    face = _interface(out)
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(texts.read_text(encoding="utf-8")).ids
    tokens = np.array(ids[: TEXTS * TEXT_TOKENS], np.int64).reshape(TEXTS, TEXT_TOKENS)
    np.save(out / "tokens.npy", tokens)
    feeds = example_feeds(work / "model.onnx", face, list(tokens[:, :24]))
    if not (work / "folded.onnx").exists():
        fold_model(
            work / "model.onnx", work / "folded.onnx", outputs=None, minimum_opset=13, feeds=feeds,
            inputs=graph_inputs(load_model(work / "model.onnx", weights=False)),
        )  # fmt: skip
    session = open_onnx_decoder(work / "folded.onnx", face, 1, {})
    logits = []
    for row in tokens:
        session.reset()
        logits.append(session.step({0: row})[0])
    nll = np.stack([_nll(row, text) for row, text in zip(logits, tokens, strict=True)])
    np.savez_compressed(out / "reference.npz", kept=np.stack(logits)[:, -16:], nll=nll)
    session.close()
    source = name_nodes(load_model(work / "folded.onnx"))
    for precision in PRECISIONS:
        if precision == "fp16":
            made, _ = lower_half(source, "float16", feeds)
        else:
            globs = {precision: ("worthwhile:*",)}
            model = name_nodes(raise_opset_for(source, globs))
            made, _ = halve_unquantized(
                quantize(model, None, globs=globs).model, model, "float16", iter(feeds), source=source
            )
        halve_cache(made, face)
        save_model(made, out / f"{precision}.onnx")
        print(precision, (out / f"{precision}.onnx").stat().st_size >> 20, "MiB", flush=True)


def _nll(logits: Any, tokens: Any) -> Any:
    from engineworks.measure.decoder.texts import token_figures

    return token_figures(logits, tokens).nll


def _interface(out: Path, half: bool = False) -> Any:
    from dataclasses import replace

    from engineworks.model.decoder.interface import DecoderInterface

    face = DecoderInterface.from_json(json.loads((out / "decoder.json").read_text()))
    return replace(face, caches=tuple(replace(c, dtype="float16") for c in face.caches)) if half else face


def split(out: Path, pieces: Path, mib: int) -> None:
    """Cut what the GPU host needs into pieces/00, pieces/01, …, each below `mib`."""
    limit, folder, used = mib << 20, 0, 0
    files = [out / n for n in ("decoder.json", "tokens.npy", "reference.npz", *(f"{p}.onnx" for p in PRECISIONS))]
    for file in (f for f in files if f.exists()):
        with file.open("rb") as source:
            number = 0
            while chunk := source.read(min(limit, limit - used if used < limit else limit)):
                if used + len(chunk) > limit:
                    folder, used = folder + 1, 0
                place = pieces / f"{folder:02}"
                place.mkdir(parents=True, exist_ok=True)
                (place / f"{file.name}.part{number:03}").write_bytes(chunk)
                used, number = used + len(chunk), number + 1
                if used >= limit:
                    folder, used = folder + 1, 0
    print(f"{folder + 1} folders under {pieces}")


def join(pieces: Path, out: Path) -> None:
    """Put the pieces together. They may lie in one folder or in several."""
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(pieces.rglob("*.part*")):
        name, _, number = file.name.rpartition(".part")
        with (out / name).open("wb" if int(number) == 0 else "ab") as target:
            target.write(file.read_bytes())


def run(out: Path, result: Path, hf: Path | None) -> None:
    found: dict[str, Any] = {"parts": {}}
    found["host"] = _attempt(found, "host", _host)
    for precision in PRECISIONS:
        if (out / f"{precision}.onnx").exists():
            found["parts"][precision] = {}
            _attempt(found, precision, partial(_measure, out, precision, found["parts"][precision]))
            result.write_text(json.dumps(found, indent=1))
    if hf is not None:
        found["transformers"] = _attempt(found, "transformers", partial(_transformers, out, hf))
    result.write_text(json.dumps(found, indent=1))
    _table(found)


def _attempt(found: dict[str, Any], name: str, work: Callable[[], Any]) -> Any:
    start = time.monotonic()
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - one part may fail in any way; the others still run
        traceback.print_exc()
        found.setdefault("failures", {})[name] = f"{type(error).__name__}: {error}"[:2000]
        return None
    finally:
        print(f"{name}: {time.monotonic() - start:.1f} s", flush=True)


def _host() -> dict[str, Any]:
    from importlib.metadata import version

    from engineworks.host.gpu import first_gpu

    versions = {n: version(n) for n in ("tensorrt-rtx", "onnxruntime", "onnx", "numpy") if _installed(n)}
    return {"gpu": str(first_gpu()), "python": sys.version.split()[0], "versions": versions}


def _installed(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _measure(out: Path, precision: str, found: dict[str, Any]) -> None:
    import tensorrt_rtx as trt

    from engineworks.engines.backends.tensorrt_rtx import VENDOR
    from engineworks.engines.decoder.parts import Part
    from engineworks.engines.decoder.trt import TrtDecoder

    face, folder, begin = _interface(out, half=True), out / f"engines-{precision}", time.monotonic()
    folder.mkdir(exist_ok=True)
    wanted = [(b, 1) for b in DECODE] + [(1, s) for s in (PREFILL if precision == "fp16" else PREFILL[:1])]
    parts = []
    for batch, tokens in wanted:
        name = f"{batch}x{tokens}"
        build = partial(_build, trt, out, precision, face, folder / name, batch, tokens)
        if built := _attempt(found, f"build {name}", build):
            parts.append(Part(name, batch, tokens))
            found.setdefault("builds", {})[name] = built
    for streams in DECODE:
        session = TrtDecoder(VENDOR, folder, parts, face, streams)
        try:
            if streams == 1:
                found["accuracy"] = _attempt(found, "accuracy", partial(_accuracy, out, session))
            else:
                found["situations"] = _attempt(found, "situations", partial(_situations, out, session))
            left = BUDGET_S[precision] - (time.monotonic() - begin)
            speed = _attempt(found, f"speed {streams}", partial(_speed, out, session, left))
            kernels = _attempt(found, f"kernels {streams}", partial(_kernels, session))
            found.setdefault("speed", {})[str(streams)] = {**(speed or {}), "kernels": kernels}
            found.setdefault("notes", []).extend(session.notes)
        finally:
            session.close()


def _build(trt: Any, out: Path, precision: str, face: Any, file: Path, batch: int, tokens: int) -> dict[str, Any]:
    """Build one static engine for this GPU; with Attention written out if the parser refuses it."""
    from engineworks.engines.backends._trt_attention import written_out
    from engineworks.model.decoder.static import fix_shape
    from engineworks.model.onnx_files import load_model, save_model

    start = time.monotonic()
    path = file.with_suffix(".onnx")
    model = load_model(out / f"{precision}.onnx")
    fix_shape(model, face, batch, tokens)
    save_model(model, path)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    for plain in (False, True):
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, logger)
        if plain:
            made = written_out(path)
            assert made is not None
            save_model(made, path)
        if not parser.parse_from_file(str(path)):
            reason = str(parser.get_error(0))
            continue
        engine = builder.build_serialized_network(network, builder.create_builder_config())
        if engine is None:
            reason = "the builder made no engine; see its log"
            continue
        file.write_bytes(bytes(engine))
        path.unlink()
        return {
            "seconds": time.monotonic() - start, "mib": engine.nbytes / 2**20, "layers": network.num_layers,
            "attention_written_out": plain,
        }  # fmt: skip
    raise RuntimeError(reason)


def _accuracy(out: Path, session: Any) -> dict[str, Any]:
    """Perplexity on whole texts at once, and the last tokens step by step, beside fp32 on the CPU."""
    tokens, reference = np.load(out / "tokens.npy"), np.load(out / "reference.npz")
    nll, cosines, steps = [], [], []
    kept, own = reference["kept"], reference["nll"]
    for row, text in enumerate(tokens):
        session.reset()
        logits = session.step({0: text})[0]
        nll.append(_nll(logits, text))
        cosines.append(_cosine(logits[-16:], kept[row]))
        session.reset()
        session.step({0: text[:-16]})
        ones = np.concatenate([session.step({0: text[i : i + 1]})[0] for i in range(len(text) - 16, len(text))])
        steps.append(_cosine(ones, kept[row]))
    engine, fp32 = float(np.exp(np.mean(nll))), float(np.exp(own.mean()))
    return {
        "perplexity": engine, "perplexity_fp32": fp32, "off_percent": 100 * (engine / fp32 - 1),
        "cosine": min(cosines), "cosine_step_by_step": min(steps),
    }  # fmt: skip


def _cosine(a: Any, b: Any) -> float:
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def _situations(out: Path, session: Any) -> dict[str, Any]:
    from engineworks.measure.decoder.situations import is_right
    from engineworks.steps.decoder.situations import Situations

    tokens = np.load(out / "tokens.npy")
    long = np.resize(tokens.ravel(), session.interface.context)
    situations = Situations(session, [tokens[0, :48], tokens[1, :44], tokens[0, 100:140]], long)
    found = situations.run() | situations.end(3)[0]
    return {name: {**f, "right": is_right(f, "fp16")} for name, f in found.items()}


def _speed(out: Path, session: Any, left: float) -> dict[str, Any]:
    """Milliseconds, medians: the first token of a prompt of 128 (until its most probable token is known here), and a
    step of all streams, with the host's copies; `left`: seconds for both."""
    from engineworks.engines.backends._cuda import memory_mib

    tokens = np.load(out / "tokens.npy")[0]
    streams = session.streams
    first = []
    for _ in range(40):
        session.reset()
        start = time.perf_counter()
        for stream in range(streams):
            session.last_logits({stream: tokens[:PROMPT]})[stream].argmax()
        first.append(1000 * (time.perf_counter() - start))
    step, ends = [], time.monotonic() + min(8.0, max(2.0, left))
    ids = np.full(streams, int(tokens[PROMPT]))
    while time.monotonic() < ends:
        session.reset()
        for stream in range(streams):
            session.last_logits({stream: tokens[:PROMPT]})
        for _ in range(200):
            start = time.perf_counter()
            session.next_step(ids)
            step.append(1000 * (time.perf_counter() - start))
    free, total = memory_mib()
    half = step[len(step) // 2 :]
    return {
        "first_token_ms": median(first[10:]), "step_ms": median(half), "step_ms_p90": float(np.quantile(half, 0.9)),
        "tokens_per_s": 1000 * streams / median(half), "steps": len(step), "memory_used_mib": total - free,
    }  # fmt: skip


def _kernels(session: Any) -> list[dict[str, Any]]:
    """The kernels of a step by time, as torch.profiler sees them; needs torch."""
    from torch.profiler import ProfilerActivity, profile

    ids = np.zeros(session.streams, np.int64)
    session.reset()
    session.next_step(ids)
    session.next_step(ids)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(10):
            session.next_step(ids)
    rows = sorted(profiled.key_averages(), key=lambda e: -e.self_device_time_total)[:20]
    return [{"name": e.key[:120], "calls": e.count / 10, "us_per_step": e.self_device_time_total / 10} for e in rows]


def _transformers(out: Path, hf: Path) -> dict[str, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(hf))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float16, attn_implementation="eager").cuda().eval()
    tokens = np.load(out / "tokens.npy")[0]
    found: dict[str, Any] = {"weights": "random: only the time counts"}
    for streams in DECODE:
        ids = torch.from_numpy(np.tile(tokens[:PROMPT], (streams, 1))).cuda()
        times: dict[int, list[float]] = {1: [], 33: []}
        with torch.no_grad():
            for _ in range(4):
                for new, into in times.items():
                    torch.cuda.synchronize()
                    start = time.perf_counter()
                    model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False)
                    torch.cuda.synchronize()
                    into.append(1000 * (time.perf_counter() - start))
        first, total = (median(t[1:]) for t in times.values())
        found[str(streams)] = {"first_token_ms": first, "step_ms": (total - first) / 32}
    return found


def _table(found: dict[str, Any]) -> None:
    print("precision      streams  first token ms  step ms  tokens/s")
    for precision, part in found["parts"].items():
        for streams, speed in part.get("speed", {}).items():
            figures = [speed.get(key, float("nan")) for key in ("first_token_ms", "step_ms", "tokens_per_s")]
            print(f"{precision:14} {streams:>7} {figures[0]:15.3f} {figures[1]:8.3f} {figures[2]:9.0f}")
        print(" ", json.dumps(part.get("accuracy", {})))
        wrong = [n for n, s in (part.get("situations") or {}).items() if not s["right"]]
        print("  situations wrong:", wrong or "none")
        print("  failures:", part.get("failures", {}))
    print("transformers:", found.get("transformers"))
    print("failures:", found.get("failures", {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("prepare")
    for name, kind in (("out", Path), ("texts", Path), ("context", int), ("folder", Path)):
        made.add_argument(name, type=kind)
    cut = commands.add_parser("split")
    cut.add_argument("out", type=Path)
    cut.add_argument("pieces", type=Path)
    cut.add_argument("--mib", type=int, default=56)
    joined = commands.add_parser("join")
    joined.add_argument("pieces", type=Path)
    joined.add_argument("out", type=Path)
    ran = commands.add_parser("run")
    ran.add_argument("out", type=Path)
    ran.add_argument("result", type=Path)
    ran.add_argument("--hf", type=Path)
    given = vars(parser.parse_args())
    {"prepare": prepare, "split": split, "join": join, "run": run}[given.pop("command")](**given)


if __name__ == "__main__":
    main()
