"""ONNX → the vendor's network: reads the file's interface, parses it, and checks that the parser read all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engineworks.engines.backends._trt_log import Logger
from engineworks.engines.backends._trt_messages import parser_message
from engineworks.engines.backends._trt_reads import ignored_inputs
from engineworks.errors import BuildError, UnsupportedError
from engineworks.host.lazy import onnx
from engineworks.model.fold.node_uses import node_uses
from engineworks.model.onnx_files import graph_inputs, graph_outputs, load_model
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
    from engineworks.engines.backends._trt_tensors import given_names  # imports NumPy, which facts do not need

    inputs = [network.get_input(i).name for i in range(network.num_inputs)]
    return given_names(inputs, [network.get_output(i).name for i in range(network.num_outputs)])
