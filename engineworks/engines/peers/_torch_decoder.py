"""transformers' own decoder in PyTorch eager, with the cache that it makes for itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engineworks.engines.decoder.base import Logits, Tokens


class TorchDecoder:
    """Satisfies `base.PromptRunner`. model: transformers' module, on its device."""

    def __init__(self, model: Any, device: str) -> None:
        self._model, self._device, self._cache = model, device, None

    @property
    def notes(self) -> Sequence[str]:
        return ()

    def reset(self, streams: Sequence[int] | None = None) -> None:
        del streams
        self._cache = None

    def last_logits(self, tokens: Mapping[int, Tokens]) -> dict[int, Logits]:
        logits = self._run(np.stack(list(tokens.values()))).float().cpu().numpy()
        return dict(zip(tokens, logits, strict=True))

    def next_step(self, tokens: Tokens) -> None:
        self._run(tokens[:, None]).argmax(-1).cpu()

    def _run(self, ids: Tokens) -> Any:
        import torch

        with torch.inference_mode():
            given = torch.from_numpy(np.ascontiguousarray(ids)).to(self._device)
            made = self._model(input_ids=given, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = made.past_key_values
        return made.logits[:, -1]

    def close(self) -> None:
        self._model = self._cache = None
