"""Inputs of `bert-mini.yaml` and `resnet50.yaml`, made from a seed: no network is needed.

Their models have random weights, so there is nothing to be right about: the samples only have to tell engine and
reference apart. The tokens are small enough for git and lie under recipes/data; the images are made here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from packages import FETCHED, run_script, write_arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEED = 20261121
DATA = FETCHED.parent / "data"
TOKENS = DATA / "bert_mini_test.npz"
TOKENS_CALIBRATION = DATA / "bert_mini_calib.npz"
IMAGES = FETCHED / "resnet50_test.npz"
OUTPUTS = (TOKENS, TOKENS_CALIBRATION, IMAGES)
VOCABULARY, SEQUENCE = 30522, 128
IMAGE_COUNT, SIDE, GRID = 64, 224, 7


def tokens(count: int, seed: int) -> dict[str, NDArray[Any]]:
    """int64[count, 128] each: random ids, padded after a random length, the second half of each text of type 1."""
    import numpy as np

    random = np.random.default_rng(seed)
    lengths = random.integers(8, SEQUENCE + 1, (count, 1))
    place = np.arange(SEQUENCE)[None]
    mask = place < lengths
    ids = np.where(mask, random.integers(1000, VOCABULARY, (count, SEQUENCE)), 0)
    ids[:, 0] = 101  # [CLS]
    types = mask & (place >= lengths // 2)
    return {
        "input_ids": ids.astype(np.int64),
        "attention_mask": mask.astype(np.int64),
        "token_type_ids": types.astype(np.int64),
    }


def images(count: int, seed: int) -> dict[str, NDArray[Any]]:
    """image f32[count, 3, 224, 224]: smooth blobs (a 7 × 7 grid, enlarged bilinearly) and a little noise, about as
    bright as normalized photographs. Plain noise would look the same to the model in every image."""
    import numpy as np

    random = np.random.default_rng(seed)
    grid = random.standard_normal((count, 3, GRID, GRID)).astype(np.float32)
    at = np.linspace(0, GRID - 1, SIDE)
    low = np.minimum(at.astype(int), GRID - 2)
    enlarge = np.zeros((SIDE, GRID), np.float32)
    enlarge[np.arange(SIDE), low] = 1 - (at - low)
    enlarge[np.arange(SIDE), low + 1] = at - low
    smooth = enlarge @ grid @ enlarge.T
    return {"image": (1.5 * smooth + 0.1 * random.standard_normal(smooth.shape, np.float32)).astype(np.float32)}


def make() -> None:
    write_arrays(TOKENS, tokens(256, SEED))
    write_arrays(TOKENS_CALIBRATION, tokens(64, SEED + 1))
    write_arrays(IMAGES, images(IMAGE_COUNT, SEED + 2))


def main() -> int:
    return run_script("speed", OUTPUTS, make)


if __name__ == "__main__":
    raise SystemExit(main())
