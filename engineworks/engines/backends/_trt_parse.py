"""ONNX → the vendor's network: reads the file's interface, parses it, and checks that the parser read all of it.

The parser silently drops some inputs of operators. A layer made for a node carries the node's name in its metadata.
Intermediate layers (casts, broadcasts) carry none: the search walks backwards through them, from the node's own layers
and outputs. Not checked: constant inputs, inputs that follow from shapes alone, inputs of operators that read only a
shape. Some nodes have no layer of their own: the parser may pass a tensor through, and renames the layers of If and
Loop. For those, any layer that reads the input suffices.

TensorRT fuses some Attention (fp16, head sizes from 16, one output, no sequence lengths) and refuses all others. The
build tries the model as it is first. If an Attention was the reason, it tries again with every Attention `written_out`
as the products and softmax that the standard defines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engineworks.engines.backends._trt_log import Logger, parser_message
from engineworks.engines.backends._trt_tensors import given_names
from engineworks.errors import BuildError, UnsupportedError
from engineworks.host.lazy import onnx
from engineworks.model.fold.inventory import node_uses
from engineworks.model.fold.shapes import infer_shapes
from engineworks.model.fold.tidy import drop_unused
from engineworks.model.graphs import all_graphs, names_read, node_label, subgraphs
from engineworks.model.onnx_files import graph_inputs, graph_outputs, load_model, opset_of
from engineworks.tensors import TensorSpec


@dataclass(frozen=True)
class Interface:
    """The ONNX file's interface: its tensors with the names of their dimensions, its uses of operators, and its graph
    without the values of constants."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    uses: Mapping[str, tuple[str, ...]]
    quantized: frozenset[str]
    graph: onnx.GraphProto


def read_interface(path: Path) -> Interface:
    return interface_of(load_model(path, weights=False))


def interface_of(model: onnx.ModelProto) -> Interface:
    graph = model.graph
    dequantized = {o for n in graph.node if n.op_type == "DequantizeLinear" for o in n.output}
    return Interface(
        inputs=graph_inputs(model),
        outputs=graph_outputs(model),
        uses=node_uses(model),
        quantized=frozenset(n.op_type for n in graph.node if n.input and n.input[0] in dequantized),
        graph=_without_values(graph),
    )


def _without_values(graph: onnx.GraphProto) -> onnx.GraphProto:
    """Return a copy without weights: protobuf frees memory only as a whole."""
    light = onnx.GraphProto()
    for field in ("node", "input", "output"):
        getattr(light, field).extend(getattr(graph, field))
    for tensor in graph.initializer:
        light.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    return light


def network_flags(trt: Any) -> int:
    """Return the flag that makes a network strongly typed in TensorRT 10; later versions need none."""
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if trt.__version__.startswith("10.") else 0


def parse(
    trt: Any, title: str, builder: Any, logger: Logger, path: Path, model: Interface, plain: onnx.ModelProto | None
) -> tuple[Any, Any]:
    """Return the network of the ONNX file and its parser. plain: a model to parse instead; its weights are next to the
    file.

    Raises `UnsupportedError` or `BuildError` that names every refused node, and `UnsupportedError` for an input that
    the network does not read.
    """
    network = builder.create_network(network_flags(trt))
    parser = trt.OnnxParser(network, logger.vendor)
    parsed = parser.parse(plain.SerializeToString(), str(path)) if plain else parser.parse_from_file(str(path))
    if not parsed:
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        explained = parser_message(errors, model.graph, logger.reason())
        kind = UnsupportedError if explained.known else BuildError
        raise kind(f"{path.name}: {title} cannot parse it: {explained.text}", hint=explained.hint, log=logger.text())
    ignored = ignored_inputs(plain.graph if plain else model.graph, network, network_names(network))
    if ignored:
        raise UnsupportedError(
            f"{path.name}: {title} would leave out without a word: {', '.join(ignored)}",
            hint="write the operator without this input, or build the model for a CPU target (backend: onnxruntime)",
            log=logger.text(),
        )
    return network, parser


def network_names(network: Any) -> dict[str, str]:
    """Return the network's name for every input of the model."""
    inputs = [network.get_input(i).name for i in range(network.num_inputs)]
    return given_names(inputs, [network.get_output(i).name for i in range(network.num_outputs)])


_SHAPE_READERS = frozenset({"Shape", "Size", "EyeLike", "RandomNormalLike", "RandomUniformLike"})
"""Operators that read the shape of their input, not its values."""


def ignored_inputs(graph: onnx.GraphProto, network: Any, names: Mapping[str, str]) -> list[str]:
    """Return one phrase for each input of a node that none of its layers reads. names: the network's names of the
    model's inputs."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    makers = {name: layer for layer in layers for name in _outputs(layer)}
    read = {name for layer in layers for name in _inputs(layer)} | {
        network.get_output(i).name for i in range(network.num_outputs)
    }
    own: dict[str, list[Any]] = {}
    for layer in layers:
        for node_name in _nodes_of(layer):
            own.setdefault(node_name, []).append(layer)
    there = makers.keys() | {network.get_input(i).name for i in range(network.num_inputs)}
    ignored = []
    for node, index, given in _value_reads(graph):
        name = names.get(given, given)
        if name not in there:
            continue
        starts = own.get(node.name, []) if node.name and not any(subgraphs(node)) else []
        if name not in read or (starts and name not in _reached(starts, makers, node.name)):
            ignored.append(f"{_input_name(node, index)}'{given}' of {node.op_type} ({node_label(node)})")
    return ignored


def _value_reads(
    graph: onnx.GraphProto, outer: frozenset[str] = frozenset()
) -> Iterator[tuple[onnx.NodeProto, int, str]]:
    """Yield (node, index, name) of every input whose values the node reads and that depends on the model's inputs, also
    in branches and bodies. outer: such names of the enclosing graphs."""
    carried = {*outer, *(value.name for value in graph.input)} - {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in _SHAPE_READERS:
            continue
        yield from ((node, i, name) for i, name in enumerate(node.input) if name in carried)
        for inner in subgraphs(node):
            yield from _value_reads(inner, frozenset(carried))
        if any(name in carried for name in names_read(node)):
            carried.update(name for name in node.output if name)


def _reached(starts: list[Any], makers: dict[str, Any], node_name: str) -> set[str]:
    """Return names of the tensors that these layers read, directly or through layers without another node."""
    reached: set[str] = set()
    pending = list(starts)
    while pending:
        layer = pending.pop()
        for name in _inputs(layer):
            if name in reached:
                continue
            reached.add(name)
            maker = makers.get(name)
            if maker is not None and _nodes_of(maker) in ([], [node_name]):
                pending.append(maker)
    return reached


def _nodes_of(layer: Any) -> list[str]:
    """Return names of the ONNX nodes that the layer was made for: '[ONNX Layer: conv]'."""
    parts = getattr(layer, "metadata", "").split("[ONNX Layer: ")[1:]
    return [part.rpartition("]")[0] for part in parts]


def _inputs(layer: Any) -> Iterator[str]:
    tensors = (layer.get_input(i) for i in range(layer.num_inputs))
    return (tensor.name for tensor in tensors if tensor is not None)


def _outputs(layer: Any) -> Iterator[str]:
    tensors = (layer.get_output(i) for i in range(layer.num_outputs))
    return (tensor.name for tensor in tensors if tensor is not None)


def _input_name(node: onnx.NodeProto, index: int) -> str:
    """Return the operator's name of the input, and a space; '' where the standard does not know it."""
    try:
        inputs = onnx.defs.get_schema(node.op_type, domain=node.domain).inputs
    except onnx.defs.SchemaError:
        return ""
    return f"{inputs[index].name} " if index < len(inputs) else ""


_DOMAIN = "engineworks.written_out"


def written_out(path: Path) -> onnx.ModelProto | None:
    """Return the model with every Attention as the standard's function of smaller operators. None where it has no
    Attention, or ONNX has no function for one of them. Weights stay in their file.

    The functions are asked for one by one: `onnx.inliner.inline_selected_functions` of onnx 1.22 and 1.23 ends where an
    optional input is omitted before a given one ("Type unknown for").
    """
    from onnx import helper, inliner

    model = infer_shapes(load_model(path, weights=False))
    functions: list[onnx.FunctionProto] = []
    types: dict[str, onnx.TypeProto] = {}  # a branch reads what the graphs around it make
    for graph in all_graphs(model.graph):
        types |= {value.name: value.type for value in (*graph.input, *graph.output, *graph.value_info)}
        for node in graph.node:
            if node.op_type == "Attention" and not node.domain:
                body = _body_of(node, types, opset_of(model))
                if body is None:
                    return None
                body.domain, body.name = node.domain, node.op_type = _DOMAIN, f"Attention_{len(functions)}"
                functions.append(body)
    if not functions:
        return None
    model.functions.extend(functions)
    model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    plain = inliner.inline_local_functions(model)
    drop_unused(plain.graph)
    return plain


def _body_of(node: onnx.NodeProto, types: dict[str, onnx.TypeProto], opset: int) -> onnx.FunctionProto | None:
    """The standard's function of this node, whose types and omitted inputs decide what it holds."""
    schema: Any = onnx.defs.get_schema(node.op_type, opset)  # onnx 1.23's types lack this method
    given = [types.get(name, onnx.TypeProto()).SerializeToString() for name in node.input]
    try:
        body = schema.get_context_dependent_function(node.SerializeToString(), given)
    except RuntimeError:  # the type of an input is not known
        return None
    function = onnx.FunctionProto.FromString(body)
    del function.output[len(node.output) :]
    function.opset_import[0].version = opset  # no inlining across versions
    return function if function.node else None
