"""The recipe's inputs, outputs and dimension names on the graph: checked against what the model has, then written.

Exporters name dimensions as they like, or not at all ('?', -1, 's70'). Afterwards equal names are equal lengths,
different dynamic dimensions have different names, and shapes that the model only claimed for inner tensors are gone:
a stale claim (batch 1 from the day of the export) is what makes a folded graph right at batch 1 alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from engineworks.errors import ModelError, SamplesError
from engineworks.host.lazy import onnx
from engineworks.model.export.outline import Declared, Outline, interface_problems
from engineworks.model.graphs import all_graphs
from engineworks.model.onnx_files import dtype_name, known_dim
from engineworks.tensors import Dim, TensorSpec

Shape = tuple[Dim, ...]
Symbols = dict[str, Dim]
"""What the recipe calls the dimensions that the model names; names that the recipe splits are left out."""


def check_interface(
    model: onnx.ModelProto, inputs: Sequence[TensorSpec], outputs: Mapping[str, Shape] | None, where: str
) -> None:
    """Raises `ModelError` with every difference between the recipe's inputs and outputs and the model's."""
    weights = {tensor.name for tensor in model.graph.initializer}
    taken = tuple(_declared(value) for value in model.graph.input if value.name not in weights)
    # Shapes of outputs are what a run gives, which `check_output_shapes` compares: a model's own claim may be stale.
    made = tuple(replace(_declared(value), shape=None) for value in model.graph.output)
    problems = [
        f"{message}; {hint}" if hint else message
        for _, message, hint in interface_problems(inputs, outputs or {}, Outline({}, taken, made))
    ]
    if problems:
        raise ModelError("\n".join(f"{where}: {problem}" for problem in problems))


def apply_inputs(model: onnx.ModelProto, inputs: Sequence[TensorSpec]) -> tuple[list[str], Symbols]:
    """Write the recipe's lengths and names into the graph's inputs. Returns what was changed, as sentences, and the
    recipe's names for the model's own. Expects that `check_interface` found nothing."""
    specs = {spec.name: spec for spec in inputs}
    notes: list[str] = []
    meanings: dict[str, set[Dim]] = {}
    for value in model.graph.input:
        shape = value.type.tensor_type.shape
        declared = specs[value.name].shape
        shape.SetInParent()
        if not shape.dim:
            shape.dim.extend(type(shape).Dimension() for _ in declared)
        for axis, (dim, length_or_name) in enumerate(zip(shape.dim, declared, strict=True)):
            before = known_dim(dim)
            if isinstance(before, str):
                meanings.setdefault(before, set()).add(length_or_name)
            if before != length_or_name:
                shown = "unnamed" if before is None else f"'{before}'"
                now = f"'{length_or_name}'" if isinstance(length_or_name, str) else f"fixed to {length_or_name}"
                notes.append(f"input '{value.name}', axis {axis}: {shown} in the model, now {now}")
            _write(dim, length_or_name)
    for name, ways in sorted(meanings.items()):
        if len(ways) > 1:
            shown = ", ".join(str(way) for way in sorted(ways, key=str))
            notes.append(f"the model calls these dimensions all '{name}', the recipe does not: {shown}")
    return notes, {name: next(iter(ways)) for name, ways in meanings.items() if len(ways) == 1}


def forget_inner_shapes(model: onnx.ModelProto) -> None:
    """Drop what the model claims of the dimensions of inner tensors and of outputs; inference finds them again. The
    inputs and outputs of branches and bodies keep their rank, which Loop needs."""
    for depth, graph in enumerate(all_graphs(model.graph)):
        del graph.value_info[:]
        if not depth:
            for value in graph.output:
                value.type.tensor_type.ClearField("shape")
            continue
        for value in (*graph.input, *graph.output):
            if value.type.HasField("tensor_type"):
                for dim in value.type.tensor_type.shape.dim:
                    dim.Clear()


def apply_outputs(
    model: onnx.ModelProto,
    declared: Mapping[str, Shape],
    claimed: Mapping[str, Sequence[Dim | None]],
    symbols: Symbols,
    bound: Mapping[str, int],
    observed: Mapping[str, tuple[int, ...]],
) -> None:
    """Write the dimensions of the graph's outputs, best source first: inferred lengths, the recipe, inferred names,
    the model's own claim in the recipe's names, else '<output>_<axis>'.

    `bound` and `observed` are one real run: the length of every input dimension, and the outputs' shapes. A claim that
    this run contradicts is not written.
    """
    for value in model.graph.output:
        lengths = observed[value.name]
        unknown: list[Dim | None] = [None] * len(lengths)
        shape = value.type.tensor_type.shape
        inferred = [known_dim(dim) for dim in shape.dim] if len(shape.dim) == len(lengths) else unknown
        claims = [_translated(claim, symbols) for claim in claimed.get(value.name, ())]
        claims = claims if len(claims) == len(lengths) else unknown
        stated = declared.get(value.name) or unknown
        shape.Clear()
        shape.SetInParent()
        for axis, length in enumerate(lengths):
            inferred_dim = inferred[axis]
            sources = (
                inferred_dim if isinstance(inferred_dim, int) else None,
                stated[axis],
                inferred_dim if inferred_dim in bound else None,
                claims[axis],
            )
            fitting = (dim for dim in sources if dim is not None and _fits(dim, length, bound))
            _write(shape.dim.add(), next(fitting, f"{value.name}_{axis}"))


def bind(inputs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, int]:
    """The length of every named dimension of the inputs at these shapes. Raises `SamplesError` where they do not fit
    the recipe's."""
    bound: dict[str, int] = {}
    for spec in inputs:
        shape = shapes[spec.name]
        for dim, length in zip(spec.shape, shape, strict=False):
            expected = bound.setdefault(dim, length) if isinstance(dim, str) else dim
            if length != expected or len(shape) != len(spec.shape):
                known = f" with {dim}={expected}" if isinstance(dim, str) else ""
                raise SamplesError(f"{where}: '{spec.name}' is [{', '.join(map(str, shape))}], not {spec}{known}")
    return bound


def check_output_shapes(
    declared: Mapping[str, Shape], bound: Mapping[str, int], observed: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Raises `ModelError` where a real run gave a shape that the recipe's outputs do not allow."""
    for name, shape in declared.items():
        given = observed[name]
        fits = len(shape) == len(given) and all(_fits(d, n, bound) for d, n in zip(shape, given, strict=True))
        if not fits:
            lengths = ", ".join(f"{dim}={length}" for dim, length in bound.items())
            raise ModelError(
                f"{where}: the recipe says that output '{name}' is [{', '.join(map(str, shape))}], but the model gave "
                f"[{', '.join(map(str, given))}]" + (f" at {lengths}" if lengths else ""),
                hint="correct 'outputs' of the recipe",
            )


def _declared(value: onnx.ValueInfoProto) -> Declared:
    tensor = value.type.tensor_type
    kind = str(value.type.WhichOneof("value") or "").removesuffix("_type")
    shape = tuple(known_dim(dim) for dim in tensor.shape.dim) if tensor.HasField("shape") else None
    return Declared(value.name, kind, dtype_name(tensor.elem_type), shape)


def _translated(claim: Dim | None, symbols: Symbols) -> Dim | None:
    """The model's claim in the recipe's names, expressions too ('s26 + s70' → 'past + sequence'); None where it is of
    names that are no input's."""
    if not isinstance(claim, str):
        return claim
    if claim in symbols:
        return symbols[claim]
    names = set(re.findall(r"[A-Za-z_][\w.]*", claim))
    if not names or not names <= symbols.keys() or names == {claim}:
        return None
    return re.sub(r"[A-Za-z_][\w.]*", lambda match: str(symbols[match.group()]), claim)


def _fits(dim: Dim, length: int, bound: Mapping[str, int]) -> bool:
    return dim == length if isinstance(dim, int) else bound.get(dim, length) == length


def _write(dim: onnx.TensorShapeProto.Dimension, length_or_name: Dim) -> None:
    dim.Clear()
    if isinstance(length_or_name, int):
        dim.dim_value = length_or_name
    else:
        dim.dim_param = length_or_name
