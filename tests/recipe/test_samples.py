"""Samples: the right rows, in the model's own layout, without holding the file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engineworks.errors import SamplesError
from engineworks.recipe.batch import batch_dim, batch_sizes, fixed_batch, output_axes, samples_per_run
from engineworks.recipe.npz import read_headers
from engineworks.recipe.samples import feeds_at, open_samples, samples_from_json
from engineworks.tensors import TensorSpec

IMAGE = TensorSpec("image", "float32", ("batch", 2))
CACHE = TensorSpec("cache", "float32", (4, "batch", "past"))


def write(path: Path, compressed: bool = False, **arrays: np.ndarray) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_batches_go_round_the_sizes_and_lose_no_row(tmp_path: Path, compressed: bool, order: str) -> None:
    rows = np.asarray(np.arange(22, dtype=np.float32).reshape(11, 2), order=order)  # type: ignore[call-overload]
    samples = open_samples(write(tmp_path / "a.npz", compressed, image=rows), [IMAGE], {}, samples=None, labels=None)
    batches = [b["image"] for b in samples.batches([1, 4])]
    assert [len(b) for b in batches] == [1, 4, 1, 4, 1]
    assert np.array_equal(np.concatenate(batches), rows)


@pytest.mark.parametrize(
    ("count", "sizes", "expected"),
    [
        (11, [1, 4], [1, 4, 1, 4, 1]),
        (30, [4, 8, 16], [4, 8, 14, 4]),  # 4, 8, 16 would leave 2
        (18, [4, 16], [4, 14]),
        (17, [16, 4], [13, 4]),
        (9, [4, 8], [4, 5]),
        (13, [6, 8], [6, 7]),
        (15, [8, 5], [8, 7]),
        (10, [8], [8, 2]),  # refused by `validate`, as the next
        (3, [4, 8], [3]),
    ],
)
def test_no_batch_is_smaller_than_the_least_that_an_engine_takes(
    count: int, sizes: list[int], expected: list[int]
) -> None:
    assert list(batch_sizes(count, sizes)) == expected


def test_fewer_samples_are_spread_evenly_over_a_sorted_file(tmp_path: Path) -> None:
    rows = np.arange(20, dtype=np.float32).reshape(10, 2)
    labels = np.arange(10)
    path = write(tmp_path / "a.npz", image=rows, y=labels)
    samples = open_samples(path, [IMAGE], {}, samples=5, labels="y")
    assert list(samples.rows) == [0, 2, 4, 6, 8]
    assert replace(samples, total=10**15, count=10**15).rows[-1] == 10**15 - 1  # without memory for each
    found = samples.read_labels()
    assert found is not None
    assert found.tolist() == [0, 2, 4, 6, 8]
    assert np.array_equal(next(samples.batches([5]))["image"], rows[::2])


def test_rows_are_stacked_where_the_model_has_its_batch(tmp_path: Path) -> None:
    images, caches = np.zeros((6, 2), np.float32), np.arange(6 * 4 * 3, dtype=np.float32).reshape(6, 4, 3)
    path = write(tmp_path / "a.npz", image=images, cache=caches)
    samples = open_samples(path, [IMAGE, CACHE], {}, samples=None, labels=None)
    first = next(samples.batches([2]))["cache"]
    assert first.shape == (4, 2, 3)
    assert np.array_equal(first[:, 1], caches[1])


def test_the_dimension_called_batch_is_it_whatever_stands_before_it(tmp_path: Path) -> None:
    sequence = TensorSpec("x", "float32", ("time", "batch", 5))
    values = np.arange(6 * 7 * 5, dtype=np.float32).reshape(6, 7, 5)
    samples = open_samples(write(tmp_path / "a.npz", x=values), [sequence], {}, samples=None, labels=None)
    first = next(samples.batches([4]))["x"]
    assert first.shape == (7, 4, 5)
    assert np.array_equal(first[:, 2], values[2])
    assert samples_per_run([sequence], {"time": 7, "batch": 3}) == 3
    assert feeds_at((sequence,), samples, {"time": 7, "batch": 3})["x"].shape == (7, 3, 5)
    outputs = [TensorSpec("y", "float32", ("batch", "time", 4)), TensorSpec("h", "float32", (1, "batch", 4))]
    assert output_axes([sequence], outputs) == {"y": 0, "h": 1}
    assert batch_dim([TensorSpec("x", "float32", ("n", "time"))]) == "n"


def test_an_input_without_a_batch_is_fed_sample_by_sample(tmp_path: Path) -> None:
    specs = [IMAGE, TensorSpec("scale", "float32", (3,))]
    path = write(tmp_path / "a.npz", image=np.zeros((2, 2), np.float32), scale=np.ones((2, 3), np.float32))
    assert fixed_batch(specs) == 1
    first = next(open_samples(path, specs, {}, samples=None, labels=None).batches([1]))
    assert first["scale"].shape == (3,)
    assert first["image"].shape == (1, 2)


def test_a_model_of_one_batch_size_gets_no_other(tmp_path: Path) -> None:
    spec = TensorSpec("image", "float32", (4, 2))
    assert fixed_batch([spec]) == 4
    path = write(tmp_path / "a.npz", image=np.zeros((10, 2), np.float32))
    with pytest.raises(SamplesError, match="10 samples, and the model takes 4 at a time"):
        open_samples(path, [spec], {}, samples=None, labels=None)
    samples = open_samples(path, [spec], {}, samples=8, labels=None)
    assert [len(b["image"]) for b in samples.batches([4])] == [4, 4]


def test_a_scalar_input_stays_a_scalar(tmp_path: Path) -> None:
    specs = [IMAGE, TensorSpec("rate", "int64", ())]
    path = write(tmp_path / "a.npz", image=np.zeros((2, 2), np.float32), rate=np.array([8000, 16000]))
    feeds = list(open_samples(path, specs, {}, samples=None, labels=None).batches([1]))
    assert [f["rate"].shape for f in feeds] == [(), ()]
    assert [int(f["rate"]) for f in feeds] == [8000, 16000]


def test_a_fixed_batch_that_is_not_axis_0_everywhere_makes_a_sample_one_whole_run(tmp_path: Path) -> None:
    specs = [TensorSpec("sound", "float32", (4, 3)), TensorSpec("state", "float32", (2, 4, 5))]
    sound, state = np.zeros((6, 4, 3), np.float32), np.zeros((6, 2, 4, 5), np.float32)
    path = write(tmp_path / "a.npz", sound=sound, state=state)
    first = next(open_samples(path, specs, {}, samples=None, labels=None).batches([1]))
    assert {name: array.shape for name, array in first.items()} == {"sound": (4, 3), "state": (2, 4, 5)}
    assert samples_per_run(specs, {}) == 1


def test_a_run_of_a_fixed_batch_counts_all_of_its_samples() -> None:
    assert samples_per_run([TensorSpec("image", "float32", (4, 2))], {}) == 4
    assert samples_per_run([IMAGE], {"batch": 8}) == 8
    assert samples_per_run([TensorSpec("image", "float32", (1, 2))], {}) == 1


def test_names_map_inputs_to_arrays(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", x=np.zeros((2, 2), np.float32))
    assert open_samples(path, [IMAGE], {"image": "x"}, samples=None, labels=None).arrays == {"image": "x"}


def test_what_a_plan_keeps_is_enough_to_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", image=np.ones((3, 2), np.float32))
    value = {"arrays": {"image": "image"}, "count": 3, "total": 3, "specs": [IMAGE.to_json()]}
    assert len(next(samples_from_json(path, value).batches([3]))["image"]) == 3


def test_inputs_with_different_counts_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", image=np.zeros((3, 2), np.float32), cache=np.zeros((2, 4, 3), np.float32))
    with pytest.raises(SamplesError, match="'cache' has 2 samples, 'image' has 3"):
        open_samples(path, [IMAGE, CACHE], {}, samples=None, labels=None)


def test_no_samples_at_all_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", image=np.zeros((0, 2), np.float32))
    with pytest.raises(SamplesError, match="holds no samples"):
        open_samples(path, [IMAGE], {}, samples=None, labels=None)


def test_headers_are_read_without_the_contents(tmp_path: Path) -> None:
    headers = read_headers(write(tmp_path / "a.npz", a=np.zeros((3, 2), np.int64), b=np.zeros((), np.float16)))
    assert (headers["a"].dtype, headers["a"].shape) == ("int64", (3, 2))
    assert headers["b"].shape == ()


LINE = TensorSpec("line", "float32", ("batch", "width"))


def lines(folder: Path, *sizes: tuple[int, int]) -> list[Path]:
    """One file for each (count, width); values count on from file to file, labels have the rows' width."""
    found, start = [], 0
    for count, width in sizes:
        line = np.arange(start, start + count * width, dtype=np.float32).reshape(count, width)
        found.append(write(folder / f"{len(found)}.npz", line=line, y=line.astype(np.uint8) % 7))
        start += count * width
    return found


def test_no_batch_has_samples_of_two_files(tmp_path: Path) -> None:
    files = lines(tmp_path, (5, 3), (4, 8), (1, 2))
    samples = open_samples(files, [LINE], {}, samples=None, labels=None)
    shapes = [b["line"].shape for b in samples.batches([1, 3])]
    assert shapes == [(1, 3), (3, 3), (1, 3), (3, 8), (1, 8), (1, 2)]
    assert list(samples.rows) == list(range(10))
    values = np.concatenate([b["line"].reshape(-1) for b in samples.batches([2])])
    assert np.array_equal(values, np.arange(5 * 3 + 4 * 8 + 2, dtype=np.float32))


@pytest.mark.parametrize("count", range(1, 11))
def test_fewer_samples_take_of_every_file_its_share(tmp_path: Path, count: int) -> None:
    samples = open_samples(lines(tmp_path, (6, 3), (3, 8), (1, 2)), [LINE], {}, samples=count, labels=None)
    assert sum(samples.counts) == count
    assert all(abs(used - count * held / 10) < 1 for used, held in zip(samples.counts, (6, 3, 1), strict=True))
    assert sum(len(b["line"]) for b in samples.batches([4])) == count


def test_labels_go_with_their_samples_and_shorter_ones_are_filled_with_what_metrics_leave_out(tmp_path: Path) -> None:
    samples = open_samples(lines(tmp_path, (4, 2), (4, 5)), [LINE], {}, samples=4, labels="y")
    parts, labels = samples.label_parts(), samples.read_labels()
    assert parts is not None
    assert labels is not None
    fed = [b["line"] for b in samples.batches([2])]
    for part, lines_ in zip(parts, fed, strict=True):
        assert np.array_equal(part, lines_ % 7)
    assert labels[:2].tolist() == [[*row, -100, -100, -100] for row in parts[0].tolist()]
    assert np.array_equal(labels[2:], parts[1])


def test_a_model_of_one_batch_size_gets_whole_batches_of_every_file(tmp_path: Path) -> None:
    fixed = TensorSpec("line", "float32", (2, "width"))
    files = lines(tmp_path, (6, 3), (2, 8))
    samples = open_samples(files, [fixed], {}, samples=4, labels=None)
    assert samples.counts == (4, 0)
    whole = open_samples(files, [fixed], {}, samples=None, labels=None)
    assert [b["line"].shape for b in whole.batches([2])] == [(2, 3), (2, 3), (2, 3), (2, 8)]
    with pytest.raises(SamplesError, match=r"0\.npz: 5 samples, and the model takes 2 at a time, all of one file"):
        open_samples(lines(tmp_path, (5, 3), (3, 8)), [fixed], {}, samples=None, labels=None)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"other": np.zeros((2, 4), np.float32)}, "1.npz: holds no array 'line' for input 'line'"),
        ({"line": np.zeros((2, 4), np.float64), "y": np.zeros((2, 4), np.uint8)}, "1.npz: 'line' is float64"),
        ({"line": np.zeros((2, 4), np.float32)}, "1.npz: holds no array 'y' with the labels"),
        ({"line": np.zeros((2, 4), np.float32), "y": np.zeros(2, np.uint8)}, "1.npz: 'y' is uint8 [2], in 0.npz uint8 [3, 3]"),
    ],
)  # fmt: skip
def test_every_file_must_fit(tmp_path: Path, second: dict[str, np.ndarray], message: str) -> None:
    (first,) = lines(tmp_path, (3, 3))
    with pytest.raises(SamplesError, match=re.escape(message)):
        open_samples([first, write(tmp_path / "1.npz", **second)], [LINE], {}, samples=None, labels="y")


def test_what_a_plan_keeps_of_several_files_is_enough_to_read_again(tmp_path: Path) -> None:
    from engineworks.plan.documents import _samples

    samples = open_samples(lines(tmp_path, (5, 3), (4, 8)), [LINE], {}, samples=6, labels=None)
    again = samples_from_json([str(p) for p in samples.paths], _samples(samples))
    for one, other in zip(samples.batches([1, 2]), again.batches([1, 2]), strict=True):
        assert np.array_equal(one["line"], other["line"])
