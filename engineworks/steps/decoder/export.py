"""Decoder source → model.onnx, and decoder.json with the meaning of its inputs and outputs."""

from __future__ import annotations

from engineworks.model.decoder.from_huggingface import export_decoder
from engineworks.model.decoder.interface import DECODER_FILE, read_interface
from engineworks.model.export.interface import export_onnx
from engineworks.model.onnx_files import MODEL_FILE, graph_inputs, graph_outputs, load_model
from engineworks.steps.step_job import StepJob


def run(job: StepJob) -> None:
    decoder = job.params["decoder"]
    if job.params["source"] == "huggingface":
        report, interface = export_decoder(
            str(job.path("source")), job.path("folder"), decoder["context"], job.out
        )  # fmt: skip
    else:
        report = export_onnx(job.path("source"), job.out)
        model = load_model(job.out / MODEL_FILE, weights=False)
        interface = read_interface(
            graph_inputs(model), graph_outputs(model), decoder["context"], decoder["cache"], decoder["ties"]
        )
    for note in report.notes:
        job.echo(note)
    job.write_json("export.json", report.to_json())
    job.write_json(DECODER_FILE, interface.to_json())
