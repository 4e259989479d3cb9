"""The stored engine of a decoder → a session, from the very bytes that were verified; and its first tokens: a crash or
an error there is the build's, not a later step's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engineworks.engines.backends import backend
from engineworks.engines.backends import onnxruntime as cpu
from engineworks.engines.backends.base import PLAIN, PartsRunner, Serving
from engineworks.engines.decoder.base import DecoderSession
from engineworks.engines.engine_session import runner_of
from engineworks.engines.verified import VerifiedEngine, named
from engineworks.errors import RunError
from engineworks.host.memory import use_huge_pages
from engineworks.model.decoder.interface import DecoderInterface
from engineworks.model.ort import ort_errors, what_failed


def open_decoder(
    engine: VerifiedEngine, target: Mapping[str, Any], streams: int, *,
    serving: Serving = PLAIN, cache: Path | None = None,
) -> DecoderSession:  # fmt: skip
    """Load a verified decoder for so many streams. cache: a folder with data of this engine on this device that makes
    the next load faster. Raises `RunError` where this host cannot run it."""
    runner_of(target)
    decoder = engine.sidecar.decoder
    assert decoder is not None  # only a decoder gets here
    if decoder.parts:
        run, folder = backend(target["backend"]), engine.path.parent
        assert isinstance(run, PartsRunner)  # it built them
        with named(folder, engine.source.parent):
            return run.open_parts(folder, decoder.parts, decoder.interface, streams, serving=serving, cache=cache)
    with named(engine.path, engine.source):
        return open_onnx_decoder(engine.path, decoder.interface, streams, target["options"])


def open_onnx_decoder(
    model: Path, interface: DecoderInterface, streams: int, options: Mapping[str, object]
) -> DecoderSession:
    """Load an ONNX decoder, optimized or not, for the CPU. Raises `RunError`."""
    import onnxruntime as ort

    from engineworks.engines.decoder.ort import OrtGrowingDecoder, OrtInPlaceDecoder

    try:
        session = ort.InferenceSession(str(model), cpu.session_options(options), providers=["CPUExecutionProvider"])
    except ort_errors() as error:
        raise RunError(f"{model}: ONNX Runtime {what_failed(error, model)}", log=str(error)) from None
    use_huge_pages()
    kind = OrtInPlaceDecoder if interface.form == "in_place" else OrtGrowingDecoder
    return kind(session, interface, streams)


def one_by_one(engine: VerifiedEngine) -> VerifiedEngine | None:
    """Return the engine without the parts that step several streams; None where it has none of these."""
    decoder = engine.sidecar.decoder
    single = replace(decoder, parts=tuple(part for part in decoder.parts if part.batch == 1)) if decoder else None
    return None if single == decoder else replace(engine, sidecar=replace(engine.sidecar, decoder=single))


def generate_once(
    engine: Path, interface: DecoderInterface, options: Mapping[str, object], streams: Sequence[int]
) -> None:
    """Run a prompt of two tokens and one step in the largest number of streams. Raises `RunError`."""
    session = open_onnx_decoder(engine, interface, max(streams), options)
    try:
        prompt = np.zeros(min(2, interface.context), np.int64)
        session.step(dict.fromkeys(range(session.streams), prompt))
        if interface.context > len(prompt):
            session.next_step(np.zeros(session.streams, np.int64))
    finally:
        session.close()
