"""The meaning of `images:` in a recipe: files, processor and classes. It reads names and opens no image."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engineworks.errors import SamplesError, did_you_mean
from engineworks.recipe.datasets.labels import in_order, is_name, label_numbers
from engineworks.recipe.datasets.preparation import LABELS, SLICES, Preparation
from engineworks.recipe.datasets.tables import look_at, read_rows
from engineworks.recipe.datasets.text import counted
from engineworks.recipe.samples import SampleFile
from engineworks.tensors import TensorSpec

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")
PROCESSOR_FILE = "preprocessor_config.json"
BY_FOLDER = "folder"
"""Replaces a file with labels: the class of an image is the folder it lies in."""

_SURROGATES = re.compile("[\ud800-\udfff]")
"""Python's reading of bytes that are not UTF-8 (os.fsdecode)."""


def plan_images(
    folder: Path,
    specs: Sequence[TensorSpec],
    *,
    processor: Path,
    model: Path | None,
    labels: str | None,
    label_file: Path | None,
    slices: str | None = None,
    samples: int | None,
) -> SampleFile:
    """The samples that the step `prepare` will make of this folder. Raises `SamplesError` for the first problem.

    processor: the folder with its config. labels: 'folder', or any other value together with its `label_file`.
    """
    spec = _pixels(specs)
    names = image_names(folder)
    count = counted(folder.name, len(names), samples, specs)
    used = [names[i * len(names) // count] for i in range(count)]
    config = _config(processor)
    params: dict[str, Any] = {
        "kind": "images", "name": folder.name, "specs": [spec.to_json()], "total": len(names), "count": count,
    }  # fmt: skip
    files = {PROCESSOR_FILE: config}
    if labels is not None:
        by_name = _by_folder(names) if labels == BY_FOLDER else _by_file(label_file, names)
        params["labels"] = "folder" if labels == BY_FOLDER else "file"
        params["numbers"] = _numbers(set(by_name.values()), label_numbers(model))
        if label_file is not None:
            files["labels"] = label_file
    if slices is not None:
        params["slices"] = _slice_column(slices, label_file)
    tree = {name: folder / name for name in used}
    places = {"images": folder, "processor": processor} | ({"labels": label_file} if label_file else {})
    preparation = Preparation(params, files, places, ("numpy", "pillow", "transformers"), tree)
    arrays = {spec.name: spec.name}
    return SampleFile(
        folder, tuple(specs), arrays, LABELS if labels else None, count, count, None, preparation,
        slices=SLICES if slices else None,
    )  # fmt: skip


def _config(processor: Path) -> Path:
    """The processor's config. Raises `SamplesError` if there is none."""
    config = processor / PROCESSOR_FILE
    if not config.is_file():
        hint = "its processor's save_pretrained writes it"
        raise SamplesError(f"'{processor.name}' holds no {PROCESSOR_FILE}", hint=hint, key="processor")
    return config


def image_names(folder: Path) -> list[str]:
    """Names of all images below the folder, relative to it, sorted; hidden files are left out.

    Raises `SamplesError` for a name that is not UTF-8: no document could hold it.
    """
    images = (p.relative_to(folder) for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    names = sorted(p.as_posix() for p in images if not any(part.startswith(".") for part in p.parts))
    if strange := next((name for name in names if _SURROGATES.search(name)), None):
        raise SamplesError(f"{folder.name}: the name of {os.fsencode(strange)!r} is not UTF-8", hint="rename it")
    return names


def class_of(name: str) -> str:
    """The folder that an image lies in, below the folder of images."""
    return name.partition("/")[0]


def read_label_file(path: Path, wanted: str = "label") -> dict[str, Any]:
    """Label, or another column, by name of the image.

    Raises `SamplesError` if a column is missing or an image is a duplicate.
    """
    columns, total = look_at(path)
    for column in ("file", wanted):
        if column not in columns:
            raise SamplesError(f"{path.name}: has no column '{column}'", hint="its columns are file and label")
    by_name: dict[str, Any] = {}
    for place, row in read_rows(path, range(total), ("file", wanted)):
        if row["file"] in by_name:
            raise SamplesError(f"{place}: duplicate '{row['file']}'", hint="one row per image")
        by_name[str(row["file"])] = row[wanted]
    return by_name


def _slice_column(slices: str, label_file: Path | None) -> str:
    """'folder', or a column of the labels' file. Raises `SamplesError` if there is no such column."""
    if slices == BY_FOLDER:
        return slices
    columns = look_at(label_file)[0] if label_file else []
    if slices not in columns:
        hint = did_you_mean(slices, columns) if label_file else "slices: folder, or labels: FILE.csv with such a column"
        where = label_file.name if label_file else "images"
        raise SamplesError(f"{where}: has no column '{slices}' with slices", hint=hint, key="slices")
    return slices


def _pixels(specs: Sequence[TensorSpec]) -> TensorSpec:
    if len(specs) != 1 or len(specs[0].shape) != 4 or specs[0].dtype not in ("float32", "float16"):
        what = ", ".join(map(str, specs))
        raise SamplesError(
            f"images make one input, float32 [batch, channels, height, width]; the model has {what}",
            hint="give the arrays of such models as npz",
        )
    return specs[0]


def _numbers(classes: set[str], known: Mapping[str, int]) -> Mapping[str, int]:
    """The model's own numbers if it knows all names, none if the classes are already numbers, else their order."""
    if classes <= known.keys():
        return known
    return in_order(classes) if any(is_name(label) for label in classes) else {}


def _by_folder(names: Sequence[str]) -> dict[str, str]:
    loose = next((name for name in names if "/" not in name), None)
    if loose is not None:
        raise SamplesError(
            f"'{loose}' lies in no class's folder", hint="one folder per class, or labels: FILE.csv", key="labels"
        )
    return {name: class_of(name) for name in names}


def _by_file(path: Path | None, names: Sequence[str]) -> Mapping[str, str]:
    assert path is not None  # the caller gives a file unless labels is 'folder'
    labels = read_label_file(path)
    for name in names:
        if name not in labels:
            raise SamplesError(f"{path.name}: has no row for '{name}'", hint=did_you_mean(name, labels), key="labels")
    return {name: str(labels[name]) for name in names}
