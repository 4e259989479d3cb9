"""Operations of a model at given shapes, counted from the shapes in ONNX Runtime's profile, never from its times.

One operation takes about as long as one multiply-add of a convolution. A node that runs counts NODE, plus the larger of
two numbers: its multiply-adds, if it is a product, and VALUE for every value that it reads or writes. Nodes of branches
and loops count as often as they run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

NODE, VALUE = 2**17, 16

Shape = Sequence[int]


def profiled_operations(profile: Path) -> list[int]:
    """Return the operations of every run in a profile of ONNX Runtime, in order."""
    operations, now = [], 0
    for event in json.loads(profile.read_text(encoding="utf-8")):
        name, args = event.get("name", ""), event.get("args", {})
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            now += node_operations(args.get("op_name", ""), _shapes(args, "input"), _shapes(args, "output"))
        elif name == "model_run":
            operations.append(now)
            now = 0
    return operations


def _shapes(args: Mapping[str, Any], side: str) -> list[Shape]:
    return [shape for typed in args.get(f"{side}_type_shape", ()) for shape in typed.values()]


def node_operations(op_type: str, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    """Return the operations of one execution of a node."""
    values = sum(math.prod(s) for s in (*inputs, *outputs))
    return NODE + max(VALUE * values, _multiply_adds(op_type, inputs, outputs))


def _multiply_adds(op_type: str, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    count = next((c for kind, c in _PRODUCTS.items() if kind in op_type), None)
    try:
        return count(inputs, outputs[0]) if count else 0
    except IndexError:  # an operator of the same name with other inputs
        return 0


def _weights(inputs: Sequence[Shape]) -> Iterator[Shape]:
    """Yield the weights' shapes; in a quantized product, scales lie between the operands."""
    return (s for s in inputs[1:] if len(s) > 1)


def _convolution(inputs: Sequence[Shape], output: Shape) -> int:
    return math.prod(output) * math.prod(next(_weights(inputs), (1,))[1:])


def _transposed(inputs: Sequence[Shape], output: Shape) -> int:
    return math.prod(inputs[0]) * math.prod(next(_weights(inputs), (1,))[1:])


def _product(inputs: Sequence[Shape], output: Shape) -> int:
    return math.prod(output) * inputs[0][-1]


def _gemm(inputs: Sequence[Shape], output: Shape) -> int:
    return math.prod(output) * (math.prod(inputs[0]) // max(1, output[0]))


def _recurrent(inputs: Sequence[Shape], output: Shape) -> int:
    length, batch = inputs[0][:2]
    return length * batch * sum(math.prod(s) for s in inputs[1:3])


def _attention(inputs: Sequence[Shape], output: Shape) -> int:
    return 2 * math.prod(inputs[0]) * inputs[1][-2]


def _contraction(inputs: Sequence[Shape], output: Shape) -> int:
    """Return at most the square root of the product of all sizes, which is exact for a matrix product."""
    return math.isqrt(math.prod(math.prod(s) for s in (*inputs, output)))


_PRODUCTS: Mapping[str, Callable[[Sequence[Shape], Shape], int]] = {
    "ConvTranspose": _transposed, "Conv": _convolution, "MatMul": _product, "Gemm": _gemm, "LSTM": _recurrent,
    "GRU": _recurrent, "RNN": _recurrent, "Attention": _attention, "Einsum": _contraction,
}  # fmt: skip
"""By a part of the operator's name: ConvInteger and QLinearMatMul count alike."""
