"""Seeded random weights for models whose speed is asked, not their answers: the same on every host and torch version.

Torch's own initializers may change between versions; numpy's generator gives the same numbers everywhere. Scales keep
activations sane: a layer's outputs vary as much as its inputs, so that half precision has something to lose.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

SEED = 20261121


def fill(module: torch.nn.Module, *, gain: float = 1.0, last_norms: tuple[str, ...] = ()) -> torch.nn.Module:
    """Fill every weight and running statistic in place; the module, ready for inference.

    Each tensor has its own generator, by its name: the order of the modules does not matter. Matrices and convolutions:
    normal with variance gain² / fan-in, each output's weights summing to zero, so that a mean of its inputs (after a
    ReLU, say) does not drown what tells one sample from another. Norms: scale about 1, those under `last_norms` (the
    last of a residual branch) about 0.3, so that a deep sum does not grow.
    """
    import torch

    small = tuple(last_norms)
    with torch.no_grad():
        for name, tensor in {**dict(module.named_parameters()), **dict(module.named_buffers())}.items():
            if tensor.is_floating_point():
                values = _values(name, tuple(tensor.shape), gain, bool(small) and name.endswith(small))
                tensor.copy_(torch.from_numpy(values.astype(np.float32)))
    return module.eval()


def _values(name: str, shape: tuple[int, ...], gain: float, small: bool) -> Any:
    random = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    normal = random.standard_normal(shape)
    if name.endswith("running_var"):
        return np.exp(0.2 * normal)
    if name.endswith(("bias", "running_mean")):
        return 0.05 * normal
    if len(shape) < 2:
        return (0.3 if small else 1.0) * np.exp(0.1 * normal)
    if "embeddings" in name:
        return normal
    axes = tuple(range(1, len(shape)))
    return gain * (normal - normal.mean(axis=axes, keepdims=True)) / np.sqrt(np.prod(shape[1:]))
