"""The handwritten digits of `digits-images.yaml` as PNG files, a folder per class, made of the arrays beside the
recipes (UCI's Optical Recognition of Handwritten Digits, as scikit-learn brings them). Nothing is downloaded.

The files hold grey values 0 … 255; `preprocessor_config.json` beside them says how a model's input is made of these.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packages import FETCHED, FetchError, require, run_script, write_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

ARRAYS = FETCHED.parent / "data"
FOLDER = FETCHED / "digits_images"
PROCESSOR = FOLDER / "preprocessor_config.json"
PARTS = {"calibration": "digits_calib.npz", "evaluation": "digits_test.npz"}
MADE = FOLDER / "made.json"
"""Written last: how many images each part holds."""

GREYS = 16
"""The original has 17 grey values, 0 … 16, and the model takes them divided by 16."""


def write_images(arrays: Path, folder: Path) -> int:
    """f32[N,1,8,8] in 0 … 1 → <folder>/<label>/<row>.png, or without labels <folder>/<row>.png; returns how many."""
    import numpy as np

    with np.load(arrays) as archive:
        images = archive["x"]
        classes = [str(label) for label in archive["y"]] if "y" in archive.files else [""] * len(images)
    for row, (image, name) in enumerate(zip(images, classes, strict=True)):
        place = folder / name / f"{row:04}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(png(np.rint(image[0] * GREYS) * (255 // GREYS)))
    return len(images)


def png(pixels: NDArray[Any]) -> bytes:
    """Grey pixels [height, width], 0 … 255, as a PNG file."""
    buffer = io.BytesIO()
    require("PIL.Image", "pillow").fromarray(pixels.astype("uint8")).save(buffer, "PNG")
    return buffer.getvalue()


def fetch() -> None:
    for name in PARTS.values():
        if not (ARRAYS / name).is_file():
            raise FetchError(f"{ARRAYS / name} is missing; it comes with the repository")
    counts = {part: write_images(ARRAYS / name, FOLDER / part) for part, name in PARTS.items()}
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": False,
        "do_normalize": False,
        "do_rescale": True,
        "rescale_factor": 1 / (GREYS * (255 // GREYS)),
    }
    write_file(PROCESSOR, json.dumps(settings, indent=1).encode())
    write_file(MADE, json.dumps(counts).encode())


def main() -> int:
    return run_script("digits_images", (PROCESSOR, MADE), fetch)


if __name__ == "__main__":
    raise SystemExit(main())
