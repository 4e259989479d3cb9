"""A draft → the recipe's text: comments explain lines that raise questions, and mark every guess."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from engineworks.commands.init.draft import DataFile, Draft, Range
from engineworks.tensors import Dim

GUESS = "a guess"
"""The words that mark what the user did not state; `grep 'a guess'` finds them all."""

COSINE = {
    "fp32": 0.99999, "fp16": 0.9999, "bf16": 0.999, "int8": 0.99, "fp8": 0.98, "int8_weights": 0.999,
    "int4_weights": 0.97, "w4a8": 0.95, "as_is": 0.9999,
}  # fmt: skip
"""Initial limits, by precision."""

_PLAIN = re.compile(r"^[A-Za-z_][A-Za-z0-9_./-]*$")
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})
_COMMENT_COLUMN = 60


def render(draft: Draft) -> str:
    """Return the YAML of the recipe."""
    return "\n".join((*_head(draft), *_tensors(draft), *_shapes(draft), *_rest(draft))) + "\n"


def _head(draft: Draft) -> Iterator[str]:
    origin = " ".join(draft.options.kept[:1])
    if draft.schema:
        yield f"# yaml-language-server: $schema={draft.schema}"
    yield f"# Written by `engineworks init`{'; ' + origin if origin else ''}. Correct what is marked '{GUESS}'."
    if draft.options.dropped:
        yield "# Not translated:"
        yield from (f"#   {line}" for line in draft.options.dropped)
    yield f"recipe: {draft.name}"
    yield f"description: {quoted(draft.description)}"
    yield "owner: ''" + note(len("owner: ''"), "who answers for it, e.g. vision@example.com")
    yield "model:"
    yield f"  source: {{{draft.source}}}"


def _tensors(draft: Draft) -> Iterator[str]:
    yield "inputs:" + note(len("inputs:"), "dims are lengths, or names for what varies")
    for spec in draft.inputs:
        within = draft.ranges.get(spec.name)
        line = f"  {quoted(spec.name)}: {{dtype: {spec.dtype}, shape: {_shape(spec.shape)}"
        line += f", range: {_range(within, spec.dtype)}}}" if within else "}"
        yield line + (note(len(line), f"range: {GUESS}, [least, largest] value") if within else "")
    yield "outputs:"
    yield from (f"  {quoted(name)}: {_shape(shape)}" for name, shape in draft.outputs.items())


def _shapes(draft: Draft) -> Iterator[str]:
    if not draft.shapes:
        return
    yield f"shapes:  # one optimization profile each, dimension: [min, opt, max]. {draft.tried}".rstrip()
    yield "  default:"
    for dim, triple in draft.shapes.items():
        line = f"    {dim}: [{', '.join(map(str, triple))}]"
        yield line + note(len(line), draft.why_shapes.get(dim, GUESS))


def _rest(draft: Draft) -> Iterator[str]:
    yield f"precisions: [{', '.join(draft.precisions)}]"
    if "int8" not in draft.precisions and draft.precisions[0] != "as_is":
        yield "# int8 as well: add it here, real samples under data.calibration, and a limit under accuracy.limits"
    stand_in = draft.evaluation.stand_in
    yield "data:" + ("  # STAND-IN: seeded numbers of the inputs' ranges. Give real samples." if stand_in else "")
    if stand_in and draft.source.startswith("huggingface"):
        yield f"  # {_forms(draft)}"
    if draft.calibration:
        yield f"  calibration: {_data(draft.calibration)}"
    yield f"  evaluation: {_data(draft.evaluation)}"
    line = f"targets: [{', '.join(draft.targets)}]"
    yield line + note(len(line), draft.target_note)
    yield from _accuracy(draft)
    yield from _performance(draft)


def _accuracy(draft: Draft) -> Iterator[str]:
    yield "accuracy:"
    if draft.metric:
        line = f"  metric: {draft.metric}"
        yield line + note(len(line), f"{GUESS}: the labels are whole numbers, one per sample")
    else:
        yield "  # No labels, so no task metric: engines are compared with fp32 in ONNX Runtime. Else: metric: top1"
    yield "  limits:" + note(len("  limits:"), f"cosine similarity to the reference: {GUESS}")
    for precision in draft.precisions:
        limits = f"cosine: {COSINE.get(precision, 0.99)}"
        if draft.metric:
            delta = draft.options.metric_delta
            limits += f", metric_delta: {delta}" if delta else ", metric_ratio: 0.99"
        yield f"    {precision}: {{{limits}}}"


def _performance(draft: Draft) -> Iterator[str]:
    yield "performance:"
    yield "  at:" + note(len("  at:"), "shapes to measure; limits: budget: {typical: {p99_ms: 5}}")
    yield f"    typical: {_at(draft)}"
    batch = next((d for d in draft.shapes if d == draft.inputs[0].shape[0]), None)
    if batch and draft.shapes[batch][2] > draft.shapes[batch][1]:
        yield f"    bulk: {_at(draft, {batch: draft.shapes[batch][2]})}"
    if draft.options.streams:
        yield f"  streams: [{', '.join(map(str, draft.options.streams))}]"
    if draft.options.cuda_graphs:
        yield "  serving: {cuda_graphs: true}"


def _at(draft: Draft, over: dict[str, int] | None = None) -> str:
    lengths = {dim: triple[1] for dim, triple in draft.shapes.items()} | (over or {})
    return "{" + ", ".join(f"{dim}: {length}" for dim, length in lengths.items()) + "}"


def _forms(draft: Draft) -> str:
    """Return the possible forms of real samples for a model that brings its tokenizer or processor."""
    if any(len(spec.shape) == 4 for spec in draft.inputs):
        return "images: evaluation: {images: FOLDER, labels: folder}; the model's processor reads them"
    return "texts: evaluation: {text: FILE.jsonl, labels: label}; the tokenizer reads them, also .csv, .parquet"


def _data(data: DataFile) -> str:
    parts = [f"{data.kind}: {quoted(data.file)}"]
    if data.columns:
        parts.append(f"columns: [{', '.join(map(quoted, data.columns))}]")
    if data.names:
        parts.append("names: {" + ", ".join(f"{quoted(k)}: {quoted(v)}" for k, v in data.names.items()) + "}")
    if data.labels:
        parts.append(f"labels: {quoted(data.labels)}")
    return "{" + ", ".join(parts) + "}"


def note(column: int, text: str) -> str:
    """Return a comment for a line of so many characters, '' without a text."""
    if not text:
        return ""
    return " " * max(2, _COMMENT_COLUMN - column) + f"# {text}"


def _shape(shape: Sequence[Dim]) -> str:
    return "[" + ", ".join(d if isinstance(d, str) else str(d) for d in map(_dim, shape)) + "]"


def _dim(dim: Dim) -> Dim:
    return dim if isinstance(dim, int) or dim.lower() not in _WORDS else json.dumps(dim)


def _range(within: Range, dtype: str) -> str:
    return "[" + ", ".join(f"{n:g}" if dtype.startswith("float") else str(int(n)) for n in within) + "]"


def quoted(value: str) -> str:
    """Return a YAML scalar: plain if unambiguous, else quoted as JSON, which is YAML."""
    plain = _PLAIN.match(value) and value.lower() not in _WORDS
    return value if plain else json.dumps(value, ensure_ascii=False)


__all__ = ["COSINE", "GUESS", "note", "quoted", "render"]
