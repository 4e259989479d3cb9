"""Folders of images: which files, which classes; every slip told before an image is opened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engineworks.errors import SamplesError
from engineworks.recipe.datasets.pictures import PROCESSOR_FILE, image_names, plan_images
from engineworks.recipe.samples import SampleFile
from engineworks.tensors import TensorSpec

SPECS = (TensorSpec("pixel_values", "float32", ("batch", 3, 8, 8)),)


def folder(path: Path, *names: str) -> Path:
    for name in (*names, "notes.txt", ".hidden/x.png"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"")
    (path / PROCESSOR_FILE).write_text("{}")
    return path


def planned(path: Path, labels: str | None = None, samples: int | None = None) -> SampleFile:
    file = path / labels if labels not in (None, "folder") else None
    return plan_images(path, SPECS, processor=path, model=path, labels=labels, label_file=file, samples=samples)


def numbers(found: SampleFile) -> object:
    assert found.preparation is not None
    return found.preparation.params["numbers"]


def test_images_are_found_in_order_and_nothing_else(tmp_path: Path) -> None:
    made = folder(tmp_path, "b/2.PNG", "a/1.jpg", "a/deep/3.webp")
    assert image_names(made) == ["a/1.jpg", "a/deep/3.webp", "b/2.PNG"]


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SamplesError, match=r"the name of b'b/\\xff.png' is not UTF-8; rename it"):
        image_names(folder(tmp_path, "a/1.jpg", "b/\udcff.png"))


def test_classes_are_folders_in_the_order_of_their_names(tmp_path: Path) -> None:
    assert numbers(planned(folder(tmp_path, "dog/1.png", "cat/1.png"), "folder")) == {"cat": 0, "dog": 1}


def test_the_models_own_classes_come_first(tmp_path: Path) -> None:
    made = folder(tmp_path, "dog/1.png", "cat/1.png")
    (made / "config.json").write_text(json.dumps({"label2id": {"dog": 0, "cat": 1, "cow": 2}}))
    assert numbers(planned(made, "folder")) == {"dog": 0, "cat": 1, "cow": 2}


def test_folders_named_by_numbers_mean_these(tmp_path: Path) -> None:
    assert numbers(planned(folder(tmp_path, "10/1.png", "2/1.png"), "folder")) == {}


def test_only_the_images_that_are_used_shape_the_key(tmp_path: Path) -> None:
    found = planned(folder(tmp_path, *(f"{i}.png" for i in range(6))), samples=3)
    assert found.preparation is not None
    assert list(found.preparation.tree) == ["0.png", "2.png", "4.png"]


@pytest.mark.parametrize(
    ("names", "labels", "said"),
    [
        (
            ["a/1.png", "2.png"],
            "folder",
            "'2.png' lies in no class's folder; one folder per class, or labels: FILE.csv",
        ),
        (["1.png"], "labels.csv", "labels.csv: has no row for '1.png'; did you mean '11.png'?"),
        ([], None, "holds no samples"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, names: list[str], labels: str | None, said: str) -> None:
    (tmp_path / "labels.csv").write_text("file,label\n11.png,0\n")
    with pytest.raises(SamplesError) as caught:
        planned(folder(tmp_path, *names), labels)
    assert said in str(caught.value)


def test_a_folder_without_a_processor_is_told(tmp_path: Path) -> None:
    (folder(tmp_path, "1.png") / PROCESSOR_FILE).unlink()
    with pytest.raises(SamplesError, match=r"holds no preprocessor_config\.json"):
        planned(tmp_path)


def test_slices_of_images_are_folders_or_a_column_of_the_labels(tmp_path: Path) -> None:
    path = folder(tmp_path, "a/1.png")
    (tmp_path / "labels.csv").write_text("file,label,camera\na/1.png,0,left\n")
    files = {"processor": path, "model": path, "samples": None}
    for slices, labels, file in (("folder", None, None), ("camera", "labels.csv", tmp_path / "labels.csv")):
        found = plan_images(path, SPECS, labels=labels, label_file=file, slices=slices, **files)  # type: ignore[arg-type]
        assert found.slices == "slices"
        assert found.preparation is not None
        assert found.preparation.params["slices"] == slices
    for labels, file in ((None, None), ("labels.csv", tmp_path / "labels.csv")):
        with pytest.raises(SamplesError, match="has no column 'lens' with slices"):
            plan_images(path, SPECS, labels=labels, label_file=file, slices="lens", **files)  # type: ignore[arg-type]
