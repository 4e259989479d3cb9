"""Notes of the build on what a recipe requests without effect: one sentence for each reason."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from engineworks.host.lazy import onnx
from engineworks.model.lower.formats import FORMATS
from engineworks.model.lower.quantizable import WORTHWHILE, KeptNode, matches
from engineworks.model.opset import shortened


def not_quantized(
    nodes: Sequence[onnx.NodeProto], globs: Mapping[str, Sequence[str]], kept: Sequence[KeptNode]
) -> Iterator[str]:
    """Yield nodes that `globs` (format → patterns) name and that stay in high precision, and patterns that name only
    nodes of operators that the format does not support."""
    for name, patterns in globs.items():
        reasons: dict[str, list[str]] = {}
        for node in kept:
            if node.named == name:
                reasons.setdefault(node.reason, []).append(node.name)
        for reason, labels in reasons.items():
            yield f"{name} is asked for {shortened(labels)}, which cannot have it: {reason}"
        for pattern in patterns:
            ops = _operators(nodes, pattern)
            if pattern != WORTHWHILE and not ops & set(FORMATS[name].operators):
                named, fitting = shortened(sorted(ops)), ", ".join(FORMATS[name].operators)
                yield f"{name} is asked for '{pattern}' ({named}), which cannot have it: it is for {fitting}"


def kept_in_vain(
    nodes: Sequence[onnx.NodeProto], patterns: Sequence[str], quantizable: Collection[str]
) -> Iterator[str]:
    """Yield patterns of `keep` that name nothing that would be quantized otherwise. quantizable: such nodes' names."""
    for pattern in patterns:
        if not any(matches(node, pattern) and node.name in quantizable for node in nodes):
            ops = shortened(sorted(_operators(nodes, pattern)))
            yield f"keep names '{pattern}' ({ops}) without effect: int8 and fp8 would not quantize it"


def fp32_in_vain(nodes: Sequence[onnx.NodeProto], patterns: Sequence[str], kept: Collection[str]) -> Iterator[str]:
    """Yield patterns of `fp32` that name no node with a floating-point tensor. kept: names of nodes in fp32."""
    for pattern in patterns:
        if not any(matches(node, pattern) and node.name in kept for node in nodes):
            ops = shortened(sorted(_operators(nodes, pattern)))
            yield f"fp32 names '{pattern}' ({ops}) without effect: nothing of it would be lowered"


def _operators(nodes: Sequence[onnx.NodeProto], pattern: str) -> set[str]:
    return {node.op_type for node in nodes if matches(node, pattern)}
