"""The meaning of a precision's name: the type in which a model computes, and the nodes quantized to each format.

`int8` and the other formats are shorthand: every worthwhile node is quantized, the rest is fp16 (fp32 on the CPU). A
mixture of the recipe names its nodes; '*' means all that can be quantized. Nothing here looks at a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engineworks.engines import backends
from engineworks.recipe.recipe import AS_IS, CALIBRATED, FLOATS, FORMATS, W4A8, Recipe

WORTHWHILE_NODES = ("worthwhile:*",)
"""`quantizable.WORTHWHILE`, repeated here so that a plan needs no ONNX."""


@dataclass(frozen=True)
class Computation:
    """How an engine computes.

    around: fp32, fp16 or bf16. quantized: format → globs of the nodes that have it. keep: globs of nodes that
    calibrated formats exclude. fp32: globs of nodes that stay fp32 within fp16 or bf16.
    """

    unquantized: str
    quantized: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    fp32: tuple[str, ...] = ()
    as_is: bool = False

    @property
    def dynamic(self) -> str:
        """The precision's name where activations are rounded as they come, '' otherwise."""
        return W4A8 if W4A8 in self.quantized else ""

    @property
    def calibrated(self) -> bool:
        """Whether activations are quantized, which needs their ranges."""
        return any(name in CALIBRATED for name in self.quantized)

    @property
    def parts(self) -> tuple[str, ...]:
        """The plain precisions that a target must support."""
        return (AS_IS,) if self.as_is else (*self.quantized, self.unquantized)

    def to_json(self) -> dict[str, Any]:
        """Parameters of the lower step besides the name; empty ones are left out."""
        document: dict[str, Any] = {}
        if self.quantized:
            document |= {"unquantized": self.unquantized, "quantized": {n: list(g) for n, g in self.quantized.items()}}
        elif self.fp32:
            document["unquantized"] = self.unquantized
        if self.calibrated:
            document["keep"] = list(self.keep)
        if self.fp32:
            document["fp32"] = list(self.fp32)
        return document


def computation(recipe: Recipe, precision: str, backend: str) -> Computation:
    """The meaning of `precision`, a plain name or one of the recipe's mixtures, on a target of this backend."""
    if precision in FLOATS:
        return Computation(precision)
    if precision == AS_IS:
        return Computation("fp32", as_is=True)
    unquantized = recipe.calibration.unquantized or backends.backend(backend).TRAITS.unquantized
    keep = recipe.calibration.keep
    if precision == W4A8:
        return Computation(unquantized, {W4A8: WORTHWHILE_NODES})
    mixture = recipe.mixtures.get(precision)
    if mixture is None:
        return Computation(unquantized, {precision: WORTHWHILE_NODES}, keep)
    quantized: dict[str, tuple[str, ...]] = {name: globs for name in FORMATS if (globs := getattr(mixture, name))}
    return Computation(mixture.default or unquantized, quantized, keep, mixture.fp32)
