"""What is done to a freshly exported graph: readable node names, the recipe's inputs and outputs, the asked opset."""

from __future__ import annotations

import ast
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from engineworks.errors import ExportError
from engineworks.model.export.interface import Interface

if TYPE_CHECKING:
    from onnxscript import ir

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where the dynamo exporter keeps the modules that a node came from, outermost first, the operation last."""


def name_nodes(model: ir.Model, wrapper: str) -> None:
    """Name every node '<module path>/<operator>', with '_1', '_2', … for further ones of the same module.

    So `keep: [encoder/layer/0/*]` is readable, and names stay the same when other parts of the model change.
    Everything else that the exporter notes down (stack traces with paths of this machine) is removed.
    """
    taken: Counter[str] = Counter()
    for node in model.graph.all_nodes():
        scope = _scope(node)
        parts = [p for p in scope if p]
        if parts and parts[0] == wrapper:
            parts = parts[1:]
        name = "/".join([*parts, node.op_type])
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name] - 1}"
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in list(model.graph.initializers.values()):
        value.metadata_props.clear()
        if value.name and value.name.startswith(wrapper + "."):
            value.name = value.name.removeprefix(wrapper + ".")
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = model.doc_string = None


def _scope(node: ir.Node) -> list[str]:
    """The modules that a node came from, outermost first."""
    written = node.metadata_props.get(SCOPES)
    if written is not None:
        scopes = [s for s in ast.literal_eval(written)[:-1] if s and not s.startswith("_empty_nn_module")]
        return str(scopes[-1]).split(".") if scopes else []
    name = node.name or ""
    return _path(name.strip("/").split("/")[:-1]) if name.startswith("/") else []


def _path(parts: list[str]) -> list[str]:
    """TorchScript's 'a/a.0/a.0.1' and 'a/layer.0' as a, 0, 1 and a, layer, 0: one part for each attribute."""
    path: list[str] = []
    for part in parts:
        *above, last = part.split(".")
        path += [last] if above and path[-len(above) :] == above else [*above, last]
    return path


def opset_of(model: ir.Model) -> int:
    return int(model.opset_imports.get("", 0))


def convert_opset(model: ir.Model, opset: int) -> None:
    """Convert in place; where a converter cannot, the model is left at its opset (see `opset_of`)."""
    if opset_of(model) != opset:
        from onnxscript import version_converter

        version_converter.convert_version(model, target_version=opset, fallback=True)


def name_interface(model: ir.Model, interface: Interface) -> None:
    """Give inputs and outputs the recipe's names and dimension names, whatever the exporter called inner values.

    An inner value that has one of these names gets another; an output that is an input, a weight or another output
    at the same time gets an Identity of its own. Raises `ExportError` if there are too many or too few.
    """
    from onnxscript import ir

    graph = model.graph
    if len(graph.outputs) != len(interface.outputs):
        raise ExportError(
            f"the exported model has {len(graph.outputs)} outputs, the recipe names {len(interface.outputs)}"
        )
    _restore_dropped_inputs(graph, interface)
    _separate_outputs(graph)
    ends = (*graph.inputs, *graph.outputs)
    wanted = {*(s.name for s in interface.inputs), *interface.outputs}
    for index, value in enumerate(ends):
        value.name = f"engineworks_end_{index}"
    inner = [v for node in graph.all_nodes() for v in node.outputs] + list(graph.initializers.values())
    taken = {v.name for v in inner} | wanted
    for value in inner:
        if value.name in wanted:
            value.name = next(n for i in range(len(taken)) if (n := f"{value.name}_inner{i or ''}") not in taken)
            taken.add(value.name)
    for value, spec in zip(graph.inputs, interface.inputs, strict=True):
        value.name, value.shape = spec.name, ir.Shape(spec.shape)
    for value, (name, shape) in zip(graph.outputs, interface.outputs.items(), strict=True):
        value.name, value.shape = name, ir.Shape(shape)


def _restore_dropped_inputs(graph: ir.Graph, interface: Interface) -> None:
    """The TorchScript exporter leaves out inputs that the model does not use."""
    from onnxscript import ir

    if len(graph.inputs) == len(interface.inputs):
        return
    known = {value.name: value for value in graph.inputs}
    names = [f"engineworks_input_{i}" for i in range(len(interface.inputs))]
    if not set(known) <= set(names):
        raise ExportError(
            f"the exported model has {len(graph.inputs)} inputs, the recipe names {len(interface.inputs)}"
        )
    inputs = [
        known.get(name) or ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(np.dtype(spec.dtype))))
        for name, spec in zip(names, interface.inputs, strict=True)
    ]
    graph.inputs.clear()
    graph.inputs.extend(inputs)


def _separate_outputs(graph: ir.Graph) -> None:
    from onnxscript import ir

    visited: set[ir.Value] = set()
    for index, value in enumerate(list(graph.outputs)):
        if value in visited or value.producer() is None:
            node = ir.Node("", "Identity", [value], name=f"output_{index}/Identity")
            node.outputs[0].type = value.type
            node.outputs[0].dtype = value.dtype
            graph.append(node)
            graph.outputs[index] = node.outputs[0]
        visited.add(graph.outputs[index])
