"""The meaning of `text:` in a recipe: columns, tokenizer and length.

This module reads headers and configs only; the step `prepare` tokenizes the text (`tokenize`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engineworks.errors import SamplesError, did_you_mean
from engineworks.recipe.batch import batch_dim, fixed_batch
from engineworks.recipe.datasets.labels import label_numbers
from engineworks.recipe.datasets.preparation import LABELS, SLICES, Preparation, Ragged, longest_for_all
from engineworks.recipe.datasets.tables import look_at
from engineworks.recipe.samples import SampleFile
from engineworks.store.json_files import read_json_object
from engineworks.tensors import TensorSpec

FIELDS = ("input_ids", "attention_mask", "token_type_ids")
"""Outputs of tokenizers, by the names that transformers gives them."""

FAST_FILE = "tokenizer.json"
TOKENIZER_FILES = (
    FAST_FILE, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
    "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
)  # fmt: skip
"""Files that shape a tokenizer, by the names that transformers writes."""

NO_LIMIT = 1_000_000
"""A `model_max_length` of this or more means no limit, as transformers writes it."""

Profiles = Mapping[str, Mapping[str, tuple[int, ...]]]


def plan_text(
    path: Path,
    specs: Sequence[TensorSpec],
    *,
    columns: Sequence[str],
    label: str | None,
    slices: str | None = None,
    tokenizer: Path,
    model: Path | None,
    names: Mapping[str, str],
    max_length: int | None,
    padding: str,
    profiles: Profiles,
    samples: int | None,
) -> SampleFile:
    """The samples that the step `prepare` will make of this file. Raises `SamplesError` for the first problem.

    tokenizer: its folder. model: the model's folder, whose config may name the classes. names: input → the tokenizer's
    name for it, if they differ. profiles: dimension → (min, opt, max) by profile.
    """
    total = _rows(path, columns, label, slices)
    count = counted(path.name, total, samples, specs)
    files = tokenizer_files(tokenizer)
    dim, batch = sequence_dim(specs), batch_dim(specs)
    ranges = _ranges(profiles, dim, batch)
    limit = length_limit(tokenizer, dim, ranges, profiles, batch, max_length)
    constant = padding == "max_length" or isinstance(dim, int)
    params: dict[str, Any] = {
        "kind": "text", "name": path.name, "columns": list(columns), "label": label, "limit": limit,
        "numbers": label_numbers(model) if label else {},
        "width": limit if constant else None, "least": min((low for _, _, low, _ in ranges), default=1),
        "fields": {spec.name: _field(spec, names) for spec in specs},
        "specs": [spec.to_json() for spec in specs], "total": total, "count": count,
    }  # fmt: skip
    params |= {"slices": slices} if slices else {}
    libraries = ["numpy", "tokenizers"]
    libraries += [] if FAST_FILE in files else ["transformers"]
    libraries += ["pyarrow"] if path.suffix == ".parquet" else []
    preparation = Preparation(params, {"text": path, **files}, {"text": path, "tokenizer": tokenizer}, tuple(libraries))
    arrays = {spec.name: spec.name for spec in specs}
    ragged = None if constant else Ragged(str(dim), ranges)
    return SampleFile(
        path, tuple(specs), arrays, LABELS if label else None, count, count, ragged, preparation,
        slices=SLICES if slices else None,
    )  # fmt: skip


def _rows(path: Path, columns: Sequence[str], label: str | None, slices: str | None) -> int:
    """How many rows the file has. Raises `SamplesError` for a column that it lacks."""
    present, total = look_at(path)
    named = [("columns", column) for column in columns] + [("labels", label), ("slices", slices)]
    for key, column in named:
        if column and column not in present:
            hint = did_you_mean(column, present) if present else "the file holds no rows"
            raise SamplesError(f"{path.name}: has no column '{column}'", hint=hint, key=key)
    return total


def counted(name: str, total: int, samples: int | None, specs: Sequence[TensorSpec]) -> int:
    """How many samples are used of `total`. Raises `SamplesError` if there are too few."""
    if total == 0:
        raise SamplesError(f"{name}: holds no samples")
    if samples is not None and samples > total:
        raise SamplesError(
            f"{name}: {samples} samples are asked for, there are {total}", hint=f"samples: {total}", key="samples"
        )
    count, fixed = samples or total, fixed_batch(specs)
    if fixed and count % fixed:
        advice = f"samples: {count - count % fixed}" if count > fixed else "give it more samples"
        raise SamplesError(
            f"{name}: {count} samples, and the model takes {fixed} at a time", hint=advice, key="samples"
        )
    return count


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """The files of a tokenizer, by name. Raises `SamplesError` if there is none."""
    files = {name: folder / name for name in TOKENIZER_FILES if (folder / name).is_file()}
    if not files.keys() - {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}:
        raise SamplesError(
            f"'{folder.name}' holds no tokenizer",
            hint=f"expected {FAST_FILE}, as save_pretrained writes it",
            key="tokenizer",
        )
    return files


def tokenizer_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json; {} if it is missing. Raises `SamplesError` if it is not a JSON object."""
    path = folder / "tokenizer_config.json"
    return read_json_object(path, SamplesError) if path.is_file() else {}


def sequence_dim(specs: Sequence[TensorSpec]) -> str | int:
    """The one dimension that counts tokens. Raises `SamplesError` if inputs are not integer [batch, sequence]."""
    dims = set()
    for spec in specs:
        if len(spec.shape) != 2 or spec.dtype not in ("int64", "int32"):
            raise SamplesError(
                f"input '{spec.name}' is {spec.dtype}{list(spec.shape)}: text makes int64 or int32 [batch, sequence]",
                hint="give the arrays of such models as npz",
                model_input=spec.name,
            )
        dims.add(spec.shape[1])
    if len(dims) != 1:
        raise SamplesError(
            f"the inputs count tokens by {' and '.join(sorted(map(str, dims)))}",
            hint="give it one name: [batch, sequence]",
        )
    return dims.pop()


def length_limit(
    tokenizer: Path,
    dim: str | int,
    ranges: Sequence[tuple[int, int, int, int]],
    profiles: Profiles,
    batch: str | int,
    max_length: int | None,
) -> int:
    """Maximum number of tokens: the requested length, else what the tokenizer's model and the profiles accept."""
    if isinstance(dim, int):
        possible: int | None = dim
    else:
        sizes = sorted({n for p in profiles.values() for n in p.get(str(batch), ())}) or [1]
        possible = longest_for_all(ranges, sizes)
    if max_length is not None:
        if possible is not None and max_length > possible:
            raise SamplesError(
                f"max_length {max_length}: the model takes {possible} tokens here",
                hint="widen the profiles, or cut the texts to that",
                key="max_length",
            )
        return max_length
    stated = tokenizer_settings(tokenizer).get("model_max_length")
    own = int(stated) if isinstance(stated, int | float) and 0 < stated < NO_LIMIT else None
    known = [n for n in (possible, own) if n is not None]
    if not known:
        raise SamplesError("nothing says how long texts may be", hint="max_length: 128")
    return min(known)


def _ranges(profiles: Profiles, dim: str | int, batch: str | int) -> tuple[tuple[int, int, int, int], ...]:
    """(minimum batch, maximum batch, minimum length, maximum length) of every profile."""
    ranges = []
    for dims in profiles.values():
        if isinstance(dim, str) and dim in dims:
            least, _, most = dims[batch] if isinstance(batch, str) and batch in dims else (1, 1, 1 << 30)
            low, _, high = dims[dim]
            ranges.append((least, most, low, high))
    return tuple(ranges)


def _field(spec: TensorSpec, names: Mapping[str, str]) -> str:
    name = names.get(spec.name, spec.name)
    if name not in FIELDS:
        hint = did_you_mean(name, FIELDS)
        hint += "" if spec.name in names else f"; or say which it is: names: {{{spec.name}: …}}"
        message = f"no tokenizer makes '{name}' for input '{spec.name}'"
        raise SamplesError(message, hint=hint, key="names", model_input=spec.name)
    return name
