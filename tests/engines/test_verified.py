"""What was hashed is what is loaded, whatever happens to the files meanwhile."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engineworks.engines import verified
from engineworks.engines.backends import onnxruntime
from engineworks.engines.engine_session import load_engine
from engineworks.engines.verified import private_copy, verified_engine
from engineworks.errors import RunError, TrustError
from engineworks.host.file_digests import digest_file
from engineworks.tensors import TensorSpec
from tests.typed_reports import write_sidecar

TARGET = {"backend": "onnxruntime", "compute_capability": [], "options": {}}
FEEDS = {"x": np.full((1, 4), 0.25, np.float32)}


def engine(folder: Path, answer: float, *, external: bool = False) -> Path:
    """An artifact with an engine whose output is `answer`."""
    folder.mkdir()
    weights = numpy_helper.from_array(np.full((4, 4), answer, np.float32), "w")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [ends[0]], [ends[1]], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, folder / "engine", save_as_external_data=external, location="engine.data", size_threshold=0)
    x, y = (TensorSpec(n, "float32", (1, 4)) for n in ("x", "y"))
    write_sidecar(folder, inputs=(x,), outputs=(y,))
    state(folder)
    return folder


def state(folder: Path) -> None:
    """Write the manifest of what is in the folder."""
    files = {
        f.name: {"sha256": digest_file(f), "bytes": f.stat().st_size}
        for f in folder.iterdir()
        if f.name != "manifest.json"
    }
    manifest = {"key": "", "step": "t/build", "document": {}, "seconds": 0.0, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("where", ["memory", "an unlinked file"])
@pytest.mark.parametrize("external", [False, True], ids=["one file", "external data"])
def test_files_that_change_between_verifying_and_loading_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool, where: str
) -> None:
    good, evil = (
        engine(tmp_path / name, answer, external=external) for name, answer in (("good", 1.0), ("evil", -1.0))
    )
    if where != "memory":
        monkeypatch.setattr(verified, "SEALED_BYTES", 0)
    load, seen = onnxruntime.load, []

    def late(path: Path, *arguments: Any, **options: Any) -> Any:
        for file in evil.iterdir():
            os.replace(file, good / file.name)
        seen.append(path)
        return load(path, *arguments, **options)

    monkeypatch.setattr(onnxruntime, "load", late)
    session = load_engine(good, TARGET)
    np.testing.assert_allclose(session.run(FEEDS)["y"], 1.0)
    assert not seen[0].exists()  # the copy is gone
    np.testing.assert_allclose(load(good / "engine", {}).run(FEEDS)["y"], -1.0)


def test_a_copy_in_memory_can_not_be_written(tmp_path: Path) -> None:
    with verified_engine(engine(tmp_path / "engine", 1.0)) as copied:
        assert copied.path.read_bytes() == (tmp_path / "engine" / "engine").read_bytes()
        with pytest.raises(PermissionError), copied.path.open("r+b") as file:
            file.write(b"x")
            file.flush()


@pytest.mark.parametrize("name", ["engine", "engine.data", "engine.json"])
def test_an_altered_file_is_never_loaded(tmp_path: Path, name: str) -> None:
    folder = engine(tmp_path / "engine", 1.0, external=True)
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    with pytest.raises(TrustError, match=rf"{name}: was altered: its sha256 is .{{12}}…, what was recorded"):
        load_engine(folder, TARGET)


def test_a_missing_file_a_pipe_and_a_link_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    folder = engine(tmp_path / "engine", 1.0, external=True)
    weights = folder / "engine.data"
    weights.rename(tmp_path / "engine.data")
    with pytest.raises(TrustError, match=r"engine\.data: cannot be read: No such file"):
        load_engine(folder, TARGET)
    os.mkfifo(weights)
    with pytest.raises(TrustError, match=r"engine\.data: cannot be read: is .*, not a regular file"):
        load_engine(folder, TARGET)
    weights.unlink()
    weights.symlink_to(tmp_path / "engine.data")
    with pytest.raises(TrustError, match=r"'engine\.data' leaves the folder"):
        load_engine(folder, TARGET)
    weights.unlink()
    weights.symlink_to(weights)  # Python 3.13 resolves a loop to itself, and reading it then fails
    with pytest.raises(
        TrustError, match=r"'engine\.data' leaves the folder|engine\.data: cannot be read: Too many levels"
    ):
        load_engine(folder, TARGET)


def test_a_main_file_that_nothing_vouches_for_is_refused(tmp_path: Path) -> None:
    folder = engine(tmp_path / "engine", 1.0)
    write_sidecar(folder, engine="manifest.json")
    state(folder)
    with pytest.raises(TrustError, match=r"'manifest\.json', the engine's main file, is not among its files"):
        load_engine(folder, TARGET)


def test_errors_name_the_file_and_not_its_copy(tmp_path: Path) -> None:
    folder = engine(tmp_path / "engine", 1.0)
    (folder / "engine").write_bytes(b"no model")
    state(folder)
    with pytest.raises(RunError) as caught:
        load_engine(folder, TARGET)
    assert str(caught.value).startswith(f"{folder / 'engine'}: ONNX Runtime ")
    assert "/proc/self" not in f"{caught.value} {caught.value.log}"


def test_a_copy_for_which_there_is_no_space_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "engine"
    file.write_bytes(b"bytes")
    monkeypatch.setattr(verified, "SEALED_BYTES", 0)
    monkeypatch.setattr(verified, "TemporaryFile", lambda **_: open("/dev/full", "r+b", 0))  # noqa: PTH123
    with (
        pytest.raises(RunError, match="cannot be copied to be verified: No space left on device; let TMPDIR name"),
        private_copy({"engine": (file, digest_file(file))}, "engine", "the test"),
    ):
        pass
