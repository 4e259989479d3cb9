"""`init` on a decoder: an ONNX file with a KV cache, or a Hugging Face folder of a known family, with texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engineworks.commands.init.draft import RawTensor
from engineworks.commands.init.render import GUESS, note, quoted
from engineworks.errors import ModelError
from engineworks.model.decoder.families import FAMILIES, context_problems, read_config
from engineworks.model.decoder.interface import DecoderInterface, guess_cache, read_interface
from engineworks.recipe.datasets.decoder_text import PLAIN
from engineworks.recipe.datasets.tables import SUFFIXES
from engineworks.tensors import TensorSpec

CONTEXT = 1024
"""Positions of a cache that may have any number, where the model was made for more."""

SHOWN_PAIRS = 8
"""Up to so many tensors of a cache are written out; more are found again by their usual names."""

RATIOS: Mapping[str, float] = {"fp32": 0.999, "fp16": 0.995, "int8_weights": 0.98, "int4_weights": 0.9, "w4a8": 0.85}


@dataclass(frozen=True)
class FoundDecoder:
    """context: positions of the cache. fixed: the model has no other number. cache: input → output, {} by names. ties:
    sums by name of a dimension."""

    context: int
    fixed: bool
    cache: Mapping[str, str]
    ties: Mapping[str, str] = field(default_factory=dict)


def is_text(evaluation: str | None) -> bool:
    return evaluation is not None and Path(evaluation).suffix in (PLAIN, *SUFFIXES)


def decoder_in_onnx(inputs: Sequence[RawTensor], outputs: Sequence[RawTensor]) -> FoundDecoder | None:
    """Return the decoder whose cache these tensors are; None where there is no cache, or another input."""
    specs = [[_spec(raw) for raw in given] for given in (inputs, outputs)]
    cache = guess_cache(*([spec.name for spec in given] for given in specs))
    held = [d for spec in specs[0] if spec.name in cache for d in spec.shape if isinstance(d, int)]
    for context in dict.fromkeys((CONTEXT, *held)):
        try:
            face = read_interface(specs[0], specs[1], context, {})
        except ModelError:
            continue
        pairs = {c.input: c.output for c in face.caches}
        ties = _ties(face, *specs) if face.form == "growing" else {}
        return FoundDecoder(context, face.form == "in_place", pairs if len(pairs) <= SHOWN_PAIRS else {}, ties)
    return None


def _ties(face: DecoderInterface, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> dict[str, str]:
    """Return the sums that dimensions with names of their own are: of the mask, and of what the cache grows to."""
    given, made = ({spec.name: spec for spec in specs} for specs in (inputs, outputs))
    cache, sequence = face.caches[0], str(given[face.ids].shape[1])
    past = str(cache.shape[cache.length])
    names = [str(made[c.output].shape[c.length]) for c in face.caches]
    names += [str(given[face.mask].shape[-1])] if face.mask else []
    if not all(name.isidentifier() for name in (past, sequence)):
        return {}
    own = {d for spec in (*inputs, *outputs) for axis, d in enumerate(spec.shape) if d == f"{spec.name}_{axis}"}
    return {n: f"{past} + {sequence}" for n in names if n.isidentifier() and n not in own | {past, sequence}}


def decoder_in_folder(folder: Path) -> FoundDecoder | None:
    """Return the decoder that a Hugging Face folder holds, None for any other model."""
    if not (folder / "config.json").is_file():
        return None
    config = read_config(folder)
    heads = [str(name).endswith(("CausalLM", "LMHeadModel")) for name in config.get("architectures") or ()]
    if config.get("model_type") not in FAMILIES or not any(heads):
        return None
    longest = [n for n in (config.get("max_position_embeddings"), config.get("n_positions")) if isinstance(n, int)]
    context = min([CONTEXT, *longest])
    return None if any(True for _ in context_problems(config, context)) else FoundDecoder(context, False, {})


def _spec(raw: RawTensor) -> TensorSpec:
    return TensorSpec(
        raw.name, raw.dtype, tuple(f"{raw.name}_{axis}" if d is None else d for axis, d in enumerate(raw.dims))
    )


def decoder_lines(
    name: str, description: str, source: str, found: FoundDecoder, text: str, columns: Sequence[str],
    precisions: Sequence[str],
) -> Iterator[str]:  # fmt: skip
    """Yield the recipe's YAML. source: the line of `model.source`. text: the file as the recipe names it."""
    cache = ", ".join(f"{quoted(given)}: {quoted(made)}" for given, made in found.cache.items())
    ties = ", ".join(f"{name}: {total}" for name, total in found.ties.items())
    more = (f", cache: {{{cache}}}" if cache else "") + (f", ties: {{{ties}}}" if ties else "")
    context = f"  decoder: {{context: {found.context}{more}}}"
    column = f", columns: [{', '.join(map(quoted, columns))}]" if columns else ""
    prompt = max(1, found.context // 4)
    yield f"# Written by `engineworks init`. Correct what is marked '{GUESS}'."
    yield f"recipe: {name}"
    yield f"description: {quoted(description)}"
    yield "owner: ''" + note(len("owner: ''"), "who answers for it, e.g. vision@example.com")
    yield "model:"
    yield f"  source: {{{source}}}"
    yield context + ("" if found.fixed else note(len(context), f"positions of prompt and continuation: {GUESS}"))
    yield f"precisions: [{', '.join(precisions)}]"
    yield "data:"
    yield f"  evaluation: {{text: {quoted(text)}{column}}}"
    yield "targets: [cpu]"
    yield "accuracy:"
    yield "  metric: perplexity"
    yield "  limits:" + note(len("  limits:"), f"fp32's perplexity over the engine's: {GUESS}")
    yield from (f"    {p}: {{metric_ratio: {RATIOS.get(p, 0.99)}}}" for p in precisions)
    yield "performance:"
    yield "  at:" + note(len("  at:"), f"tokens of prompt and continuation, and sequences at once: {GUESS}")
    yield f"    chat: {{prompt: {prompt}, new: {prompt}, streams: 1}}"
