"""Folded decoder → decoder in the requested precision. In half precision the cache is in half precision too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from engineworks.host.lazy import onnx
from engineworks.model.decoder.half_cache import halve_cache
from engineworks.model.decoder.interface import DECODER_FILE
from engineworks.model.lower.quantize import name_nodes
from engineworks.model.onnx_files import MODEL_FILE, load_model, save_model
from engineworks.steps import lower
from engineworks.steps.decoder.made_feeds import example_feeds, read_decoder
from engineworks.steps.decoder.texts import read_texts
from engineworks.steps.job import StepJob
from engineworks.steps.lower import WeightChoices

PROOF_ROWS = 2


CPU_BLOCKS = (32,)
"""Weights that share an int4 scale on a CPU, as in onnxruntime-genai."""


def run(job: StepJob) -> None:
    unquantized = job.params.get("unquantized", job.params["precision"])
    lower.run(job, _samples, _weight_choices(job, on_cpu=unquantized == "fp32"))
    if unquantized == "fp32":
        shutil.copyfile(job.inputs["fold"] / DECODER_FILE, job.out / DECODER_FILE)
        return
    interface = read_decoder(job.inputs["fold"])
    model = load_model(job.out / MODEL_FILE)
    halve_cache(model, interface)
    save_model(model, job.out / MODEL_FILE)
    caches = tuple(replace(cache, dtype="float16") for cache in interface.caches)
    (job.out / DECODER_FILE).write_text(json.dumps(replace(interface, caches=caches).to_json()), encoding="utf-8")


def _weight_choices(job: StepJob, *, on_cpu: bool) -> WeightChoices:
    """Choose as measured with SmolLM2-135M, whose head is a fifth of it: fp32's perplexity relative to int4's.

    With blocks of 64 and 128 0.61, and 0.71 where the head is not quantized. With blocks of 32 0.75. On a CPU an fp32
    head takes time (44 and 53 ms a token). On an H200 the engine that is fp16 throughout takes 1.79 ms, the one that is
    int4 throughout 1.95; an int4 engine with an fp16 head was not timed there.
    """
    if on_cpu or "int4_weights" not in job.params.get("quantized", ()):
        return WeightChoices(blocks=CPU_BLOCKS if on_cpu else None)
    folder = job.inputs["fold"]
    head = head_of(name_nodes(load_model(folder / MODEL_FILE, weights=False)).graph, read_decoder(folder).logits)
    return WeightChoices(kept=(head,) if head else ())


def head_of(graph: onnx.GraphProto, logits: str) -> str:
    """Return the name of the product that makes the logits, '' where there is none. A cap, a scale or a bias may follow
    it."""
    makers = {name: node for node in graph.node for name in node.output}
    node = makers.get(logits)
    while node is not None and node.op_type not in ("MatMul", "Gemm"):
        node = next((makers[name] for name in node.input if name in makers), None)
    return node.name if node is not None else ""


def _samples(job: StepJob, model: onnx.ModelProto) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield a prompt of real text and the step after it."""
    del model
    folder = job.inputs["fold"]
    rows = [text for text in read_texts(job.path("evaluation")).texts if len(text) > 1][:PROOF_ROWS]
    yield from example_feeds(folder / MODEL_FILE, read_decoder(folder), rows)
