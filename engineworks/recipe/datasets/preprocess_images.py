"""Images → pixel_values, by the processor that the model was trained with (transformers, on Pillow: no torch)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engineworks.errors import SamplesError
from engineworks.host.regular_files import open_regular
from engineworks.model.export.interface import require_packages
from engineworks.tensors import TensorSpec

MOST_PIXELS = 1 << 26
"""As RGB 192 MiB, and twice that while it is turned."""

PACKAGES = {"transformers": "transformers", "PIL": "pillow"}


def see(folder: Path, names: Sequence[str], processor: Path, spec: TensorSpec) -> Iterator[NDArray[Any]]:
    """The images one by one in the input's layout, [channels, height, width] of the input's dtype.

    Raises `ModelError` if a package is missing. Raises `SamplesError` for an image or processor that cannot be read,
    and if the processor's images do not fit the input.
    """
    require_packages(PACKAGES, extra="images", doing=f"images in '{folder.name}'")
    loaded = _load(processor)
    first: tuple[int, ...] | None = None
    for name in names:
        pixels = _pixels(loaded, folder / name, name, "L" if spec.shape[1] == 1 else "RGB")
        wanted = spec.shape[1:]
        if any(isinstance(w, int) and w != h for w, h in zip(wanted, pixels.shape, strict=False)):
            raise SamplesError(
                f"{name}: the processor makes {list(pixels.shape)} of it, input '{spec.name}' needs {list(wanted)}",
                hint="another processor, or other lengths under 'inputs'",
            )
        first = first or pixels.shape
        if pixels.shape != first:
            raise SamplesError(
                f"{name}: the processor makes {list(pixels.shape)} of it, and {list(first)} of others",
                hint="a processor that crops gives one size",
            )
        yield pixels.astype(spec.dtype)


def _load(folder: Path) -> Any:
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    import transformers

    transformers.logging.set_verbosity_error()
    try:
        return transformers.AutoImageProcessor.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, backend="pil"
        )
    except Exception as error:  # transformers passes on any error of its parts
        raise SamplesError(f"'{folder.name}': transformers cannot read its image processor: {error}") from error


def _pixels(processor: Any, path: Path, name: str, mode: str) -> NDArray[Any]:
    """One image as [channels, height, width]. mode: Pillow's name of grey (L) or colors (RGB)."""
    image = read_picture(path, name, mode)
    try:
        made = processor(images=image, return_tensors="np")["pixel_values"]
    except Exception as error:  # transformers passes on any error of its parts
        raise SamplesError(f"{name}: the processor fails: {error}") from error
    pixels: NDArray[Any] = np.asarray(made)[0]
    return pixels


def read_picture(path: Path, name: str, mode: str) -> Any:
    """One image, upright, as a Pillow image of this mode. Raises `SamplesError` for what cannot be read."""
    from PIL import Image, ImageOps

    try:
        with open_regular(path) as file, Image.open(file) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels, more than {MOST_PIXELS:,}")
            return ImageOps.exif_transpose(image).convert(mode)
    except Exception as error:  # Pillow's decoders raise any error for damaged files
        raise SamplesError(f"{name}: is no image that can be read: {error}") from error
