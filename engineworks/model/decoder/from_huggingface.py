"""Hugging Face folder → `model.onnx` with a KV cache, proved against the model itself. Runs in a child process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engineworks.errors import ExportError, ModelError
from engineworks.model.decoder.families import FAMILIES, check_family, read_config
from engineworks.model.decoder.interface import IDS, LOGITS, POSITIONS, CacheTensor, DecoderInterface
from engineworks.model.export.from_huggingface import PACKAGES, find_folder
from engineworks.model.export.interface import ExportReport, folder_bytes, require_packages, versions_of
from engineworks.model.onnx_files import EXTERNAL_ABOVE_BYTES, MODEL_FILE
from engineworks.model.runtime.ort_forms import exact_options

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

PROOF_PROMPT, PROOF_STEPS = 12, 8
PROOF_ERROR = 2e-4
"""Largest difference of a logit from the model's own, relative to the logits' standard deviation. The families of the
tests stay below 2e-5; one that is wrong has lost a window, a scale or a rotation, and is off by 1e-2 and more."""

DATA_FILE = MODEL_FILE + ".data"


def load_decoder(folder: Path, *, attention: str = "eager") -> Any:
    """Return the model, eval'd, in float32 on the CPU. Raises `ModelError`, `ExportError`."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    require_packages(PACKAGES, extra="huggingface", doing=f"the decoder '{folder.name}'")
    import torch
    from transformers import AutoModelForCausalLM

    from engineworks.model.export.from_torch import use_one_thread

    use_one_thread()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            str(folder), local_files_only=True, dtype=torch.float32, attn_implementation=attention,
            trust_remote_code=False, output_loading_info=True, use_safetensors=True,
        )  # fmt: skip
    except Exception as error:  # transformers raises whatever its parts raise
        raise ExportError(f"{folder}: transformers cannot load it as a decoder: {error}", log=repr(error)) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(f"{folder}: its weights lack '{missing[0]}': they would be random numbers")
    return model.eval()


def export_decoder(source: str, root: Path, context: int, out: Path) -> tuple[ExportReport, DecoderInterface]:
    """Export into the empty folder `out`. context: positions of the cache.

    Raises `ModelError` for a family that is not known or whose export is not right, `ExportError` where it fails.
    """
    started = time.monotonic()
    folder = find_folder(source, root)
    family = check_family(read_config(folder))
    model = load_decoder(folder)
    tokens = _proof_tokens(int(model.config.vocab_size))
    expected = full_logits(model, tokens)
    interface = _write(model, context, out)
    del model  # the proof needs the memory
    error = _error(out / MODEL_FILE, interface, tokens, expected)
    if not error <= PROOF_ERROR:
        raise ModelError(
            f"{folder}: the export of this {FAMILIES[family]} model is not right: its logits are off by {error:.2g} "
            f"of their spread, at most {PROOF_ERROR:g} is allowed",
            hint="use another model: its family has a part that the export leaves out",
        )
    files = tuple(name for name in (MODEL_FILE, DATA_FILE) if (out / name).is_file())
    notes = (f"family {FAMILIES[family]}", f"logits within {error:.1e} of the model's own")
    report = ExportReport(
        "torch.onnx (dynamo)", 24, files, folder_bytes(out, files), time.monotonic() - started, notes,
        versions_of("torch", "onnxscript", "transformers", "onnx"),
    )  # fmt: skip
    return report, interface


def full_logits(model: Any, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return logits [batch, sequence, vocabulary] of all tokens [batch, sequence] at once, without a cache."""
    import torch

    with torch.no_grad():
        logits: NDArray[np.float32] = model(input_ids=torch.from_numpy(tokens), use_cache=False).logits.float().numpy()
    return logits


def _proof_tokens(vocabulary: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, vocabulary, (2, PROOF_PROMPT + PROOF_STEPS))


def _write(model: Any, context: int, out: Path) -> DecoderInterface:
    """Export the model. Its attention and rotary modules are replaced: it cannot be used afterwards."""
    from engineworks.model.decoder.torch_decoder import (
        ATTENTION,
        cache_shapes,
        new_call,
        register_attention,
        use_rotary_tables,
    )

    call, tensors = new_call(), list[CacheTensor]()
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
    import onnx

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
    from onnx import helper, numpy_helper

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
            free = part in held and numpy_helper.to_array(held[part]).tolist() == [-1]
            if free and shape[axis] >= 0:
                name = f"{node.output[0]}_length_{axis}"
                graph.initializer.append(numpy_helper.from_array(np.array([shape[axis]], np.int64), name))
                parts[axis] = name
        if parts != list(concat.input):
            node.input[1] = f"{node.output[0]}_shape"
            made.append(helper.make_node("Concat", parts, [node.input[1]], axis=0))
        made.append(node)
    del graph.node[:]
    graph.node.extend(made)


def _error(path: Path, interface: DecoderInterface, tokens: NDArray[np.int64], expected: NDArray[np.float32]) -> float:
    """Return the largest difference of the exported model's logits, relative to the expected ones' deviation: a prompt
    at once, then step by step, the second row one position behind the first."""
    got = np.zeros_like(expected)
    for rows, logits in _run(path, interface, tokens):
        for row, (begin, values) in rows.items():
            got[row, begin : begin + len(values)] = values
        del logits
    return float(np.abs(got - expected).max() / max(float(expected.std()), 1e-12))


def _run(
    path: Path, interface: DecoderInterface, tokens: NDArray[np.int64]
) -> Iterator[tuple[dict[int, tuple[int, NDArray[np.float32]]], None]]:
    """Yield logits by row, with the position of the first."""
    import onnxruntime as ort

    options = exact_options()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    caches = {c.input: np.zeros(c.concrete(2, interface.context), np.float32) for c in interface.caches}
    at = np.zeros(2, np.int64)
    steps = [tokens[:, :PROOF_PROMPT]] + [None] * (PROOF_STEPS + 1)
    lag = np.array([0, 1])
    for number, step in enumerate(steps):
        if step is None:
            at = PROOF_PROMPT + number - 1 - lag  # the second row repeats its last position first
            step = tokens[[0, 1], np.minimum(at, tokens.shape[1] - 1)][:, None]
        feeds: dict[str, Any] = {interface.ids: step, interface.positions: at, **caches}
        made = dict(zip(names, session.run(None, feeds), strict=True))
        caches = {c.input: made[c.output] for c in interface.caches}
        logits = made[interface.logits]
        yield (
            {
                row: (int(at[row]), logits[row])
                for row in range(2)
                if int(at[row]) + len(logits[row]) <= tokens.shape[1]
            },
            None,
        )
