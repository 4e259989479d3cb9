"""ONNX Runtime on the CPU with the exported and folded ONNX file: the baseline without a build."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from engineworks.engines.backends import onnxruntime as backend
from engineworks.engines.peers.base import PeerModel
from engineworks.errors import RunError

if TYPE_CHECKING:
    from engineworks.engines.backends._ort_session import OrtSession
    from engineworks.engines.decoder.base import DecoderSession

TITLE = "ONNX Runtime, CPU"
FROM_SOURCE = False


def precisions(asked: Sequence[str]) -> tuple[str, ...]:
    """Return the precisions; fp16 only where the recipe has it: most processors compute it in fp32, between casts."""
    return ("fp32", "fp16") if "fp16" in asked else ("fp32",)


def why_not(source: str, precision: str) -> str | None:
    del source, precision  # every source is exported to ONNX, which is then lowered
    return backend.why_not_run(())


def versions() -> Mapping[str, str | None]:
    return dict(backend.versions())


def open_library() -> None:
    import onnxruntime  # noqa: F401


hardware, memory_meter, device_watch = backend.hardware, backend.memory_meter, backend.device_watch


def load(model: PeerModel) -> OrtSession:
    """Load with the `cpu` target's default number of threads."""
    if model.onnx is None:
        raise RunError(f"{TITLE}: there is no ONNX file")
    return backend.load(model.onnx, {})


def load_decoder(model: PeerModel, streams: int) -> DecoderSession:
    """Load the decoder's graph of standard operators, with its cache in place if it has that form."""
    from engineworks.engines.decoder.open import open_onnx_decoder
    from engineworks.model.decoder.interface import DECODER_FILE, DecoderInterface

    if model.onnx is None:
        raise RunError(f"{TITLE}: there is no ONNX file")
    written = (model.onnx.parent / DECODER_FILE).read_text(encoding="utf-8")
    return open_onnx_decoder(model.onnx, DecoderInterface.from_json(json.loads(written)), streams, {})
