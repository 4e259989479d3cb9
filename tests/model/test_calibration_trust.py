"""What makes ranges doubtful is said; ranges of another model or of other data are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import tiny_model

from engineworks.errors import ModelError, SamplesError
from engineworks.model.calibrate.inputs import InputStatistics
from engineworks.model.calibrate.ranges import Range, Ranges
from engineworks.model.calibrate.trust import check_pairing, digest_model, summary, warnings

FINE = Range(1.0, -1.0, 1.0, 0.001, 1000, 0.1, 0.99)
PIXELS = InputStatistics("float32", 64, 0.0, 1.0, 0.5, 0.2, 0, (0.0, 1.0))


def ranges(*seen: Range, samples: int = 64) -> Ranges:
    return Ranges("entropy", samples, {f"t{at}": one for at, one in enumerate(seen)})


def test_a_sound_calibration_is_not_warned_of() -> None:
    assert warnings(ranges(FINE, FINE), {"x": PIXELS}, repeated=False) == ()


def test_a_constant_input_is_said_by_name() -> None:
    black = InputStatistics("float32", 64, 0.0, 0.0, 0.0, 0.0, 0, (0.0,))
    types = InputStatistics("int64", 64, 0, 0, 0.0, 0.0, 0, (0.0,))
    found = warnings(ranges(FINE), {"x": black, "y": PIXELS, "types": types}, repeated=False)
    assert found == ("calibration input 'x' is 0 in every sample",)


@pytest.mark.parametrize(("samples", "warned"), [(1, True), (31, True), (32, False)])
def test_far_too_few_samples_are_said(samples: int, warned: bool) -> None:
    found = warnings(ranges(FINE, samples=samples), {"x": PIXELS}, repeated=False)
    assert bool(found) == warned
    assert all("far too few" in sentence for sentence in found)


def test_samples_that_are_all_the_same_are_said() -> None:
    assert warnings(ranges(FINE), {"x": PIXELS}, repeated=True) == ("all 64 calibration samples are the same",)


def test_ranges_that_still_move_are_said_with_the_worst_of_them() -> None:
    moved, worse = Range(2.0, -2.0, 2.0, 0.0, 1000, 0.0, 1.5), Range(2.0, -2.0, 2.0, 0.0, 1000, 0.0, 0.5)
    (sentence,) = warnings(ranges(FINE, moved, worse), {"x": PIXELS}, repeated=False)
    assert "2 of 3 calibration ranges still moved by more than 10%" in sentence
    assert "'t2' by 75%" in sentence
    assert not warnings(ranges(*[FINE] * 18, moved, worse), {"x": PIXELS}, repeated=False)


def test_the_figures_name_the_tensors_that_they_are_worst_in() -> None:
    clipped = Range(1.0, -3.0, 3.0, 0.02, 1000, 0.5, 1.0)
    found = summary(ranges(FINE, clipped))
    assert found["saturated"] == {"mean": pytest.approx(0.0105), "largest": {"t1": 0.02, "t0": 0.001}}
    assert found["unused"] == {"mean": pytest.approx(0.3), "largest": {"t1": 0.5, "t0": 0.1}}


def save(folder: Path, seed: int = 0, *, beside: bool = False) -> Path:
    folder.mkdir()
    onnx.save(
        tiny_model(seed),
        folder / "model.onnx",
        save_as_external_data=beside,
        location="model.onnx.data",
        size_threshold=0,
    )
    return folder / "model.onnx"


def test_a_models_digest_changes_with_its_weights_wherever_they_are(tmp_path: Path) -> None:
    inside, other = save(tmp_path / "a"), save(tmp_path / "b", seed=1)
    assert digest_model(inside) == digest_model(save(tmp_path / "c"))
    assert digest_model(inside) != digest_model(other)
    beside = save(tmp_path / "d", beside=True)
    before = digest_model(beside)
    data = np.fromfile(beside.with_name("model.onnx.data"), np.uint8)
    data[7] ^= 1
    data.tofile(beside.with_name("model.onnx.data"))
    assert digest_model(beside) != before


def test_ranges_of_the_model_and_data_in_use_are_taken() -> None:
    check_pairing({"model": "m" * 64, "data": {"sha256": "d" * 64}}, model="m" * 64, data="d" * 64)
    check_pairing({"model": "m" * 64}, model="m" * 64)


@pytest.mark.parametrize(
    ("stored", "said"), [({"model": "0" * 64}, "made of another model"), ({}, "made of a model that they do not name")]
)
def test_ranges_of_another_model_are_refused(stored: dict[str, str], said: str) -> None:
    with pytest.raises(ModelError, match=f"{said}.*not of the one in use.*calibrate again") as error:
        check_pairing(stored, model="m" * 64)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("data", "said"), [({"sha256": "0" * 64}, "made of other data"), (None, "made of data that they do not name")]
)
def test_ranges_of_other_data_are_refused(data: dict[str, str] | None, said: str) -> None:
    with pytest.raises(SamplesError, match=f"{said}.*not of the calibration data in use"):
        check_pairing({"model": "m", "data": data}, model="m", data="d" * 64)
