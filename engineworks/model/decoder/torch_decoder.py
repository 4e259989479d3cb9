"""transformers' own decoder as a module with a KV cache of fixed capacity, for `torch.onnx.export`.

transformers lets both be replaced: the cache by a class, attention by a registered function. The cache writes with
TensorScatter (opset 24) at each row's own position; attention reads the whole capacity under an explicit mask, so that
rows of one batch may be at different positions. Everything else is the family's own code. Rotary embeddings become
tables made by the model's own module: exact for every kind, and without branches on data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engineworks.errors import ModelError

if TYPE_CHECKING:
    import torch

ATTENTION = "engineworks"
"""The name under which attention is registered with transformers."""

OPSET = 24


class Call:
    """What one call of the model shares with all its layers: positions [batch, sequence], and masks by window."""

    positions: Any = None
    masks: Mapping[int, Any] = {}


def mask_of(call: Call, capacity: int, window: int) -> Any:
    """Return which positions each query may read: bool [batch, 1, sequence, capacity]. window: 0 for no limit."""
    import torch

    if window not in call.masks:
        rows = call.positions[:, None, :, None]
        columns = torch.arange(capacity)[None, None, None, :]
        mask = columns <= rows
        call.masks = {**call.masks, window: mask & (columns > rows - window) if window else mask}
    return call.masks[window]


def register_attention(call: Call) -> None:
    """Register attention under ATTENTION; masks are its own, so transformers makes none."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    def attend(module: Any, q: Any, k: Any, v: Any, _mask: Any, scaling: float | None = None, **given: Any) -> Any:
        softcap = given.get("softcap") or 0.0
        window = given.get("sliding_window", getattr(module, "sliding_window", None)) or 0  # Qwen 2 MoE gives none
        sinks = given.get("s_aux")
        sinks = getattr(module, "sinks", None) if sinks is None else sinks
        q = q.reshape(q.shape[0], q.shape[1], -1, q.shape[3])  # heads and size as numbers, for TensorRT-RTX
        scale = scaling if scaling is not None else q.shape[-1] ** -0.5
        mask = mask_of(call, k.shape[2], window)
        if sinks is None:
            return _operator(q, k, v, mask, float(scale), float(softcap)).transpose(1, 2), None
        return _with_sinks(q, k, v, mask, float(scale), float(softcap), sinks).transpose(1, 2), None

    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, lambda *_a, **_k: None)


def check_window(call: Call, config: Any, context: int) -> None:
    """Raises `ModelError` if the call that was traced last did not limit attention to the config's sliding window: a
    short proof cannot see that."""
    window, kinds = getattr(config, "sliding_window", None) or 0, getattr(config, "layer_types", None)
    used = 0 < window < context and (kinds is None or "sliding_attention" in kinds)
    if used and window not in call.masks:
        raise ModelError(
            f"its sliding window of {window} positions does not reach the attention: the export would read more",
            hint=f"model.decoder.context: {window} at most",
        )


def _operator(q: Any, k: Any, v: Any, mask: Any, scale: float, softcap: float) -> Any:
    """Attention-24: q [b, heads, s, d], k and v [b, kv heads, capacity, d] → [b, heads, s, d]."""
    import torch

    attributes = {"scale": scale} | ({"softcap": softcap} if softcap else {})
    shape = (*q.shape[:3], v.shape[3])
    return torch.onnx.ops.symbolic(
        "Attention", (q, k, v, mask), attributes, dtype=q.dtype, shape=shape, version=OPSET
    )  # fmt: skip


def _with_sinks(q: Any, k: Any, v: Any, mask: Any, scale: float, softcap: float, sinks: Any) -> Any:
    """Attention with one more, learned logit per head that takes weight and gives no value; shapes as `_operator`."""
    import torch

    b, heads, s, d = q.shape
    groups = k.shape[1]
    logits = ((q * scale).reshape(b, groups, -1, d) @ k.transpose(2, 3)).reshape(b, heads, s, -1)
    if softcap:
        logits = torch.tanh(logits / softcap) * softcap
    least = torch.tensor(-6e4 if q.dtype == torch.float16 else -1e30, dtype=q.dtype)
    logits = torch.where(mask, logits, least)
    sink = sinks.reshape(1, -1, 1, 1).to(logits.dtype).expand(b, heads, s, 1)
    weights = torch.softmax(torch.cat([logits, sink], -1), -1)[..., :-1]
    return (weights.reshape(b, groups, -1, weights.shape[-1]) @ v).reshape(b, heads, s, -1)


def cache_shapes(model: Any) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return (heads, size) of keys and of values, layer by layer, from a run on three tokens with transformers' own
    cache: config names differ by family."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.ones(1, 3, dtype=torch.int64), past_key_values=cache, use_cache=True)
    return [
        ((layer.keys.shape[1], layer.keys.shape[3]), (layer.values.shape[1], layer.values.shape[3]))
        for layer in cache.layers
    ]


def use_rotary_tables(model: Any, context: int) -> None:
    """Replace every rotary module by its own values at all positions, one table for each kind of layer."""
    import torch

    config = model.config
    by_kind = "full_attention" in (getattr(config, "rope_parameters", None) or {})
    kinds = sorted(set(getattr(config, "layer_types", None) or ())) if by_kind else [None]
    like = torch.zeros(1, context, 1, dtype=next(model.parameters()).dtype)
    places = torch.arange(context)[None]
    for name, module in list(model.named_modules()):
        if not name.endswith("rotary_emb"):
            continue
        own = module.forward
        with torch.no_grad():
            made = {k: own(like, places, k) if k else own(like, places) for k in kinds}
        tables = {kind: tuple(t[0].clone() for t in pair) for kind, pair in made.items()}
        module.forward = _reader(tables)


def _reader(tables: Mapping[str | None, tuple[Any, ...]]) -> Any:
    def read(_x: Any, position_ids: Any = None, layer_type: str | None = None, **_kw: Any) -> tuple[Any, ...]:
        return tuple(table[position_ids] for table in tables[layer_type])

    return read


def decoder_module(model: Any, call: Call) -> torch.nn.Module:
    """Wrap: (input_ids [b, s], write_indices [b], caches) → (logits [b, s, vocabulary], caches)."""
    import torch
    from transformers.cache_utils import Cache

    class InPlaceCache(Cache):  # type: ignore[misc]
        """Two tensors [b, heads, capacity, size] per layer, written at `indices`."""

        is_compileable = True
        is_sliding: Any = (False,)

        def __init__(self, tensors: Any, indices: Any) -> None:
            self.tensors, self.indices = tensors, indices
            self.written: dict[int, Any] = {}
            self.layers: list[Any] = []

        def update(self, keys: Any, values: Any, layer: int, *_a: Any, **_k: Any) -> Any:
            pair = []
            for offset, new in enumerate((keys, values)):
                old = self.tensors[2 * layer + offset]
                made = torch.onnx.ops.symbolic(
                    "TensorScatter", (old, new, self.indices), {"axis": -2}, dtype=new.dtype, shape=old.shape,
                    version=OPSET,
                )  # fmt: skip
                self.written[2 * layer + offset] = made
                pair.append(made)
            return tuple(pair)

        def get_seq_length(self, *_a: Any, **_k: Any) -> int:
            return 0

        def get_mask_sizes(self, *_a: Any, **_k: Any) -> tuple[int, int]:
            return self.tensors[0].shape[2], 0

    class Decoder(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, write_indices: Any, caches: Any) -> Any:
            call.positions, call.masks = write_indices[:, None] + torch.arange(input_ids.shape[1])[None], {}
            cache = InPlaceCache(caches, write_indices)
            logits = self.model(
                input_ids=input_ids, position_ids=call.positions, past_key_values=cache, use_cache=True
            ).logits
            return (logits, *(cache.written[i] for i in range(len(caches))))

    return Decoder().eval()
