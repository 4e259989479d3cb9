"""Texts or images → samples as one .npz for all later steps: tokenized once for all hosts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engineworks.errors import SamplesError
from engineworks.recipe.datasets.decoder_text import read_texts
from engineworks.recipe.datasets.labels import as_array, in_order, is_name, number_of
from engineworks.recipe.datasets.pictures import BY_FOLDER, class_of, image_names, read_label_file
from engineworks.recipe.datasets.preparation import LABELS, LENGTHS, REPORT_FILE, SLICES
from engineworks.recipe.datasets.preprocess_images import see
from engineworks.recipe.datasets.rows import ArchiveWriter
from engineworks.recipe.datasets.tables import read_rows
from engineworks.recipe.datasets.tokenize import IGNORED, Tokenized, load_tokenizer, padded, padding_id, tokenize
from engineworks.steps.job import StepJob
from engineworks.tensors import spec_from_json


def run(job: StepJob) -> None:
    notes = _MAKERS[job.params["kind"]](job)
    for note in notes:
        job.echo(f"note: {note}")
    report = {"samples": job.params["count"], "of": job.params["total"], "classes": job.params.get("numbers") or {}}
    job.write_json(REPORT_FILE, {**report, "notes": notes})


def _used(job: StepJob) -> list[int]:
    count, total = job.params["count"], job.params["total"]
    return [i * total // count for i in range(count)]


def _text(job: StepJob) -> list[str]:
    params = job.params
    columns, label = params["columns"], params["label"]
    rows = list(read_rows(job.path("text"), _used(job), [*columns, *filter(None, (label, params.get("slices")))]))
    if len(rows) != params["count"]:
        raise SamplesError(f"{params['name']} changed since the plan was made", hint="build again")
    numbers = params["numbers"] or in_order(
        label_name for _, row in rows for label_name in _names(row[label] if label else None)
    )  # fmt: skip
    tokenized = tokenize(
        iter(rows), job.path("tokenizer"), columns=columns, label=label, limit=params["limit"], numbers=numbers
    )
    _write_text(job, tokenized, [row[params["slices"]] for _, row in rows] if "slices" in params else [])
    notes = []
    if tokenized.cut:
        notes.append(f"{params['name']}: {tokenized.cut} of {len(rows)} texts were cut to {params['limit']} tokens")
    if tokenized.lost:
        notes.append(f"{params['name']}: {tokenized.lost} answers were cut off, and do not count")
    if numbers and not params["numbers"]:
        notes.append(f"{params['name']}: {_classes(numbers)}, for the model names no such classes")
    return notes


def _names(label: Any) -> list[str]:
    """Return the strings among the labels of one row."""
    labels = label if isinstance(label, list) else [label]
    return [str(name).strip() for name in labels if is_name(name)]


def _classes(numbers: dict[str, int]) -> str:
    shown = ", ".join(f"{name} is {number}" for name, number in list(numbers.items())[:6])
    return f"labels in the order of their names ({shown}{', …' if len(numbers) > 6 else ''})"


def _write_text(job: StepJob, tokenized: Tokenized, slices: list[Any]) -> None:
    params = job.params
    lengths = [len(row["input_ids"]) for row in tokenized.rows]
    width = params["width"] or max(*lengths, params["least"])
    tokenizer = load_tokenizer(job.path("tokenizer"))
    fills = {"input_ids": padding_id(job.path("tokenizer"), tokenizer)}
    with ArchiveWriter(job.out / f"{params['name']}.npz") as archive:
        for spec in map(spec_from_json, params["specs"]):
            made = params["fields"][spec.name]
            values = [row[made] for row in tokenized.rows]
            archive.write(spec.name, padded(values, width, fills.get(made, 0), spec.dtype))
        archive.write(LENGTHS, np.array(lengths, np.int64))
        if tokenized.labels:
            per_token = tokenized.kind == "tokens"
            labels = padded(tokenized.labels, width, IGNORED, "int64") if per_token else as_array(tokenized.labels)
            archive.write(LABELS, labels)
        if slices:
            archive.write(SLICES, _slice_array(slices))


def _slice_array(slices: list[Any]) -> NDArray[np.str_]:
    missing = (None, *(name for name in slices if name != name))  # NaN of a table
    return np.array(["" if name in missing else str(name).strip() for name in slices])


def _images(job: StepJob) -> list[str]:
    params, folder = job.params, job.path("images")
    (spec,) = map(spec_from_json, params["specs"])
    every = image_names(folder)
    if len(every) != params["total"]:
        raise SamplesError(f"{params['name']} changed since the plan was made", hint="build again")
    names = [every[i] for i in _used(job)]
    with ArchiveWriter(job.out / f"{params['name']}.npz") as archive:
        archive.write_rows(spec.name, see(folder, names, job.path("processor"), spec), len(names))
        if "labels" in params:
            by_file = read_label_file(job.path("labels")) if params["labels"] == "file" else {}
            labels = [by_file[n] if by_file else class_of(n) for n in names]
            numbered = [number_of(n, label, params["numbers"]) for n, label in zip(names, labels, strict=True)]
            archive.write(LABELS, as_array(numbered))
        if column := params.get("slices"):
            named = {} if column == BY_FOLDER else read_label_file(job.path("labels"), column)
            archive.write(SLICES, _slice_array([named[n] if named else class_of(n) for n in names]))
    return []


def _tokens(job: StepJob) -> list[str]:
    """Write a decoder's texts: all tokens of texts, prompts and the one that fills the context, and their lengths."""
    params = dict(job.params)
    made = read_texts(job.path("text"), job.path("tokenizer"), params)
    with ArchiveWriter(job.out / f"{params['name']}.npz") as archive:
        for name, rows in (("texts", made.texts), ("prompts", made.prompts), ("long", [made.long])):
            archive.write(name, np.array([token for row in rows for token in row], np.int64))
            archive.write(f"{name}_lengths", np.array([len(row) for row in rows], np.int64))
    return [f"{params['name']}: {made.left_out} texts were too short to predict anything"] if made.left_out else []


_MAKERS = {"text": _text, "images": _images, "tokens": _tokens}
