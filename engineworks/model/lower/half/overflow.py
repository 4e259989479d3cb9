"""Finds where a half-precision model stops being finite: the first node with infinity or NaN where fp32 is finite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np

from engineworks.host.lazy import onnx
from engineworks.model.lower.half.graph import FLOAT, HalfFormat, infer_types, split_model
from engineworks.model.lower.half.observe import replace_nodes
from engineworks.model.lower.half.prove import emulated
from engineworks.model.lower.half.run import Arrays, Bench, run

_WATCH = "finite:"


@dataclass(frozen=True)
class Overflow:
    """A node whose `tensor` is not finite on the sample of that number."""

    node: str
    op_type: str
    tensor: str
    sample: int

    def __str__(self) -> str:
        return f"node '{self.node}' ({self.op_type}) is the first: its output '{self.tensor}' on sample {self.sample}"


def first_overflow(
    bench: Bench, fp32: onnx.ModelProto, made: onnx.ModelProto, half: HalfFormat, samples: Sequence[Arrays]
) -> Overflow | None:
    """Return the first node of `made`, in its order, that is not finite on one of the samples; None if all are finite.

    Nodes of the same name that are not finite in the fp32 model either (masks of minus infinity) do not count. Both
    models run once more, `made` emulated as in `prove`, with a reduction next to every node. samples: arrays by input
    name, with the shapes and dtypes of the model's inputs.
    """
    shell, weights = split_model(made)
    float_like = {name for name, kind in infer_types(shell, weights).items() if kind in (FLOAT, half.elem_type)}
    with bench.borrow(weights) as stored:
        overflows = _not_finite(bench, shell, emulated(shell, weights, half), stored, float_like, samples)
    if not overflows:
        return None
    shell, weights = split_model(fp32)
    float_like = {name for name, kind in infer_types(shell, weights).items() if kind == FLOAT}
    with bench.borrow(weights) as stored:
        usual = {overflow.node for overflow in _not_finite(bench, shell, shell, stored, float_like, samples)}
    return next((overflow for overflow in overflows if overflow.node not in usual), None)


def _not_finite(
    bench: Bench,
    named: onnx.ModelProto,
    shell: onnx.ModelProto,
    stored: Mapping[str, onnx.TensorProto],
    float_like: Iterable[str],
    samples: Sequence[Arrays],
) -> list[Overflow]:
    """Return nodes of `named` that turn finite inputs into infinity or NaN in `shell`, which has the same tensors."""
    wanted = set(float_like)
    owners = [(n, o) for n in named.graph.node for o in n.output if o in wanted]
    watched, tensors = _watched(shell, [tensor for _, tensor in owners])
    session = bench.open(watched, stored)
    overflows: dict[str, Overflow] = {}
    for at, sample in enumerate(samples):
        values = dict(zip(tensors, run(session, sample, [_WATCH + t for t in tensors]), strict=True))
        bad = {tensor for tensor, value in values.items() if np.isnan(value)}
        for node, tensor in owners:
            if tensor in bad and bad.isdisjoint(node.input):
                overflows.setdefault(node.name, Overflow(node.name, node.op_type, tensor, at))
        if overflows:
            break
    return list(overflows.values())


def _watched(shell: onnx.ModelProto, tensors: Sequence[str]) -> tuple[onnx.ModelProto, list[str]]:
    """Return the graph with a scalar for each tensor that it makes: Σ (x - x)², NaN if an element is not finite."""
    watched = deepcopy(shell)
    wanted, made, nodes = set(tensors), [], []
    for node in watched.graph.node:
        nodes.append(node)
        for name in node.output:
            if name in wanted:
                made.append(name)
                nodes.append(onnx.helper.make_node("Sub", [name, name], [f"{_WATCH}difference:{name}"]))
                reduced = [f"{_WATCH}difference:{name}"], [_WATCH + name]
                nodes.append(onnx.helper.make_node("ReduceSumSquare", *reduced, keepdims=0))
    replace_nodes(watched, nodes, (onnx.helper.make_tensor_value_info(_WATCH + n, FLOAT, []) for n in made))
    return watched, made
