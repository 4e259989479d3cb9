"""A framework that generates with the same model: first token, step and memory at the named shapes, measured as the
engine's, and its logits after the evaluation texts beside the fp32 reference's."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Any

from engineworks.engines.peers import peer
from engineworks.engines.peers.base import GeneratingPeer, Origin, PeerModel
from engineworks.errors import RunError
from engineworks.measure.accuracy import OutputComparison
from engineworks.measure.latency_report import PeerLatency
from engineworks.model.export.interface import Interface
from engineworks.model.onnx_files import MODEL_FILE
from engineworks.steps.decoder.measure import measure_shape
from engineworks.steps.decoder.reference import KEPT_TEXTS, Reference
from engineworks.steps.decoder.texts import read_texts
from engineworks.steps.device_readings import Device
from engineworks.steps.job import StepJob
from engineworks.steps.measure import AFTER


def run(job: StepJob) -> None:
    """Write `latency.json` with `shapes` as the decoder's `measure` has them, and the cosine of its logits."""
    chosen, texts = peer(job.params["peer"]), read_texts(job.path("evaluation"))
    if not isinstance(chosen, GeneratingPeer):
        raise RunError(f"{job.params['peer']} does not generate text")
    start = time.perf_counter()
    chosen.open_library()
    import_ms = 1000 * (time.perf_counter() - start)
    device, model = Device(chosen), _model(job)
    shapes: dict[str, Any] = {}
    load_ms, notes = 0.0, list[str]()
    for name, asked in job.params["at"].items():
        start = time.perf_counter()
        decoder = chosen.load_decoder(model, asked["dims"]["streams"])
        load_ms = load_ms or 1000 * (time.perf_counter() - start)
        with closing(decoder):
            shapes[name] = measure_shape(decoder, asked, texts.long, device, name)
            notes += decoder.notes
    comparison = _compared(chosen, model, job)
    device.take(AFTER)
    report = {
        "import_ms": import_ms, "load_ms": load_ms, "shapes": shapes, "facts": {}, "notes": sorted(set(notes)),
        "device": device.to_json(), "outputs": {"logits": comparison.result().to_json()},
    }  # fmt: skip
    job.write(PeerLatency.from_json(report, f"{job.id}: {PeerLatency.FILE}"))


def _compared(chosen: GeneratingPeer, model: PeerModel, job: StepJob) -> OutputComparison:
    """Compare the logits after each of the first texts with the reference's."""
    texts, reference = read_texts(job.path("evaluation")).texts, Reference(job.inputs["reference"])
    comparison, decoder = OutputComparison(0), chosen.load_decoder(model, 1)
    with closing(decoder):
        for index, text in enumerate(texts[:KEPT_TEXTS]):
            kept = reference.logits(index)
            if kept is not None:
                decoder.reset()
                comparison.add(decoder.last_logits({0: text})[0][None], kept[-1:])
    return comparison


def _model(job: StepJob) -> PeerModel:
    precision = job.params["precision"]
    if "model" in job.inputs:
        return PeerModel(precision, onnx=job.inputs["model"] / MODEL_FILE)
    source = Path(job.path("source"))
    nothing = Interface((), {}, (), 0)
    return PeerModel(precision, origin=Origin("huggingface", source, job.path("folder"), (), None, None, nothing))
