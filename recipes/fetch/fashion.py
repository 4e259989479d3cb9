"""Fashion-MNIST for `fashion.yaml`, from Debian's package dataset-fashion-mnist (MIT licence).

Usage: python recipes/fetch/fashion.py [FOLDER]: FOLDER holds the four original .gz files, where there is no apt-get.
"""

from __future__ import annotations

import gzip
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packages import FETCHED, FetchError, download_deb, run_script, verified, write_arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACKAGE = "dataset-fashion-mnist"
FOLDER_IN_PACKAGE = "usr/share/datasets/fashion-mnist"
SHA256 = {
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
}
MEAN, DEVIATION = 0.2860, 0.3530
"""Of the training pixels / 255. The model was trained on pixels normalized with them: 92.40 % of the test images are
right so, 18.35 % on plain pixels / 255."""

CALIBRATION_IMAGES = 512
OUTPUTS = (FETCHED / "fashion_test.npz", FETCHED / "fashion_calib.npz")


def read_idx(content: bytes) -> NDArray[Any]:
    """An array of bytes in the IDX format of MNIST: 2 zero bytes, type 8, rank, big-endian lengths, values."""
    import numpy as np

    raw = gzip.decompress(content)
    rank = raw[3]
    shape = np.frombuffer(raw, ">u4", count=rank, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def write_samples(folder: Path) -> None:
    """f32[N,1,28,28], normalized, and labels: all test images, and training images evenly spread for calibration."""
    import numpy as np

    read = {name: _read(folder / name, sha256) for name, sha256 in SHA256.items()}
    train = read["train-images-idx3-ubyte.gz"]
    rows = np.arange(CALIBRATION_IMAGES) * len(train) // CALIBRATION_IMAGES
    parts = (
        (OUTPUTS[0], read["t10k-images-idx3-ubyte.gz"], read["t10k-labels-idx1-ubyte.gz"]),
        (OUTPUTS[1], train[rows], read["train-labels-idx1-ubyte.gz"][rows]),
    )
    for path, images, labels in parts:
        pixels = images[:, None].astype(np.float32) / 255
        write_arrays(path, {"x": ((pixels - MEAN) / DEVIATION).astype(np.float32), "y": labels.astype(np.int64)})


def _read(path: Path, sha256: str) -> NDArray[Any]:
    try:
        return read_idx(verified(path.read_bytes(), sha256, path.name))
    except OSError as error:
        raise FetchError(f"{path} cannot be read: {error.strerror}") from None


def fetch(given: Path | None) -> None:
    if given is not None:
        write_samples(given)
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            files = download_deb(PACKAGE, Path(folder))
        except FetchError as error:
            raise FetchError(f"{error}; or give the folder of the four original .gz files as argument") from None
        write_samples(files / FOLDER_IN_PACKAGE)


def main(arguments: Sequence[str]) -> int:
    given = Path(arguments[0]) if arguments else None
    return run_script("fashion", OUTPUTS, lambda: fetch(given))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
