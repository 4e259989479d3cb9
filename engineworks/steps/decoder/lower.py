"""Folded decoder → decoder in the requested precision. In half precision the cache is in half precision too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from engineworks.model.decoder.half_cache import halve_cache
from engineworks.model.decoder.interface import DECODER_FILE
from engineworks.model.onnx_files import MODEL_FILE, load_model, save_model
from engineworks.steps import lower
from engineworks.steps.decoder.made_feeds import example_feeds, read_decoder
from engineworks.steps.decoder.texts import read_texts
from engineworks.steps.step_job import StepJob

if TYPE_CHECKING:
    import onnx

PROOF_ROWS = 2


def run(job: StepJob) -> None:
    lower.run(job, _samples)
    unquantized = job.params.get("unquantized", job.params["precision"])
    if unquantized == "fp32":
        shutil.copyfile(job.inputs["fold"] / DECODER_FILE, job.out / DECODER_FILE)
        return
    interface = read_decoder(job.inputs["fold"])
    model = load_model(job.out / MODEL_FILE)
    halve_cache(model, interface)
    save_model(model, job.out / MODEL_FILE)
    caches = tuple(replace(cache, dtype="float16") for cache in interface.caches)
    (job.out / DECODER_FILE).write_text(json.dumps(replace(interface, caches=caches).to_json()), encoding="utf-8")


def _samples(job: StepJob, model: onnx.ModelProto) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield a prompt of real text and the step after it."""
    del model
    folder = job.inputs["fold"]
    rows = [text for text in read_texts(job.path("evaluation")).texts if len(text) > 1][:PROOF_ROWS]
    yield from example_feeds(folder / MODEL_FILE, read_decoder(folder), rows)
