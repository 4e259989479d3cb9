"""Lowered model and fp32: which nodes lose what the lowered model loses.

Both models keep most tensors' names. Between tensors that both have lies one piece of the lowered model: a product
with its Q/DQ, say. A piece is run alone on fp32's values, so its error is its own; added to the fp32 model's tensor, it
shows what it does to the outputs. The pieces that do most are then computed in fp32 within the lowered model, one, two,
four, … of them, until the error of its outputs has fallen: those are to blame.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from engineworks.engines.backends import onnxruntime as backend
from engineworks.errors import RunError
from engineworks.host.lazy import Array, onnx
from engineworks.model.graphs import set_nodes, sort_nodes
from engineworks.model.onnx_files import save_model
from engineworks.recipe.npz import read_arrays
from engineworks.steps.blame.graph import Graph, Nodes, Values, label, read_graph
from engineworks.steps.blame.probe import SCRATCH
from engineworks.steps.blame.values import WORST, error_of

FALLEN = 1 / 3
"""An error that falls to this part of itself is explained."""

SHOWN = 20

SHOWS = 3.0
"""A piece whose own error is this many times the median one shows the fault by itself."""

LEFT_OUT = 16
"""Of so many pieces to blame or fewer, each is left out once."""

Alone = tuple[Nodes, float, Array | None]
"""A piece's nodes, its error, and what it adds to its tensor; None for nothing, or nothing that can be added."""


@dataclass(frozen=True)
class Piece:
    """Nodes of the lowered model that make one tensor of the fp32 model from others.

    error: of the tensor on fp32's values. effect: error of the fp32 model's outputs with this tensor.
    """

    tensor: str
    nodes: Nodes
    error: float
    effect: float


def main(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Find the pieces to blame: {error, pieces, blamed, left, cured, right, count, typical}.

    Runs in a child process. payload: folded, lowered (models), folded_values, lowered_values (.npz), allowed (the error
    that is right), out (a folder for the worst piece: model.onnx, inputs.npz, expected.npz). `error`: of the
    lowered model's outputs; `left`: the error with the `blamed` pieces in fp32. `cured`: the fewest with which it is
    allowed, none where no number is enough. `right`: the error up to which the bundle shows no fault.
    """
    wanted = read_arrays(Path(payload["folded_values"]))
    values = read_arrays(Path(payload["lowered_values"]))
    with TemporaryDirectory(dir=Path(payload["out"]).parent, prefix=SCRATCH) as scratch:
        folded, lowered = (read_graph(Path(payload[n]), Path(scratch, n)) for n in ("folded", "lowered"))
        study = _Study(folded, lowered, wanted, values, Path(scratch))
        pieces = sorted(study.pieces(), key=lambda piece: (-piece.effect, -piece.error))
        full_error = study.error_with([])
        allowed = float(payload["allowed"])
        blamed, left = study.blamed(pieces, full_error, max(allowed, full_error * FALLEN))
        cured, _ = (blamed, left) if left <= allowed else study.blamed(pieces, full_error, allowed)
        worst, right, typical = pieces[0] if pieces else None, allowed, 0.0
        if worst is not None:
            typical = float(np.median([p.error for p in pieces if p.error > 0 and p is not worst] or [0.0]))
            alone = worst.error > SHOWS * typical
            right = max(SHOWS * typical, worst.error / 10) if alone else worst.effect / 2
            (study.write if alone else study.write_with_rest)(worst, Path(payload["out"]))
        return {
            "error": full_error, "left": left, "right": right, "cured": [study.record(piece) for piece in cured],
            "blamed": [study.record(piece) for piece in blamed],
            "pieces": [study.record(piece) for piece in pieces[:SHOWN]],
            "count": len(pieces), "typical": typical,
        }  # fmt: skip


class _Study:
    def __init__(self, folded: Graph, lowered: Graph, wanted: Values, values: Values, scratch: Path) -> None:
        self.folded, self.lowered, self.wanted, self.values = folded, lowered, wanted, values
        self._file = scratch / "part.onnx"
        shared = {*lowered.tensors(), *lowered.inputs} & {*folded.tensors(), *folded.inputs}
        self.shared = {
            n for n in shared
            if n in wanted and n in values
            and (wanted[n].dtype == values[n].dtype or (wanted[n].dtype.kind, values[n].dtype.kind) == ("f", "f"))
        }  # fmt: skip

    def pieces(self) -> list[Piece]:
        """Every piece that ONNX Runtime can run alone, in the order of the graph."""
        alone = dict(self._alone())
        return [
            Piece(name, nodes, error, effect)
            for (name, (nodes, error, _)), effect in zip(alone.items(), self._effects(alone), strict=True)
        ]

    def _alone(self) -> Iterator[tuple[str, Alone]]:
        for name in self.lowered.tensors():
            if name in self.shared and self.wanted[name].dtype.kind == "f":
                nodes = _between(self.lowered, name, self.shared)
                try:
                    (got,) = self._run(self.lowered.extract(nodes, [name], self.values), self._feeds(nodes)).values()
                except RunError:
                    continue
                error = error_of(got, self.wanted[name])
                usable = 0 < error < WORST
                wanted = self.wanted[name]
                change = np.subtract(got, wanted, dtype=np.float32).astype(wanted.dtype) if usable else None
                yield name, (nodes, error, change)

    def _effects(self, alone: Mapping[str, Alone]) -> Iterator[float]:
        """The error of the fp32 model's outputs with each tensor's own error, one at a time."""
        moved = {name: change for name, (_, _, change) in alone.items() if change is not None}
        none = {_change(n): np.zeros((1,) * change.ndim, change.dtype) for n, change in moved.items()}
        save_model(_with_changes(self.folded, moved), self._file)
        with closing(backend.load_as_written(self._file)) as session:
            for name, (_, error, change) in alone.items():
                if change is None:
                    yield min(error, WORST)
                    continue
                feeds = {n: self.wanted[n] for n in self.folded.inputs}
                got = session.run({**feeds, **none, _change(name): change})
                yield self._error(got)

    def _error(self, got: Values) -> float:
        """The largest error of an output."""
        return max((min(error_of(got[n], self.wanted[n]), WORST) for n in got if n in self.wanted), default=0.0)

    def _feeds(self, nodes: Nodes) -> dict[str, Array]:
        """fp32's values of what the nodes read, in the lowered model's types."""
        return {n: self.wanted[n].astype(self.values[n].dtype) for n in self.lowered.fed(nodes, self.values)}

    def blamed(self, pieces: Sequence[Piece], full_error: float, target: float) -> tuple[list[Piece], float]:
        """The fewest of the worst pieces without which the error is the target's, and what is left of it; none if no
        number is enough."""
        wrong = [piece for piece in pieces if piece.error > 0]
        if not wrong or full_error <= target:
            return [], full_error
        left = cache(lambda count: self.error_with(wrong[:count]))
        too_few, enough = 0, 1
        while left(enough) > target:
            if enough == len(wrong):
                return [], left(enough)
            too_few, enough = enough, min(2 * enough, len(wrong))
        enough = bisect_left(range(enough), True, too_few + 1, key=lambda count: left(count) <= target)
        chosen, best = wrong[:enough], left(enough)
        for piece in reversed(wrong[: enough - 1] if enough <= LEFT_OUT else ()):
            less = [p for p in chosen if p != piece]
            if (error := self.error_with(less)) <= target:
                chosen, best = less, error
        return chosen, best

    def error_with(self, repaired: Collection[Piece]) -> float:
        """The largest error of an output, with these pieces computed in fp32."""
        hybrid = _with_fp32(
            self.folded, self.lowered, [p.tensor for p in repaired], self.wanted, self.values, self.shared
        )
        got = self._run(hybrid, {n: self.values[n] for n in self.lowered.inputs})
        return self._error(got)

    def _run(self, model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
        save_model(model, self._file)
        with closing(backend.load_as_written(self._file)) as session:
            return session.run({spec.name: feeds[spec.name] for spec in session.inputs})

    def record(self, piece: Piece) -> dict[str, Any]:
        nodes = [self.lowered.nodes[i] for i in sorted(piece.nodes)]
        makers = {name: node for node in self.folded.nodes for name in node.output}
        return {
            "tensor": piece.tensor, "error": min(piece.error, WORST), "effect": piece.effect,
            "node": label(makers[piece.tensor]), "nodes": [label(node) for node in nodes],
        }  # fmt: skip

    def write(self, piece: Piece, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        save_model(self.lowered.extract(piece.nodes, [piece.tensor], self.values), out / "model.onnx")
        np.savez(out / "inputs.npz", **self._feeds(piece.nodes))  # type: ignore[arg-type]
        np.savez(out / "expected.npz", **{piece.tensor: self.wanted[piece.tensor]})  # type: ignore[arg-type]

    def write_with_rest(self, piece: Piece, out: Path) -> None:
        """Write the lowered piece, and all that follows it as the fp32 model computes it."""
        out.mkdir(parents=True, exist_ok=True)
        after = self.folded.descendants(piece.tensor)
        outputs = [n for n in self.folded.outputs if n in self.wanted and self.folded.makers.get(n, -1) in after]
        outputs += [piece.tensor] if piece.tensor in self.folded.outputs else []
        model = self.folded.extract(after, [n for n in outputs if n != piece.tensor], self.wanted)
        part = self.lowered.extract(piece.nodes, [piece.tensor], self.values)
        _joined(model, part, piece.tensor, self.wanted[piece.tensor], self.values[piece.tensor], outputs)
        save_model(model, out / "model.onnx")
        given = {n: self.wanted[n] for n in self.folded.fed(after, self.wanted) if n != piece.tensor}
        given |= {f"{LOWERED}{n}": v for n, v in self._feeds(piece.nodes).items()}
        np.savez(out / "inputs.npz", **given)  # type: ignore[arg-type]
        np.savez(out / "expected.npz", **{n: self.wanted[n] for n in outputs})  # type: ignore[arg-type]


LOWERED = "lowered/"
"""How the names of a lowered piece begin in a model of both."""


def _joined(
    model: onnx.ModelProto, part: onnx.ModelProto, tensor: str, wanted: Array, value: Array, outputs: Collection[str]
) -> None:
    """Put the lowered part that makes the tensor before the fp32 model's rest, which reads it."""
    from engineworks.steps.blame.graph import value_info

    nodes = [_renamed(node, LOWERED) for node in part.graph.node]
    weights = [_renamed_tensor(t, LOWERED) for t in part.graph.initializer]
    inputs = [v for v in model.graph.input if v.name != tensor]
    for value_in in part.graph.input:
        value_in.name = f"{LOWERED}{value_in.name}"
    inputs += part.graph.input
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.graph.initializer.extend(weights)
    if tensor in outputs:
        model.graph.output.append(value_info(tensor, wanted))
    rest = list(model.graph.node)
    set_nodes(model.graph, [*nodes, _cast(f"{LOWERED}{tensor}", tensor, value, wanted), *rest])
    known = {(o.domain, o.version) for o in model.opset_import}
    model.opset_import.extend(o for o in part.opset_import if o.domain not in {d for d, _ in known})


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
    folded: Graph, lowered: Graph, tensors: Sequence[str], wanted: Values, values: Values, shared: Collection[str]
) -> onnx.ModelProto:
    """The lowered model, with these tensors computed from the shared ones before them as the fp32 model does."""
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
            more.setdefault(f"in:{read}", _cast(read, f"fp32/{read}", values[read], wanted[read]))
        more[f"out:{name}"] = _cast(f"fp32/{name}", name, wanted[name], values[name])
    set_nodes(model.graph, [*nodes, *more.values()])
    sort_nodes(model.graph)
    return model


def _change(name: str) -> str:
    return f"{name}/change"


def _with_changes(folded: Graph, changes: Mapping[str, Array]) -> onnx.ModelProto:
    """The fp32 model with something to add to each of these tensors as inputs: one number, or a tensor of its shape."""
    model = onnx.ModelProto()
    model.CopyFrom(folded.model)
    sums = []
    for node in model.graph.node:
        for name in [n for n in node.output if n in changes]:
            sums.append(onnx.helper.make_node("Add", [f"{name}/before", _change(name)], [name]))
        node.output[:] = [f"{n}/before" if n in changes else n for n in node.output]
    for name, change in changes.items():
        kind, lengths = onnx.helper.np_dtype_to_tensor_dtype(change.dtype), [f"{name}.{i}" for i in range(change.ndim)]
        model.graph.input.append(onnx.helper.make_tensor_value_info(_change(name), kind, lengths))
    set_nodes(model.graph, [*model.graph.node, *sums])
    sort_nodes(model.graph)
    return model


def _cast(source: str, result: str, before: Array, after: Array) -> onnx.NodeProto:
    if before.dtype == after.dtype:
        return onnx.helper.make_node("Identity", [source], [result])
    return onnx.helper.make_node("Cast", [source], [result], to=onnx.helper.np_dtype_to_tensor_dtype(after.dtype))


def _renamed(node: onnx.NodeProto, prefix: str = "fp32/") -> onnx.NodeProto:
    """The node with all tensors' names in a name space of its own."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    _rename(copy, lambda name: f"{prefix}{name}" if name else name)
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


def _renamed_tensor(tensor: onnx.TensorProto, prefix: str = "fp32/") -> onnx.TensorProto:
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    copy.name = f"{prefix}{tensor.name}"
    return copy
