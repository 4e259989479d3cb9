"""Time per layer of an engine, mapped to the nodes of the lowered ONNX; and why one engine is not faster than another.

Pure. A layer is what the runtime times: a fused kernel may hold many nodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engineworks.typed_json import Count, Document, Report, Size

PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Attention", "LSTM", "GRU", "RNN")
"""Operators of matrix products, by the ONNX standard; a runtime's own kinds contain one of these."""

ROUNDING = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")

TENSOR_CORES = re.compile(r"mma|tensorop|s\d{4,}(gemm|cudnn)|fprop_implicit_gemm.*tensor|_tn_n_.*t?f16|xmma", re.I)
NO_TENSOR_CORES = re.compile(r"ffma|simt|sgemm|dp4a|cuda_?core|gemv", re.I)
"""Parts of kernels' names, as CUTLASS, cuDNN and cuBLAS write them: HMMA, IMMA, WGMMA or tensorop; FFMA or SIMT."""

LITTLE = 0.02
"""A share of the time that a sentence leaves out."""


@dataclass(frozen=True)
class Layer(Document):
    """ms: mean of a run. kind: the runtime's own word for it. nodes: of the lowered ONNX; ops: their operators, once
    each. kernel: the GPU's kernel, '' where it is unknown."""

    name: str
    kind: str
    ms: Size
    nodes: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    kernel: str = ""

    @property
    def label(self) -> str:
        """What it computes, as one word for a table: 'MatMul + Add', or the runtime's own kind."""
        shown = [op for op in self.ops if op not in ROUNDING] or list(self.ops)
        more = " + …" if len(shown) > 3 else ""
        return " + ".join(shown[:3]) + more if shown else self.kind

    @property
    def is_product(self) -> bool:
        return any(op in PRODUCTS for op in self.ops) or (not self.ops and any(p in self.kind for p in PRODUCTS))

    @property
    def is_rounding(self) -> bool:
        """Whether it only quantizes, dequantizes or casts: what a fusion would have made free."""
        ops = self.ops or (self.kind,)
        return all(op in (*ROUNDING, "Cast") for op in ops) and any(op in ROUNDING for op in ops)

    @property
    def is_cast(self) -> bool:
        return (self.ops or (self.kind,)) == ("Cast",)

    @property
    def uses_tensor_cores(self) -> bool | None:
        """By the kernel's name; None where that tells nothing."""
        if NO_TENSOR_CORES.search(self.kernel):
            return False
        return True if TENSOR_CORES.search(self.kernel) else None


@dataclass(frozen=True)
class Layers(Report):
    """An engine's layers at one named shape. source: what timed them. why: why there are none, '' if there are."""

    FILE = "layers.json"

    shape: str = ""
    runs: Count = 0
    source: str = ""
    layers: tuple[Layer, ...] = ()
    why: str = ""
    notes: tuple[str, ...] = ()

    @property
    def total_ms(self) -> float:
        return sum(layer.ms for layer in self.layers)


@dataclass(frozen=True)
class Operator:
    """All layers that compute the same: their count, nodes, time, and share of the whole."""

    label: str
    layers: int
    nodes: int
    ms: float
    share: float


def by_operator(timed: Layers) -> list[Operator]:
    """The layers put together by what they compute, the longest first."""
    groups: dict[str, list[Layer]] = {}
    for layer in timed.layers:
        groups.setdefault(layer.label, []).append(layer)
    total = timed.total_ms or 1.0
    found = [
        Operator(label, len(g), sum(len(x.nodes) for x in g), sum(x.ms for x in g), sum(x.ms for x in g) / total)
        for label, g in groups.items()
    ]
    return sorted(found, key=lambda operator: -operator.ms)


def fused(timed: Layers) -> list[Layer]:
    """Layers that hold several nodes, the longest first."""
    return sorted((layer for layer in timed.layers if len(layer.nodes) > 1), key=lambda layer: -layer.ms)


def why_not_faster(name: str, timed: Layers, other_name: str, other: Layers) -> str:
    """One sentence with numbers: what the first engine gains and loses against the second; '' without both."""
    if not timed.layers or not other.layers:
        return ""
    total, other_total = timed.total_ms, other.total_ms
    direction = "slower" if total > other_total else "faster"
    begin = f"{name} is {direction} than {other_name} ({_ms(total)} against {_ms(other_total)} in layers)"
    parts = [
        *_products(timed, other, other_total),
        *_roundings(timed, other_name, other, other_total),
        *_rest(timed, other, other_total),
    ]
    return f"{begin}: {'; '.join(parts)}." if parts else f"{begin}, evenly over all layers."


def _products(timed: Layers, other: Layers, total: float) -> Iterable[str]:
    """Products: how many run without tensor cores, and what they gain or lose."""
    products, others = ([x for x in t.layers if x.is_product] for t in (timed, other))
    without = [x for x in products if x.uses_tensor_cores is False]
    if without:
        yield (f"{len(without)} of {len(products)} products run a kernel without tensor cores, {_ms(_sum(without))}")
    gained = _sum(others) - _sum(products)
    if abs(gained) >= LITTLE * total:
        slower = _slower(products, others)
        suffix = f", {slower} of {len(products)} take longer" if slower and gained < 0 else ""
        yield f"products {_ms(_sum(products))} against {_ms(_sum(others))}{suffix}"


def _slower(products: Sequence[Layer], others: Sequence[Layer]) -> int:
    """How many products take longer than the layer of the other engine that holds the same node."""
    before = {node: layer.ms for layer in others for node in layer.nodes}
    return sum(any(layer.ms > before[n] for n in layer.nodes if n in before) for layer in products)


def _roundings(timed: Layers, other_name: str, other: Layers, total: float) -> Iterable[str]:
    for begin, layers in (("", timed.layers), (f"{other_name}'s ", other.layers)):
        alone = [x for x in layers if x.is_rounding]
        if alone and _sum(alone) >= LITTLE * total:
            yield f"{begin}Q/DQ that was not fused: {_ms(_sum(alone))} in {len(alone)} layers"


def _rest(timed: Layers, other: Layers, total: float) -> Iterable[str]:
    casts = [[x for x in t.layers if x.is_cast] for t in (timed, other)]
    if (more := _sum(casts[0]) - _sum(casts[1])) >= LITTLE * total:
        yield f"casts {_ms(more)} more"
    rest = [[x for x in t.layers if not (x.is_product or x.is_rounding or x.is_cast)] for t in (timed, other)]
    change = _sum(rest[0]) - _sum(rest[1])
    if abs(change) >= LITTLE * total:
        yield f"all else {_ms(abs(change))} {'more' if change > 0 else 'less'}"


def _sum(layers: Iterable[Layer]) -> float:
    return sum(layer.ms for layer in layers)


def _ms(value: float) -> str:
    return f"{value:.3g} ms"
