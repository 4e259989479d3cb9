"""Decoder source → model.onnx, and decoder.json with the meaning of its inputs and outputs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engineworks.engines.decoder.base import Tokens
from engineworks.engines.decoder.open import open_onnx_decoder
from engineworks.errors import ExportError, ModelError
from engineworks.host.child import ChildPool
from engineworks.model.decoder.families import FAMILIES, check_family, read_config
from engineworks.model.decoder.from_huggingface import DATA_FILE, EXPECTED_FILE, proof_tokens
from engineworks.model.decoder.interface import DECODER_FILE, DecoderInterface, read_interface
from engineworks.model.decoder.open_lengths import open_lengths
from engineworks.model.export.from_huggingface import find_folder
from engineworks.model.export.interface import ExportReport, export_onnx, folder_bytes, versions_of
from engineworks.model.onnx_files import MODEL_FILE, graph_inputs, graph_outputs, load_model
from engineworks.steps.job import StepJob

if TYPE_CHECKING:
    import onnx

WRITE = "engineworks.model.decoder.from_huggingface:write_decoder"

PROMPT = 12
PROOF_ERROR = 2e-4
"""Largest difference of a logit from the model's own, relative to the logits' standard deviation. The families of the
tests stay below 2e-5; one that is wrong has lost a window, a scale or a rotation, and is off by 1e-2 and more."""


def run(job: StepJob) -> None:
    decoder = job.params["decoder"]
    if job.params["source"] == "huggingface":
        report, interface = _export_huggingface(job, decoder["context"])
    else:
        report = export_onnx(job.path("source"), job.out)
        model = load_model(job.out / MODEL_FILE, weights=False)
        interface = _complete(
            model,
            read_interface(
                graph_inputs(model), graph_outputs(model), decoder["context"], decoder["cache"], decoder["ties"]
            ),
        )
    for note in report.notes:
        job.echo(note)
    job.write_json("export.json", report.to_json())
    job.write_json(DECODER_FILE, interface.to_json())


def _complete(model: onnx.ModelProto, interface: DecoderInterface) -> DecoderInterface:
    """Return the interface without open dimensions. Raises `ModelError` where nothing says a length."""
    if not interface.open_dims:
        return interface
    complete = interface.with_lengths(open_lengths(model))
    for name, cache in complete.open_dims.items():
        raise ModelError(
            f"the cache '{cache}' has a dimension '{name}' whose length the file does not say",
            hint=f"say it, e.g. model.decoder.ties: {{{name}: 64}}",
        )
    return complete


def _export_huggingface(job: StepJob, context: int) -> tuple[ExportReport, DecoderInterface]:
    """Export in a child, and prove the result here, once the child and its memory are gone.

    Raises `ModelError` for a family that is not known or whose export is not right, `ExportError` where it fails.
    """
    started = time.monotonic()
    folder = find_folder(str(job.path("source")), job.path("folder"))
    family = FAMILIES[check_family(read_config(folder))]
    with ChildPool() as pool:
        written = pool.run(
            WRITE, {"folder": str(folder), "out": str(job.out), "context": context}, fresh=True, on_line=job.echo,
            time_limit_s=job.seconds_left(), what=f"the export of {folder.name}", error=ExportError,
        )  # fmt: skip
    interface = DecoderInterface.from_json(written["interface"])
    notes = (f"family {family}", f"logits within {prove(job.out, interface, family):.1e} of the model's own")
    files = tuple(name for name in (MODEL_FILE, DATA_FILE) if (job.out / name).is_file())
    report = ExportReport(
        "torch.onnx (dynamo)", 24, files, folder_bytes(job.out, files), time.monotonic() - started, notes,
        versions_of("torch", "onnxscript", "transformers", "onnx"),
    )  # fmt: skip
    return report, interface


def prove(out: Path, interface: DecoderInterface, family: str) -> float:
    """Return the largest error of the logits of `out`'s model, and delete what they are compared with. Raises
    `ModelError` if it is too large."""
    tokens = proof_tokens(interface.vocabulary, interface.context)
    expected = np.fromfile(out / EXPECTED_FILE, np.float32).reshape(*tokens.shape, interface.vocabulary)
    (out / EXPECTED_FILE).unlink()
    error = export_error(out / MODEL_FILE, interface, expected)
    if not error <= PROOF_ERROR:
        raise ModelError(
            f"the export of this {family} model is not right: its logits are off by {error:.2g} "
            f"of their spread, at most {PROOF_ERROR:g} is allowed",
            hint="use another model: its family has a part that the export leaves out",
        )
    return error


def export_error(model: Path, interface: DecoderInterface, expected: NDArray[np.float32]) -> float:
    """Return the largest difference of the model's logits for `proof_tokens`, relative to the expected ones' deviation:
    two prompts at once, then step by step, the second stream one position behind the first."""
    got, at = np.full_like(expected, np.nan), [0, 0]
    with closing(open_onnx_decoder(model, interface, len(at), {"spinning": False, "threads": 1})) as session:
        for new in _calls(proof_tokens(interface.vocabulary, interface.context)):
            for row, logits in session.step(new).items():
                got[row, at[row] : at[row] + len(logits)] = logits
                at[row] += len(logits)
    return float(np.abs(got - expected).max() / max(float(expected.std()), 1e-12))


def _calls(tokens: NDArray[np.int64]) -> Iterator[dict[int, Tokens]]:
    """Yield new tokens by stream."""
    prompt, end = min(PROMPT, tokens.shape[1]), tokens.shape[1]
    yield {row: tokens[row, : prompt - row] for row in range(2) if prompt > row}
    for step in range(prompt, end + 1):
        yield {row: tokens[row, step - row : step - row + 1] for row in range(2) if 0 <= step - row < end}
