"""The fold step: ONNX → ONNX with constants folded and everything named, sorted and cleaned, and proof of it.

Weights stay on disk throughout (`onnx_files.detach_weights`), so that a model of several GB costs little memory. Every
way to fold is tried on the same prepared graph until one is proven: ONNX's checker accepts it, ONNX Runtime loads it,
and its outputs equal the original's on real data (`equivalence`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engineworks.errors import FoldError, ModelError
from engineworks.model import dims
from engineworks.model.equivalence import compare, first_shapes, open_session
from engineworks.model.folding import STRATEGIES, Strategy, tool_failures
from engineworks.model.inspect import Inventory, inventory
from engineworks.model.names import has_duplicate_node_names, name_nodes, name_tensors
from engineworks.model.onnx_files import detach_weights, ir_version_for, known_dim, load_model, save_model
from engineworks.model.opset import check_operators, inline_functions, opset_of, raise_opset, tidy_domains
from engineworks.model.shapes import infer_shapes
from engineworks.model.tidy import (
    constants_to_initializers,
    count_nodes,
    drop_inputs_with_values,
    drop_unused,
    hoist_initializers,
    sort_nodes,
)
from engineworks.tensors import Dim, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnxruntime
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]

_KEPT_FIELDS = ("producer_name", "producer_version", "domain", "model_version", "doc_string")


@dataclass(frozen=True)
class FoldReport:
    """What was done, and how well it is proven.

    strategy: the way that made the written model (`folding.STRATEGIES`). fallbacks: the ways before it that failed,
    each with why. nodes_before, nodes_after: branches and bodies included. max_abs: largest absolute difference of
    every output from the original's, over `samples` feeds. notes: changes to dimensions, one sentence each.
    """

    strategy: str
    fallbacks: tuple[tuple[str, str], ...]
    nodes_before: int
    nodes_after: int
    opset_from: int
    opset_to: int
    max_abs: Mapping[str, float]
    samples: int
    notes: tuple[str, ...]
    inventory: Inventory

    def to_json(self) -> dict[str, object]:
        return {
            "strategy": self.strategy,
            "fallbacks": [{"strategy": name, "why": why} for name, why in self.fallbacks],
            "nodes_before": self.nodes_before,
            "nodes_after": self.nodes_after,
            "opset_from": self.opset_from,
            "opset_to": self.opset_to,
            "max_abs": dict(self.max_abs),
            "samples": self.samples,
            "notes": list(self.notes),
            "inventory": self.inventory.to_json(),
        }


@dataclass(frozen=True)
class _Original:
    """The model as it came, loaded to be compared with, and what the recipe and one run say about it."""

    session: onnxruntime.InferenceSession
    feeds: Sequence[Arrays]
    inputs: Sequence[TensorSpec]
    outputs: Mapping[str, dims.Shape]
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Prepared:
    """The graph that every strategy starts from, and what the model claimed of its outputs' dimensions."""

    model: onnx.ModelProto
    claims: Mapping[str, Sequence[Dim | None]]
    symbols: dims.Symbols
    notes: tuple[str, ...]


def fold_model(
    source: Path,
    out: Path,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Mapping[str, dims.Shape] | None,
    minimum_opset: int,
    feeds: Sequence[Mapping[str, NDArray[np.generic]]],
) -> FoldReport:
    """Fold the ONNX file `source` into the file `out` (weights above 1 GiB in `<out>.data`).

    `inputs`, `outputs`: the recipe's; their lengths and dimension names are checked against the model and written into
    it. `feeds`: arrays by input name, at least one; the proof is as good as they are. The same arguments give the same
    bytes.

    Raises `ModelError` for a model that can not be used or does not fit the recipe, `SamplesError` for feeds that it
    can not run, `FoldError` if the opset can not be raised or no way to fold gave an equal model.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".fold-") as folder:
        work = Path(folder)
        model = load_model(source, weights=False)
        nodes_before, opset_from = count_nodes(model.graph), opset_of(model)
        check_operators(model, str(source))
        dims.check_interface(model, inputs, outputs, str(source))
        model, reference = _detached(model, source, work)
        original = _open_original(reference, source, inputs, outputs or {}, feeds)
        prepared = _prepare(model, inputs, minimum_opset)
        (work / "folded").mkdir()
        strategy, fallbacks, folded, max_abs = _first_proven(prepared, original, work / "folded" / out.name, source)
        _move(work / "folded", out)
    return FoldReport(
        strategy=strategy.name,
        fallbacks=fallbacks,
        nodes_before=nodes_before,
        nodes_after=count_nodes(folded.graph),
        opset_from=opset_from,
        opset_to=opset_of(folded),
        max_abs=max_abs,
        samples=len(feeds),
        notes=prepared.notes,
        inventory=inventory(folded),
    )


def _detached(model: onnx.ModelProto, source: Path, work: Path) -> tuple[onnx.ModelProto, Path]:
    """The model with its weights left on disk, and the file to compare with: the source itself, or a copy of it with
    unique node names where ONNX Runtime would refuse the source."""
    constants_to_initializers(model.graph)
    name_tensors(model.graph)
    hoist_initializers(model.graph)
    model = detach_weights(model, source.resolve(), work / "weights")
    if not has_duplicate_node_names(model.graph):
        return model, source
    name_nodes(model.graph)
    reference = work / "original.onnx"
    save_model(model, reference)
    return model, reference


def _open_original(
    reference: Path,
    source: Path,
    inputs: Sequence[TensorSpec],
    outputs: Mapping[str, dims.Shape],
    feeds: Sequence[Arrays],
) -> _Original:
    session = open_session(reference)
    shapes = first_shapes(session, feeds, str(source))
    bound = dims.bind(inputs, {name: value.shape for name, value in feeds[0].items()})
    dims.check_output_shapes(outputs, bound, shapes, str(source))
    return _Original(session, feeds, inputs, outputs, shapes)


def _prepare(model: onnx.ModelProto, inputs: Sequence[TensorSpec], minimum_opset: int) -> _Prepared:
    """The recipe's dimensions, unique names, sorted nodes, the opset: everything that every strategy needs."""
    notes = []
    if model.functions:
        notes.append(f"{len(model.functions)} local functions put in place of their calls")
        model = inline_functions(model)
        constants_to_initializers(model.graph)
    drop_inputs_with_values(model.graph)
    changes, symbols = dims.apply_inputs(model, inputs)
    claims = {value.name: [known_dim(dim) for dim in value.type.tensor_type.shape.dim] for value in model.graph.output}
    model = raise_opset(_standardized(model), minimum_opset)
    constants_to_initializers(model.graph)
    return _Prepared(_standardized(model), claims, symbols, (*notes, *changes))


def _standardized(model: onnx.ModelProto) -> onnx.ModelProto:
    """Unique names, sorted and needed nodes only, clean domains, and shapes as inferred from the inputs."""
    tidy_domains(model)
    dims.forget_inner_shapes(model)
    name_tensors(model.graph)
    hoist_initializers(model.graph)
    name_nodes(model.graph)
    sort_nodes(model.graph)
    drop_unused(model.graph)
    return infer_shapes(model)


def _first_proven(
    prepared: _Prepared, original: _Original, path: Path, source: Path
) -> tuple[Strategy, tuple[tuple[str, str], ...], onnx.ModelProto, dict[str, float]]:
    import onnx

    fallbacks: list[tuple[str, str]] = []
    for strategy in STRATEGIES:
        copy = onnx.ModelProto()
        copy.CopyFrom(prepared.model)
        try:
            folded = _finished(strategy.fold(copy), prepared, original)
            save_model(folded, path)
            return strategy, tuple(fallbacks), folded, _prove(path, original)
        except (FoldError, ModelError) as error:
            fallbacks.append((strategy.name, error.message.replace(f"{path}: ", "")))
        except tool_failures() as error:
            fallbacks.append((strategy.name, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"))
    name, why = fallbacks[-1]
    raise FoldError(
        f"{source}: no way to fold gave an equal model; '{name}', the last: {why}",
        hint="an operator may be computed differently at the raised opset: export the model with a newer one",
        log="\n".join(f"{name}: {why}" for name, why in fallbacks),
    )


def _finished(folded: onnx.ModelProto, prepared: _Prepared, original: _Original) -> onnx.ModelProto:
    """The folded graph as it is written: the interface and metadata of the prepared one, everything else anew."""
    for field in ("input", "output"):
        folded.graph.ClearField(field)
        getattr(folded.graph, field).extend(getattr(prepared.model.graph, field))
    for field in _KEPT_FIELDS:
        if prepared.model.HasField(field):
            setattr(folded, field, getattr(prepared.model, field))
    del folded.metadata_props[:]
    folded.metadata_props.extend(prepared.model.metadata_props)
    folded = _standardized(folded)
    folded.ir_version = ir_version_for(folded)
    feed = original.feeds[0]
    bound = dims.bind(original.inputs, {name: value.shape for name, value in feed.items()})
    dims.apply_outputs(folded, original.outputs, prepared.claims, prepared.symbols, bound, original.shapes)
    return folded


def _prove(path: Path, original: _Original) -> dict[str, float]:
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise FoldError(f"ONNX's checker refuses it: {' '.join(str(error).split())[:500]}") from None
    return compare(original.session, open_session(path), original.feeds, original.inputs)


def _move(folder: Path, out: Path) -> None:
    """Put the written files in place, the weights before the model that refers to them."""
    out.with_name(f"{out.name}.data").unlink(missing_ok=True)
    for file in sorted(folder.iterdir(), reverse=True):
        os.replace(file, out.parent / file.name)
