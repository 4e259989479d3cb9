"""PP-OCRv4 text recognition (Apache-2.0, from rapidocr-onnxruntime) and its lines of text for `ocr-recognition.yaml`.

The lines are drawn: words, times and prices in several sizes on patches of photographs, slightly turned, blurred and
noisy, so the label is the text itself. A label is the line's characters as indices into the model's own alphabet,
filled up with 0, the blank of "Connectionist Temporal Classification" (Graves et al. 2006). Needs numpy, onnx, pillow.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ocr_detection import PHOTOS, WORDS
from packages import FETCHED, Wheel, read_wheel, require, run_script, write_arrays, write_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MODEL_NAME = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
MODEL = Wheel(
    "rapidocr-onnxruntime", "1.4.4", {MODEL_NAME: "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b"}
)
SIZE = (320, 48)
"""Width and height that the network was trained on; narrower lines are filled up with grey."""

MEAN, DEVIATION = 0.5, 0.5
LONGEST = 40
"""Characters of the longest label."""

EVALUATION_LINES, CALIBRATION_LINES = 160, 64
MORE_WORDS = ("Berlin", "zwölf", "Room", "fee", "EUR", "kg", "Gate", "B12", "22/11/2026", "08:05", "A-113", "(new)")
MODEL_FILE = FETCHED / "ocr_recognition.onnx"
EVALUATION, CALIBRATION = FETCHED / "ocr_recognition_test.npz", FETCHED / "ocr_recognition_calib.npz"
OUTPUTS = (MODEL_FILE, EVALUATION, CALIBRATION)


def alphabet(model: bytes) -> list[str]:
    """What each class of the model stands for: nothing, the characters that its metadata lists, a space."""
    onnx = require("onnx", "onnx")
    loaded = onnx.load_model_from_string(model)
    listed = next(p.value for p in loaded.metadata_props if p.key == "character")
    return ["", *listed.splitlines(), " "]


def encode(text: str, letters: Sequence[str]) -> NDArray[np.int64]:
    """The text as indices into the alphabet, filled up with 0."""
    import numpy as np

    found = [letters.index(character) for character in text]
    return np.array(found + [0] * (LONGEST - len(found)), np.int64)


def preprocess(image: NDArray[Any]) -> NDArray[np.float32]:
    """uint8[48,W,3] in RGB → f32[3,48,320] in BGR, (v / 255 - mean) / deviation, 0 where there is no image."""
    import numpy as np

    ready = np.zeros((3, SIZE[1], SIZE[0]), np.float32)
    scaled = (image[:, : SIZE[0], ::-1].astype(np.float32) / 255 - MEAN) / DEVIATION
    ready[:, :, : scaled.shape[1]] = scaled.transpose(2, 0, 1)
    return ready


def draw_samples(photos: Mapping[str, bytes], letters: Sequence[str], count: int, seed: int) -> dict[str, NDArray[Any]]:
    """x: f32[count,3,48,320]; text: int64[count,40], indices of the characters."""
    import numpy as np

    draw = np.random.default_rng(seed)
    names = sorted(n for n in photos if not n.endswith("page.png"))
    words = [w for w in (*WORDS, *MORE_WORDS) if all(character in letters for character in w)]
    images, labels = [], []
    while len(images) < count:
        text = " ".join(draw.choice(words, size=int(draw.integers(1, 4)), replace=False))
        image = _line(photos[names[len(images) % len(names)]], text, draw)
        if image is not None:
            images.append(preprocess(image))
            labels.append(encode(text, letters))
    return {"x": np.stack(images), "text": np.stack(labels)}


def _line(photo: bytes, text: str, draw: np.random.Generator) -> NDArray[np.uint8] | None:
    """The text on a patch of the photograph, 48 pixels high; None if it is wider than the network takes."""
    import numpy as np

    image_module, fonts = require("PIL.Image", "pillow"), require("PIL.ImageFont", "pillow")
    font = fonts.load_default(int(draw.integers(20, 33)))
    left, top, right, bottom = font.getbbox(text)
    width = int(right - left) + int(draw.integers(8, 20))
    if width > SIZE[0] or len(text) > LONGEST:
        return None
    source = image_module.open(io.BytesIO(photo)).convert("RGB")
    x, y = (int(draw.integers(0, have - want)) for have, want in zip(source.size, (width, SIZE[1]), strict=True))
    image = source.crop((x, y, x + width, y + SIZE[1]))
    image = image_module.blend(image, image_module.new("RGB", image.size, tuple(draw.integers(0, 256, 3))), 0.6)
    behind = float(np.asarray(image).mean())
    shade = int(draw.integers(0, 60)) if behind > 127 else int(draw.integers(195, 256))
    layer = image_module.new("L", image.size, 0)
    place = ((width - (right - left)) / 2 - left, (SIZE[1] - (bottom - top)) / 2 - top)
    require("PIL.ImageDraw", "pillow").Draw(layer).text(place, text, font=font, fill=255)
    layer = layer.rotate(float(draw.uniform(-1.5, 1.5)), image_module.Resampling.BILINEAR)
    image.paste((shade, shade, shade), mask=layer)
    image = image.filter(require("PIL.ImageFilter", "pillow").GaussianBlur(float(draw.uniform(0, 1.0))))
    noisy = np.asarray(image, np.float32) + draw.normal(0, float(draw.uniform(0, 10)), (SIZE[1], width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def fetch() -> None:
    require("PIL.ImageFont", "pillow")
    model = read_wheel(MODEL)[MODEL_NAME]
    letters = alphabet(model)
    photos = read_wheel(PHOTOS)
    write_arrays(EVALUATION, draw_samples(photos, letters, EVALUATION_LINES, seed=1))
    write_arrays(CALIBRATION, {"x": draw_samples(photos, letters, CALIBRATION_LINES, seed=2)["x"]})
    write_file(MODEL_FILE, model)


def main() -> int:
    return run_script("ocr-recognition", OUTPUTS, fetch)


if __name__ == "__main__":
    raise SystemExit(main())
