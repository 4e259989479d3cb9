"""The fold step: ONNX → ONNX with constants folded and everything named, sorted and cleaned, and proof of it.

Weights stay on disk throughout (`onnx_files.detach_weights`), so that a model of several GB costs little memory. Every
way to fold is tried on the same prepared graph until one is proven: ONNX's checker accepts it, ONNX Runtime loads it,
and its outputs equal the original's on real data (`equivalence`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from engineworks.errors import FoldError, ModelError
from engineworks.host.lazy import Array, Arrays, onnx
from engineworks.model.equivalence import (
    Expected,
    check_same_twice,
    compare,
    expected_outputs,
    first_outputs,
    open_session,
)
from engineworks.model.fold import dims
from engineworks.model.fold.folding import STRATEGIES, Strategy, tool_failures
from engineworks.model.fold.inventory import inventory
from engineworks.model.fold.preparation import Prepared, finish, prepare
from engineworks.model.fold.repeatable import check_repeatable
from engineworks.model.fold.report import Fallback, FoldReport
from engineworks.model.fold.tidy import (
    constants_to_initializers,
    count_nodes,
    has_duplicate_node_names,
    hoist_initializers,
    name_nodes,
    name_tensors,
)
from engineworks.model.graphs import subgraphs
from engineworks.model.onnx_files import (
    detach_weights,
    is_too_new,
    load_detached,
    load_model,
    opset_of,
    save_model,
    weight_bytes,
)
from engineworks.model.opset import STANDARD, check_operators, lower_to_limits
from engineworks.tensors import TensorSpec

_BESIDE_ABOVE_BYTES = 1 << 24
"""Weights above this go next to the folded model: five steps read its graph, and few of them its weights."""

_SHOWN_CHARS = 500  # of a tool's message; some print whole graphs


@dataclass(frozen=True)
class _Original:
    """The model as it came: its file and the outputs to compare with; what the recipe declares of its outputs; and, for
    the first feed, the lengths of the inputs' named dimensions."""

    path: Path
    expected: Sequence[Expected]
    outputs: Mapping[str, dims.Shape]
    bound: Mapping[str, int]


def fold_model(
    source: Path,
    out: Path,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Mapping[str, dims.Shape] | None,
    minimum_opset: int,
    feeds: Sequence[Mapping[str, Array]],
) -> FoldReport:
    """Fold the ONNX file `source` into the file `out` (weights above 16 MiB in `<out>.data`).

    `inputs`, `outputs`: the recipe's; their lengths and dimension names are checked against the model and written into
    it. `feeds`: arrays by input name, in the recipe's dtypes and shapes, at least one; the proof is as good as they
    are. The same arguments give the same bytes.

    Raises `ModelError` for a model that cannot be used or does not fit the recipe, `SamplesError` for feeds that it
    cannot run, `FoldError` if the opset cannot be raised or no way to fold gave an equal model.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".fold-") as folder:
        work = Path(folder)
        model = load_detached(source)
        if is_too_new(model):  # ONNX's converter wants all of it
            model = load_model(source, weights=False)
        nodes_before, opset_from = count_nodes(model.graph), opset_of(model)
        model, lowered = lower_to_limits(model, str(source))
        check_operators(model, str(source))
        check_repeatable(model, str(source))
        dims.check_interface(model, inputs, outputs, str(source))
        model, reference = _detached(model, source, work, as_it_is=not lowered and not model.functions)
        original = _run_original(reference, source, inputs, outputs or {}, feeds)
        prepared = prepare(model, inputs, minimum_opset)
        strategy, fallbacks, folded, max_abs = _first_proven(prepared, original, work, out, source)
    return FoldReport(
        strategy=strategy,
        fallbacks=fallbacks,
        nodes_before=nodes_before,
        nodes_after=count_nodes(folded.graph),
        opset_from=opset_from,
        opset_to=opset_of(folded),
        max_abs=max_abs,
        samples=len(feeds),
        notes=(*lowered, *prepared.notes),
        inventory=inventory(folded),
    )


def _detached(model: onnx.ModelProto, source: Path, work: Path, *, as_it_is: bool) -> tuple[onnx.ModelProto, Path]:
    """The model with its weights left on disk, and the file to compare with: the source itself, or a copy of it with
    unique node names where ONNX Runtime would refuse the source. as_it_is: whether the model still is the source's, and
    ONNX Runtime may read it. It reads freed memory where a function holds a sparse constant, and sometimes crashes;
    in the copy such constants are dense."""
    constants_to_initializers(model.graph)
    name_tensors(model.graph)
    hoist_initializers(model.graph)
    model = detach_weights(model, source.resolve(), work / "weights")
    if as_it_is and not has_duplicate_node_names(model.graph):
        return model, source
    name_nodes(model.graph)
    reference = work / "original.onnx"
    save_model(model, reference)
    return model, reference


def _run_original(
    reference: Path,
    source: Path,
    inputs: Sequence[TensorSpec],
    outputs: Mapping[str, dims.Shape],
    feeds: Sequence[Arrays],
) -> _Original:
    session = open_session(reference)
    first = first_outputs(session, feeds, str(source))
    every = [
        dims.bind(inputs, {name: value.shape for name, value in feed.items()}, f"{source}: evaluation sample {index}")
        for index, feed in enumerate(feeds)
    ]
    dims.check_output_shapes(outputs, every[0], _shapes(first), str(source))
    return _Original(reference, expected_outputs(session, feeds, first, inputs), outputs, every[0])


def _shapes(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in arrays.items()}


def _first_proven(
    prepared: Prepared, original: _Original, work: Path, out: Path, source: Path
) -> tuple[str, tuple[Fallback, ...], onnx.ModelProto, dict[str, float]]:
    """Try the strategies in turn, and put the first proven model in place."""
    fallbacks: list[Fallback] = []
    for strategy in STRATEGIES:
        folder = Path(tempfile.mkdtemp(dir=work))
        path = folder / out.name
        try:
            folded, max_abs = _attempt(strategy, prepared, original, path)
        except (FoldError, ModelError) as error:
            fallbacks.append(Fallback(strategy.name, error.message.replace(f"{path}: ", "")))
            shutil.rmtree(folder)
            continue
        _move(path, out)
        return strategy.name, tuple(fallbacks), folded, max_abs
    check_same_twice(open_session(original.path), original.expected[0].feed, str(source))
    last = fallbacks[-1]
    raise FoldError(
        f"{source}: no way to fold gave an equal model; '{last.strategy}', the last: {last.why}",
        hint=STANDARD if "No Op registered" in last.why else _hint(prepared),  # the checker has no codes
        log="\n".join(f"{given_up.strategy}: {given_up.why}" for given_up in fallbacks),
    )


def _hint(prepared: Prepared) -> str:
    fixed = next((note for note in prepared.notes if "now fixed to" in note), None)
    if fixed is None:
        return "if the opset was raised, export the model with the newer one"
    return (
        f"the recipe fixes a length that the model leaves open ({fixed}), and a part of the model may not take it: "
        "give that dimension a name in 'inputs' and a range in 'shapes'"
    )


def _attempt(
    strategy: Strategy, prepared: Prepared, original: _Original, path: Path
) -> tuple[onnx.ModelProto, dict[str, float]]:
    """Fold in one way, write the result to `path`, prove it. Raises `FoldError` or `ModelError` with the reason."""
    copy = deepcopy(prepared.model)
    try:
        folded = strategy.fold(copy, path.parent)
    except tool_failures() as error:
        raise FoldError(f"{type(error).__name__}: {' '.join(str(error).split())[:_SHOWN_CHARS]}") from None
    folded = finish(folded, prepared)
    shapes = _shapes(original.expected[0].outputs)
    dims.apply_outputs(folded, original.outputs, prepared.claims, prepared.symbols, original.bound, shapes)
    save_model(folded, path, beside=weight_bytes(folded) > _BESIDE_ABOVE_BYTES)
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise FoldError(f"ONNX's checker refuses it: {' '.join(str(error).split())[:_SHOWN_CHARS]}") from None
    max_abs = compare(open_session(path), original.expected)
    if any(True for node in folded.graph.node for _ in subgraphs(node)):
        # A branch that never runs may still not fit the recipe's lengths, and only optimizing infers its shapes.
        open_session(path, optimized=True)
    return folded, max_abs


def _move(path: Path, out: Path) -> None:
    """Put the written files in place, the weights before the model that refers to them."""
    data, out_data = (p.with_name(f"{p.name}.data") for p in (path, out))
    if data.exists():
        os.replace(data, out_data)
    else:
        out_data.unlink(missing_ok=True)
    os.replace(path, out)
