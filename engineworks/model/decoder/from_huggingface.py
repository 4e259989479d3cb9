"""Hugging Face folder → `model.onnx` with a KV cache. Runs in a child process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engineworks.errors import ExportError, ModelError
from engineworks.host.lazy import NDArray, onnx
from engineworks.model.decoder.interface import IDS, LOGITS, POSITIONS, CacheTensor, DecoderInterface
from engineworks.model.export.from_huggingface import PACKAGES, from_pretrained
from engineworks.model.export.interface import require_packages
from engineworks.model.graphs import set_nodes
from engineworks.model.onnx_files import EXTERNAL_ABOVE_BYTES, MODEL_FILE

PROOF_TOKENS = 20
EXPECTED_FILE = "expected.f32"
DATA_FILE = MODEL_FILE + ".data"


def load_decoder(folder: Path) -> Any:
    """Return the model, eval'd, in float32 on the CPU. Raises `ModelError`, `ExportError`."""
    require_packages(PACKAGES, extra="huggingface", doing=f"the decoder '{folder.name}'")
    options = {"attn_implementation": "eager", "use_safetensors": True}
    model, missing = from_pretrained("AutoModelForCausalLM", folder, "as a decoder", **options)
    if missing:
        raise ModelError(f"{folder}: its weights lack '{min(missing)}': they would be random numbers")
    return model.eval()


def write_decoder(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Export into the empty folder `out`, and write EXPECTED_FILE: what the model itself gives for `proof_tokens`, f32
    [batch, sequence, vocabulary]. Returns the `interface` as JSON.

    A function for a child of its own: onnxscript keeps the graph that it optimized last, with the weights, and the
    proof needs the memory. payload: `folder`, `out`, `context` (positions of the cache). Raises as `load_decoder`.
    """
    out, context = Path(payload["out"]), int(payload["context"])
    model = load_decoder(Path(payload["folder"]))
    full_logits(model, proof_tokens(int(model.config.vocab_size), context)).tofile(out / EXPECTED_FILE)
    return {"interface": _write(model, context, out).to_json()}


def full_logits(model: Any, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return logits [batch, sequence, vocabulary] of all tokens [batch, sequence] at once, without a cache."""
    import torch

    with torch.no_grad():
        logits: NDArray[np.float32] = model(input_ids=torch.from_numpy(tokens), use_cache=False).logits.float().numpy()
    return logits


def proof_tokens(vocabulary: int, context: int) -> NDArray[np.int64]:
    """Return the tokens [batch, sequence] that prove an export."""
    return np.random.default_rng(0).integers(0, vocabulary, (2, min(PROOF_TOKENS, context)))


def _write(model: Any, context: int, out: Path) -> DecoderInterface:
    """Export the model. Its attention and rotary modules are replaced: it cannot be used afterwards."""
    from engineworks.model.decoder.torch_decoder import (
        ATTENTION,
        Call,
        cache_shapes,
        check_window,
        register_attention,
        use_rotary_tables,
    )

    call, tensors = Call(), list[CacheTensor]()
    for layer, pair in enumerate(cache_shapes(model)):
        for kind, (heads, size) in zip(("key", "value"), pair, strict=True):
            shape = ("batch", heads, context, size)
            name = f"past_key_values.{layer}.{kind}"
            tensors.append(CacheTensor(name, name.replace("past_key_values", "present"), "float32", shape, 0, 2))
    register_attention(call)
    model.set_attn_implementation(ATTENTION)
    if hasattr(model, "set_experts_implementation") and _has_experts(model.config):
        model.set_experts_implementation("batched_mm")  # the others branch on data
    use_rotary_tables(model, context)
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    # `save` writes weight by weight; a message with all of them would be in memory twice
    program = _traced(model, call, tensors, context)
    check_window(call, model.config, context)
    program.save(str(out / MODEL_FILE), external_data=size > EXTERNAL_ABOVE_BYTES)
    _finish(out / MODEL_FILE)
    return DecoderInterface("in_place", context, int(model.config.vocab_size), tuple(tensors), positions=POSITIONS)


def _traced(model: Any, call: Any, tensors: Sequence[CacheTensor], context: int) -> Any:
    """Return torch's exported program. Raises `ExportError`."""
    import torch

    from engineworks.model.decoder.torch_decoder import OPSET, decoder_module

    caches = [torch.zeros(tensor.concrete(2, context)) for tensor in tensors]
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence", max=context)
    try:
        with torch.no_grad():
            return torch.onnx.export(
                decoder_module(model, call),
                (torch.ones(2, 5, dtype=torch.int64), torch.tensor([0, 3]), caches),
                dynamo=True, opset_version=OPSET, verbose=False, optimize=True,
                dynamic_shapes=({0: batch, 1: sequence}, {0: batch}, [{0: batch}] * len(caches)),
                input_names=[IDS, POSITIONS, *(t.input for t in tensors)],
                output_names=[LOGITS, *(t.output for t in tensors)],
            )  # fmt: skip
    except Exception as error:  # the exporter raises whatever its parts raise
        raise ExportError(f"the decoder cannot be exported: {str(error).splitlines()[0]}", log=str(error)) from error


def _finish(path: Path) -> None:
    """Rewrite the graph for the engines' parsers; weights in a file of their own stay there."""
    made = onnx.load(str(path), load_external_data=False)
    made.ir_version = 11  # the first with opset 24's types
    for node in made.graph.node:
        del node.metadata_props[:]
    spell_out_reshapes(made)
    del made.graph.value_info[:]
    path.write_bytes(made.SerializeToString())


def _has_experts(config: Any) -> bool:
    return any("num_experts" in key or "num_local_experts" in key for key in vars(config))


def spell_out_reshapes(model: onnx.ModelProto) -> None:
    """Write a Reshape's -1 as a number where value_info has one: TensorRT-RTX cannot always tell."""
    graph = model.graph
    shapes = {
        v.name: [d.dim_value if d.HasField("dim_value") else -1 for d in v.type.tensor_type.shape.dim]
        for v in graph.value_info
    }
    held = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    made = []
    for node in graph.node:
        concat = makers.get(node.input[1]) if node.op_type == "Reshape" else None
        shape = shapes.get(node.output[0])
        if concat is None or concat.op_type != "Concat" or not shape or len(concat.input) != len(shape):
            made.append(node)
            continue
        parts = list(concat.input)
        for axis, part in enumerate(parts):
            free = part in held and onnx.numpy_helper.to_array(held[part]).tolist() == [-1]
            if free and shape[axis] >= 0:
                name = f"{node.output[0]}_length_{axis}"
                graph.initializer.append(onnx.numpy_helper.from_array(np.array([shape[axis]], np.int64), name))
                parts[axis] = name
        if parts != list(concat.input):
            node.input[1] = f"{node.output[0]}_shape"
            made.append(onnx.helper.make_node("Concat", parts, [node.input[1]], axis=0))
        made.append(node)
    set_nodes(graph, made)
