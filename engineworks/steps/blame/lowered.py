"""Lowered model and fp32: which nodes lose what the lowered model loses.

Both models keep most tensors' names. Between tensors that both have lies one piece of the lowered model: a product
with its Q/DQ, say. A piece is run alone on fp32's values, so its error is its own. The worst pieces are then computed
in fp32 within the lowered model, one, two, four, … of them, until the error of its outputs has fallen: those are to
blame.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engineworks.engines.backends import onnxruntime as backend
from engineworks.errors import RunError
from engineworks.model.graphs import set_nodes, sort_nodes
from engineworks.model.onnx_files import load_model, save_model
from engineworks.recipe.npz import read_arrays
from engineworks.steps.blame.graph import Graph, Nodes, Values, label
from engineworks.steps.blame.values import WORST, error_of

if TYPE_CHECKING:
    import onnx

Array = NDArray[np.generic]

FALLEN = 1 / 3
"""An error that falls to this part of itself is explained."""

SHOWN = 20


@dataclass(frozen=True)
class Piece:
    """Nodes of the lowered model that make one tensor of the fp32 model from others. error: on fp32's values."""

    tensor: str
    nodes: Nodes
    error: float


def main(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Find the pieces to blame: {whole, pieces, blamed, left, best}.

    Runs in a child process. payload: folded, lowered (models), folded_values, lowered_values (.npz), allowed (the error
    that is right), out (a folder for the worst piece: model.onnx, inputs.npz, expected.npz). `whole`: error of the
    lowered model's outputs; `left`: the error with the `blamed` pieces in fp32.
    """
    folded = Graph(load_model(Path(payload["folded"])))
    lowered = Graph(load_model(Path(payload["lowered"])))
    wanted = read_arrays(Path(payload["folded_values"]))
    values = read_arrays(Path(payload["lowered_values"]))
    with TemporaryDirectory() as scratch:
        study = _Study(folded, lowered, wanted, values, Path(scratch))
        pieces = sorted(study.pieces(), key=lambda piece: -piece.error)
        full_error = study.error_with([])
        blamed, left = study.blamed(pieces, full_error, float(payload["allowed"]))
    if pieces:
        study.write(pieces[0], Path(payload["out"]))
    return {
        "whole": full_error, "left": left,
        "blamed": [study.record(piece) for piece in blamed],
        "pieces": [study.record(piece) for piece in pieces[:SHOWN]],
        "count": len(pieces), "typical": float(np.median([p.error for p in pieces])) if pieces else 0.0,
    }  # fmt: skip


class _Study:
    def __init__(self, folded: Graph, lowered: Graph, wanted: Values, values: Values, scratch: Path) -> None:
        self.folded, self.lowered, self.wanted, self.values = folded, lowered, wanted, values
        self._file = scratch / "part.onnx"
        shared = {*lowered.tensors(), *lowered.inputs} & {*folded.tensors(), *folded.inputs}
        self.shared = {
            n for n in shared
            if n in wanted and n in values and wanted[n].shape == values[n].shape
            and (wanted[n].dtype == values[n].dtype or (wanted[n].dtype.kind, values[n].dtype.kind) == ("f", "f"))
        }  # fmt: skip

    def pieces(self) -> list[Piece]:
        """Every piece that ONNX Runtime can run alone, in the order of the graph."""
        found = []
        for name in self.lowered.tensors():
            if name in self.shared and self.wanted[name].dtype.kind == "f":
                nodes = _between(self.lowered, name, self.shared)
                try:
                    (got,) = self._run(self.lowered.extract(nodes, [name], self.values), self._feeds(nodes)).values()
                except RunError:
                    continue
                found.append(Piece(name, nodes, error_of(got, self.wanted[name])))
        return found

    def _feeds(self, nodes: Nodes) -> dict[str, Array]:
        """fp32's values of what the nodes read, in the lowered model's types."""
        return {n: self.wanted[n].astype(self.values[n].dtype) for n in self.lowered.fed(nodes, self.values)}

    def blamed(self, pieces: Sequence[Piece], full_error: float, allowed: float) -> tuple[list[Piece], float]:
        """The fewest of the worst pieces that explain the error, and what is left of it; none if no number does."""
        wrong = [piece for piece in pieces if piece.error > 0]
        target = max(allowed, full_error * FALLEN)
        if not wrong or full_error <= allowed:
            return [], full_error
        too_few, enough = 0, 1
        while (left := self.error_with(wrong[:enough])) > target:
            if enough == len(wrong):
                return [], left
            too_few, enough = enough, min(2 * enough, len(wrong))
        best = left
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            if (left := self.error_with(wrong[:middle])) <= target:
                enough, best = middle, left
            else:
                too_few = middle
        return wrong[:enough], best

    def error_with(self, repaired: Collection[Piece]) -> float:
        """The largest error of an output, with these pieces computed in fp32."""
        hybrid = _with_fp32(self.folded, self.lowered, [p.tensor for p in repaired], self.values, self.shared)
        got = self._run(hybrid, {n: self.values[n] for n in self.lowered.inputs})
        return max((min(error_of(got[n], self.wanted[n]), WORST) for n in got if n in self.wanted), default=0.0)

    def _run(self, model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
        save_model(model, self._file)
        session = backend.load_as_written(self._file)
        try:
            return session.run({spec.name: feeds[spec.name] for spec in session.inputs})
        finally:
            session.close()

    def record(self, piece: Piece) -> dict[str, Any]:
        nodes = [self.lowered.nodes[i] for i in sorted(piece.nodes)]
        makers = {name: node for node in self.folded.nodes for name in node.output}
        return {
            "tensor": piece.tensor, "error": min(piece.error, WORST), "node": label(makers[piece.tensor]),
            "nodes": [label(node) for node in nodes],
        }  # fmt: skip

    def write(self, piece: Piece, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        save_model(self.lowered.extract(piece.nodes, [piece.tensor], self.values), out / "model.onnx")
        np.savez(out / "inputs.npz", **self._feeds(piece.nodes))  # type: ignore[arg-type]
        np.savez(out / "expected.npz", **{piece.tensor: self.wanted[piece.tensor]})  # type: ignore[arg-type]


def _between(graph: Graph, name: str, shared: Collection[str]) -> Nodes:
    """The nodes that make a tensor from shared ones."""
    nodes: set[int] = set()
    pending: list[int] = [graph.makers[name]]
    while pending:
        index = pending.pop()
        if index not in nodes:
            nodes.add(index)
            before = (n for n in graph.uses[index] if n not in shared and n in graph.makers)
            pending.extend(graph.makers[n] for n in before)
    return frozenset(nodes)


def _with_fp32(
    folded: Graph, lowered: Graph, tensors: Sequence[str], values: Values, shared: Collection[str]
) -> onnx.ModelProto:
    """The lowered model, with these tensors computed from the shared ones before them as the fp32 model does."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(lowered.model)
    nodes = list(model.graph.node)
    replaced = set(tensors)
    for node in nodes:
        node.output[:] = [f"{n}/lowered" if n in replaced else n for n in node.output]
    more: dict[str, onnx.NodeProto] = {}
    for name in tensors:
        chosen = _between(folded, name, shared)
        fixed, weights = folded.closure([folded.nodes[i] for i in sorted(chosen)])
        known = {t.name for t in model.graph.initializer}
        model.graph.initializer.extend(_renamed_tensor(w) for w in weights if f"fp32/{w.name}" not in known)
        for node in (*fixed, *(folded.nodes[i] for i in sorted(chosen))):
            more.setdefault(f"{node.name}:{','.join(node.output)}", _renamed(node))
        for read in folded.inputs_of(chosen):
            more.setdefault(f"in:{read}", _cast(read, f"fp32/{read}", np.float32 if _half(values[read]) else None))
        kind = values[name].dtype if _half(values[name]) else None
        more[f"out:{name}"] = _cast(f"fp32/{name}", name, kind)
    set_nodes(model.graph, [*nodes, *more.values()])
    sort_nodes(model.graph)
    return model


def _half(value: Array) -> bool:
    return value.dtype == np.float16


def _cast(source: str, result: str, dtype: Any) -> onnx.NodeProto:
    from onnx import helper

    if dtype is None:
        return helper.make_node("Identity", [source], [result])
    return helper.make_node("Cast", [source], [result], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _renamed(node: onnx.NodeProto) -> onnx.NodeProto:
    """The node with all tensors' names in the fp32 model's own name space."""
    import onnx

    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    _rename(copy, lambda name: f"fp32/{name}" if name else name)
    return copy


def _rename(node: onnx.NodeProto, name: Callable[[str], str]) -> None:
    node.input[:] = [name(n) for n in node.input]
    node.output[:] = [name(n) for n in node.output]
    node.name = name(node.name)
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
                value.name = name(value.name)
            for inner in graph.node:
                _rename(inner, name)


def _renamed_tensor(tensor: onnx.TensorProto) -> onnx.TensorProto:
    import onnx

    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    copy.name = f"fp32/{tensor.name}"
    return copy
