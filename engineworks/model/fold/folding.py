"""The ways to fold constants, in the order in which they are tried. None is trusted: `fold` proves what they made.

Polygraphy's FoldConstants is the most thorough. It breaks graphs where it puts a known branch of a nested If in place;
so the second way leaves branches to us, the third folds no shapes, the fourth folds each constant by itself (where all
together are too much for one message, or one of them cannot be computed), and the last folds nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engineworks.errors import FoldError
from engineworks.host.lazy import onnx, ort
from engineworks.model.equivalence import runtime_reason
from engineworks.model.fold.large_constants import NEVER_FOLDED, fold_large_constants
from engineworks.model.fold.shapes import fold_known_shapes, infer_shapes, spell_out_limits
from engineworks.model.fold.tidy import (
    count_nodes,
    drop_unused,
    hoist_initializers,
    inline_known_branches,
    name_tensors,
)
from engineworks.model.graphs import names_read, sort_nodes, subgraphs
from engineworks.model.tensor_storage import attach, tensor_bytes

_SMALLEST_LIMIT_BYTES = 1 << 20
_MAX_PASSES = 16
_RUNTIME_FATAL, _RUNTIME_DEFAULT_SEVERITY = 4, 2  # of ONNX Runtime's logger, which does not report its setting
_SHOWN_CHARS = 500
_TOOLS = threading.Lock()


@dataclass(frozen=True)
class Strategy:
    """A way to fold: its name in the report, and the function that returns the folded model. It may use up its
    argument and leave weights in the given empty folder. It raises `FoldError`, or one of `tool_failures`."""

    name: str
    fold: Callable[[onnx.ModelProto, Path], onnx.ModelProto]


def tool_failures() -> tuple[type[Exception], ...]:
    """What the folding libraries raise when a graph is beyond them: mostly Python's own errors."""
    from google.protobuf.message import Error as ProtobufError
    from onnx.checker import ValidationError
    from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException
    from polygraphy.exception import PolygraphyException

    return (
        ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RuntimeError, TypeError, ValueError,
        ValidationError, OnnxGraphSurgeonException, PolygraphyException, ProtobufError,
    )  # fmt: skip


def _fold_by_polygraphy(model: onnx.ModelProto, work: Path, *, fold_shapes: bool) -> onnx.ModelProto:
    limit = _limit_bytes(model)
    fold_large_constants(model, work / "constants", limit)
    for _ in range(_MAX_PASSES):
        before = count_nodes(model.graph)
        model = _polygraphy_pass(model, fold_shapes, limit)
        if count_nodes(model.graph) == before:
            break
    return model


def _polygraphy_pass(model: onnx.ModelProto, fold_shapes: bool, limit: int) -> onnx.ModelProto:
    from polygraphy.backend.onnx import fold_constants

    if fold_shapes:
        fold_known_shapes(model.graph)
        spell_out_limits(model.graph)
    _attach_foldable(model.graph, set(), {})
    with _quiet_tools(model.ir_version) as warnings:
        folded: onnx.ModelProto = fold_constants(
            model, num_passes=1, fold_shapes=fold_shapes, error_ok=False, size_threshold=limit,
            allow_onnxruntime_shape_inference=False,
        )  # fmt: skip
    _refuse_given_up(warnings)
    return folded


def _fold_by_graphsurgeon(
    model: onnx.ModelProto, work: Path, *, fold_shapes: bool, partitioning: str | None = None
) -> onnx.ModelProto:
    limit = _limit_bytes(model)
    fold_large_constants(model, work / "constants", limit)
    for _ in range(_MAX_PASSES):
        before = count_nodes(model.graph)
        if fold_shapes:
            fold_known_shapes(model.graph)
            spell_out_limits(model.graph)
        _attach_foldable(model.graph, set(), {})
        model = _graphsurgeon_pass(model, fold_shapes, partitioning, limit)
        hoist_initializers(model.graph)
        inlined = inline_known_branches(model.graph)
        name_tensors(model.graph)
        sort_nodes(model.graph)
        drop_unused(model.graph)
        model = infer_shapes(model)
        if not inlined and count_nodes(model.graph) == before:
            break
    return model


def _graphsurgeon_pass(
    model: onnx.ModelProto, fold_shapes: bool, partitioning: str | None, limit: int
) -> onnx.ModelProto:
    import onnx_graphsurgeon as gs

    with _quiet_tools(model.ir_version) as warnings:
        graph = gs.import_onnx(model)
        graph.fold_constants(
            fold_shapes=fold_shapes, partitioning=partitioning, flatten_subgraphs=False, size_threshold=limit
        )
        folded: onnx.ModelProto = gs.export_onnx(graph.cleanup(), do_type_check=False)
    if partitioning is None:
        _refuse_given_up(warnings)
    return folded


STRATEGIES: tuple[Strategy, ...] = (
    Strategy("polygraphy", partial(_fold_by_polygraphy, fold_shapes=True)),
    Strategy("graphsurgeon, branches by us", partial(_fold_by_graphsurgeon, fold_shapes=True)),
    Strategy("polygraphy, shapes not folded", partial(_fold_by_polygraphy, fold_shapes=False)),
    Strategy(
        "graphsurgeon, one constant at a time",
        partial(_fold_by_graphsurgeon, fold_shapes=False, partitioning="recursive"),
    ),
    Strategy("clean-up only", lambda model, _: model),
)


def _limit_bytes(model: onnx.ModelProto) -> int:
    """No folded constant may be larger than the model's largest weight: Expand and Tile of a small constant would make
    a large file out of it, while a transposed weight is no larger than the weight."""
    return max(_SMALLEST_LIMIT_BYTES, *(tensor_bytes(tensor) for tensor in model.graph.initializer), 0)


def _attach_foldable(graph: onnx.GraphProto, constant: set[str], weights: dict[str, onnx.TensorProto]) -> None:
    """Read in those detached weights that a fold may compute with; the others stay where they are.

    A node may be folded if all that it reads is constant; Shape and Size count as constant, for their values may turn
    out to be known.
    """
    constant = constant | {tensor.name for tensor in graph.initializer}
    weights = weights | {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for inner in subgraphs(node):
            _attach_foldable(inner, constant, weights)
        own = {name for inner in subgraphs(node) for name in _made_within(inner)}
        read = set(names_read(node)) - own
        foldable = read <= constant and node.op_type not in NEVER_FOLDED
        if foldable:
            for name in read & weights.keys():
                attach(weights[name])
        if foldable or node.op_type in ("Shape", "Size"):
            constant.update(node.output)


def _made_within(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in (*graph.input, *graph.initializer))
    for node in graph.node:
        yield from node.output
        for inner in subgraphs(node):
            yield from _made_within(inner)


def _refuse_given_up(warnings: list[str]) -> None:
    """graphsurgeon goes on with a warning when ONNX Runtime cannot compute the constants; then nothing is folded."""
    for warning in warnings:
        if "Inference failed" in warning:
            reason = runtime_reason(warning.partition("Error was:")[2])[:_SHOWN_CHARS]
            raise FoldError(f"ONNX Runtime cannot compute the constants: {reason}", log=warning)


@contextmanager
def _quiet_tools(ir_version: int) -> Iterator[list[str]]:
    """Collect graphsurgeon's warnings, which it would print to standard output, and silence Polygraphy's and ONNX
    Runtime's. All three keep one logger per interpreter, hence the lock.

    graphsurgeon has the constants of a branch computed in a model of ONNX's newest IR version, which ONNX Runtime may
    not read yet: `ir_version` replaces it meanwhile.
    """
    from onnx_graphsurgeon.logger.logger import G_LOGGER as SURGEON
    from polygraphy.logger import G_LOGGER as POLYGRAPHY

    warnings: list[str] = []

    def collect(message: object, severity: int, **_: object) -> None:
        if severity >= SURGEON.WARNING:
            warnings.append(str(message() if callable(message) else message))

    with _TOOLS, POLYGRAPHY.verbosity(POLYGRAPHY.CRITICAL + 1):
        SURGEON.log = collect
        ort.set_default_logger_severity(_RUNTIME_FATAL)
        newest = onnx.IR_VERSION
        onnx.IR_VERSION = ir_version  # type: ignore[assignment]
        try:
            yield warnings
        finally:
            onnx.IR_VERSION = newest
            del SURGEON.log
            ort.set_default_logger_severity(_RUNTIME_DEFAULT_SEVERITY)
