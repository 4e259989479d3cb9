"""onnxruntime-genai on the CPU: its model builder's own graph, in fp32 and in its own int4 (accuracy level 4)."""

from __future__ import annotations

import atexit
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from engineworks.engines.backends.base import Session
from engineworks.engines.peers.base import PeerModel
from engineworks.errors import RunError
from engineworks.host import cpu, cpu_watch
from engineworks.host.memory import ResidentMemory
from engineworks.host.packages import installed_version, installed_versions

if TYPE_CHECKING:
    from engineworks.engines.decoder.base import Logits, Tokens

TITLE = "onnxruntime-genai, CPU"
FROM_SOURCE = True
PACKAGES = ("onnxruntime-genai", "torch", "transformers")


def precisions(asked: Sequence[str]) -> tuple[str, ...]:
    del asked
    return ("fp32", "int4")


def why_not(source: str, precision: str) -> str | None:
    del precision
    if source != "huggingface":
        return f"the recipe's source is {source}: its model builder reads Hugging Face folders"
    missing = [name for name in PACKAGES if installed_version(name) is None]
    return f"{' and '.join(missing)} is not installed; pip install {' '.join(missing)}" if missing else None


def versions() -> Mapping[str, str | None]:
    return dict(installed_versions(PACKAGES))


def open_library() -> None:
    import onnxruntime_genai  # noqa: F401


hardware, memory_meter, device_watch = cpu.describe, ResidentMemory, cpu_watch.LoadWatch


def load(model: PeerModel) -> Session:
    raise RunError(f"{TITLE} runs decoders only")


def load_decoder(model: PeerModel, streams: int) -> GenaiDecoder:
    """Build the graph from the recipe's Hugging Face folder, offline, and load it. Raises `RunError`."""
    if model.origin is None:
        raise RunError(f"{TITLE}: there is no Hugging Face folder")
    try:
        folder = _built(model.origin.folder / model.origin.path, model.precision)
        import onnxruntime_genai

        return GenaiDecoder(onnxruntime_genai.Model(str(folder)), streams, folder)
    except Exception as error:  # the builder raises whatever its parts raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"{TITLE} cannot build or load the model: {first}", log=repr(error)) from error


@cache
def _built(source: Path, precision: str) -> Path:
    """Return the folder with the graph, built once per process and removed at its end."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    out = Path(mkdtemp(prefix="engineworks-genai-"))
    atexit.register(shutil.rmtree, out, ignore_errors=True)
    given = ("", str(source), str(out), precision, "cpu", str(out / "cache"))
    create_model(*given, **parse_extra_options(*given, {}))
    path = out / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = cpu.usable_cores()
    path.write_text(json.dumps(config), encoding="utf-8")
    return out


class GenaiDecoder:
    """Satisfies `base.PromptRunner`. model: `onnxruntime_genai.Model` of the folder."""

    notes = ()

    def __init__(self, model: Any, streams: int, folder: Path) -> None:
        self._model, self._streams = model, streams
        self._generator: Any = None
        config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
        self._context, self._vocabulary = config["context_length"], config["vocab_size"]

    def reset(self, streams: Sequence[int] | None = None) -> None:
        import onnxruntime_genai

        del streams
        params = onnxruntime_genai.GeneratorParams(self._model)
        params.set_search_options(max_length=self._context, do_sample=False, batch_size=self._streams)
        self._generator = onnxruntime_genai.Generator(self._model, params)

    def last_logits(self, tokens: Mapping[int, Tokens]) -> dict[int, Logits]:
        import numpy as np

        ids = np.stack(list(tokens.values())).astype(np.int32)
        self._generator.append_tokens(ids if len(ids) > 1 else ids[0])
        logits = np.asarray(self._generator.get_logits(), np.float32).reshape(len(ids), -1, self._vocabulary)
        return dict(zip(tokens, logits[:, -1], strict=True))

    def next_step(self, tokens: Tokens) -> None:
        """Append the tokens that it chose itself: genai has no faster way, and the time is that of any token."""
        del tokens
        self._generator.generate_next_token()

    def close(self) -> None:
        self._generator = self._model = None
