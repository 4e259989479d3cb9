"""A Triton package: what is in it, that it is whole, and that nothing in it was changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from release_keys import trust_mine

from engineworks.cli import run_command
from engineworks.engines.backends import onnxruntime
from engineworks.engines.passport import Passport, read_passport
from engineworks.engines.signing import Trust, read_signer
from engineworks.errors import InputError, RunError, TrustError
from engineworks.package.package import PackagedEngine, verify_package, write_package
from engineworks.package.python_model import padded_sizes
from engineworks.package.triton_engines import open_packaged
from engineworks.package.warmup import write_warm_ups
from engineworks.plan.prepared import stored_evaluation
from engineworks.recipe.package_settings import package_settings
from engineworks.recipe.recipe import DynamicBatching, Triton
from engineworks.tensors import InputRange, Profile


def packaged(built: Any, name: str = "tiny/int8/cpu") -> PackagedEngine:
    engine = built.engine(name)
    return PackagedEngine(engine.path.parent, read_passport(engine.passport, Trust()))


def for_gpu(engine: PackagedEngine, target: str, *capabilities: str, backend: str = "tensorrt") -> PackagedEngine:
    """The engine's passport as that of a GPU type; the bytes are what they are."""
    body = json.loads(engine.passport.source.read_text())
    body["engine"]["id"] = f"tiny/int8/{target}"
    body["engine"]["target"] = {
        "name": target, "backend": backend, "compute_capability": list(capabilities), "options": {},
    }  # fmt: skip
    source = engine.passport.source.parents[4] / f"{target}.json"
    source.write_text(json.dumps(body))
    return PackagedEngine(engine.folder, Passport(body, source))


def config_of(model: Path) -> Any:
    text_format = pytest.importorskip("google.protobuf.text_format")
    messages = pytest.importorskip("tritonclient.grpc.model_config_pb2", exc_type=Exception)
    return text_format.Parse((model / "config.pbtxt").read_text(), messages.ModelConfig())


def test_a_cpu_engine_is_an_onnx_model_with_the_recipes_settings(built: Any, tmp_path: Path) -> None:
    (model,) = write_package(built.plan.loaded, [packaged(built)], tmp_path / "models")
    assert model.name == "tiny-int8-cpu"
    assert (model / "1" / "model.onnx").read_bytes() == built.engine().path.read_bytes()
    config = config_of(model)
    assert config.name == model.name
    assert (config.max_batch_size, config.instance_group[0].count) == (16, 2)
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 16]


def test_a_measured_setting_of_the_batcher_comes_from_the_engines_passport(built: Any) -> None:
    engine = packaged(built)
    triton = Triton(dynamic_batching=DynamicBatching(measured=True), warmup=2)

    def tuned(reports: Any) -> Triton:
        passport = Passport({**engine.passport.body, "reports": reports}, engine.passport.source)
        return PackagedEngine(engine.folder, passport).tuned(triton)

    def served(**point: Any) -> Any:
        made = {"delay_us": 500, "instances": 2, "rate": 9.0, "tries": [], **point}
        return {"serving.json": {"batching": {"points": [made], "recommended": made, "gain": None}}}

    given = Triton(dynamic_batching=DynamicBatching(preferred=(4,)))
    assert engine.tuned(given) is given
    assert tuned({}) == triton  # not served here: no batching
    batching = DynamicBatching(preferred=(8, 16), max_delay_us=500)
    assert tuned(served(preferred=[8, 16])) == Triton(dynamic_batching=batching, instances=2, warmup=2)
    assert tuned(served(preferred=None)) == Triton(instances=2, warmup=2)
    for altered in ({"serving.json": {}}, served(), served(preferred=[0]), served(preferred=None, instances="x")):
        with pytest.raises(TrustError, match="names no setting of the dynamic batcher"):
            tuned(altered)


def test_warm_up_samples_are_rows_of_the_evaluation_data(built: Any, tmp_path: Path) -> None:
    (model,) = write_package(built.plan.loaded, [packaged(built)], tmp_path / "models")
    (warm_up,) = config_of(model).model_warmup
    raw = (model / "warmup" / warm_up.inputs["image"].input_data_file).read_bytes()
    with np.load(built.root / "recipes" / "test.npz") as data:
        np.testing.assert_array_equal(np.frombuffer(raw, np.float32).reshape(1, 4, 4), data["image"][0])


def test_a_cpu_is_warmed_up_at_the_smallest_shape_and_a_gpu_at_every_one(built: Any, tmp_path: Path) -> None:
    settings = replace(
        package_settings(built.plan.loaded), shapes={"bulk": {"batch": 16}, "one": {"batch": 1}, "few": {"batch": 4}}
    )
    samples = stored_evaluation(built.plan.loaded)

    def batches(folder: str, *, on_gpu: bool, most: int = 0) -> list[int]:
        (tmp_path / folder).mkdir()
        takes = InputRange((1, 1, 4, 4), (1, 1, 4, 4), (most, 1, 4, 4))
        within = [Profile("default", {"image": takes})] if most else []
        out = tmp_path / folder
        warm_ups = write_warm_ups(settings, samples, out, settings.specs, on_gpu=on_gpu, padded_within=within)
        return [warm_up.batch for warm_up in warm_ups]

    assert batches("gpu", on_gpu=True) == [16, 1, 4]
    assert batches("padded", on_gpu=True, most=16) == [16, 1, 4, 2, 8]
    assert batches("narrow", on_gpu=True, most=4) == [16, 1, 4, 2]
    assert batches("cpu", on_gpu=False) == [1]


def test_what_triton_loads_gives_the_engines_outputs(built: Any, tmp_path: Path) -> None:
    (model,) = write_package(built.plan.loaded, [packaged(built)], tmp_path / "models")
    feeds = {"image": np.ones((3, 1, 4, 4), np.float32)}
    expected = onnxruntime.load(built.engine().path, {}).run(feeds)["logits"]
    np.testing.assert_array_equal(open_packaged(model).run(feeds)["logits"], expected)


def test_engines_for_several_gpu_types_share_one_directory(built: Any, tmp_path: Path) -> None:
    base = packaged(built)
    engines = [for_gpu(base, "portable", "8.0", "8.6"), for_gpu(base, "a100", "8.0"), base]
    models = write_package(built.plan.loaded, engines, tmp_path / "models")
    assert [m.name for m in models] == ["tiny-int8-cpu", "tiny-int8-tensorrt"]
    config = config_of(models[1])
    assert dict(config.cc_model_filenames) == {"8.0": "a100.plan", "8.6": "portable.plan"}
    assert {p.name for p in (models[1] / "1").iterdir()} == {"a100.plan", "portable.plan", "passports"}
    assert {p.id for p in verify_package(tmp_path / "models", Trust())} == {
        "tiny/int8/cpu", "tiny/int8/a100", "tiny/int8/portable"
    }  # fmt: skip
    with pytest.raises(RunError, match=r"no engine of the package can be run here:\ntiny/int8/a100: "):
        open_packaged(models[1])


def test_a_tensorrt_rtx_engine_comes_with_a_model_for_the_python_backend(built: Any, tmp_path: Path) -> None:
    engine = for_gpu(packaged(built), "rtx40", "8.9", backend="tensorrt_rtx")
    (model,) = write_package(built.plan.loaded, [engine], tmp_path / "models")
    assert config_of(model).backend == "python"
    assert (model / "1" / "model.py").is_file()
    wanted = [line.partition("==")[0] for line in (model / "requirements.txt").read_text().splitlines()]
    assert wanted == ["numpy", "pydantic", "tensorrt-rtx", "cuda-bindings", "nvidia-ml-py"]


ALONE = """
import sys

class Missing:
    @staticmethod
    def find_spec(name, *_):
        if name.split(".")[0] in ("onnx", "mlflow"):
            sys.exit(name + " is imported")

folder = sys.argv[1]
sys.meta_path.insert(0, Missing)
sys.path.insert(0, folder)
import pathlib
import numpy as np
import model
from engineworks.package.triton_engines import open_packaged
open_packaged(pathlib.Path(folder).parent).run({"image": np.ones((1, 1, 4, 4), np.float32)})
print(sys.modules["engineworks"].__file__)
"""


def test_a_server_without_the_backend_runs_the_engine_in_python_without_engineworks(built: Any, tmp_path: Path) -> None:
    (model,) = write_package(built.plan.loaded, [packaged(built)], tmp_path / "models", available=("python",))
    assert config_of(model).backend == "python"
    verify_package(tmp_path / "models", Trust())
    ran = subprocess.run(
        [sys.executable, "-c", ALONE, str(model / "1")], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert ran.stdout.startswith(str(model / "1" / "runtime.zip")), ran.stderr


def test_a_server_that_can_serve_an_engine_in_no_way_is_refused(built: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no backend 'onnxruntime' and not 'python'; it has openvino"):
        write_package(built.plan.loaded, [packaged(built)], tmp_path / "models", available=("openvino",))


def test_packages_of_earlier_versions_keep_their_passports_beside_the_version(built: Any, tmp_path: Path) -> None:
    (model,) = write_package(built.plan.loaded, [packaged(built)], tmp_path / "models")
    (model / "1" / "passports").rename(model / "passports")
    engines = json.loads((model / "passports" / "engines.json").read_text())
    engines["targets"]["cpu"]["passport"] = "passports/cpu.json"
    (model / "passports" / "engines.json").write_text(json.dumps(engines))
    open_packaged(model).close()


class Tensor:
    """As Triton's: arrays go in and out by DLPack."""

    def __init__(self, name: str, array: Any) -> None:
        self.name, self.array = name, array

    def __dlpack__(self, **_: Any) -> Any:
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()

    @staticmethod
    def from_dlpack(name: str, capsule: Any) -> Tensor:
        held = SimpleNamespace(__dlpack__=lambda **_: capsule, __dlpack_device__=lambda: (1, 0))
        return Tensor(name, np.from_dlpack(held))


@pytest.mark.parametrize(("largest", "sizes"), [(1, (1,)), (16, (1, 2, 4, 8, 16)), (20, (1, 2, 4, 8, 16, 20))])
def test_batches_are_padded_to_powers_of_two_and_to_the_largest(largest: int, sizes: tuple[int, ...]) -> None:
    assert padded_sizes(largest) == sizes


def _refuse_above(most: int, feeds: dict[str, Any]) -> None:
    """As an engine whose profiles do not admit a padded batch."""
    if len(feeds["image"]) > most:
        raise RunError("lies outside every profile of the engine")


@pytest.mark.parametrize("kind", ["CPU", "GPU"])
@pytest.mark.parametrize("sizes", [(1,), (3,), (2, 1, 3)], ids=str)
def test_the_python_model_joins_requests_and_gives_each_its_rows(
    built: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...], kind: str
) -> None:
    """With a stand-in for Triton's module, and an engine that runs here. A GPU's batches are padded."""
    from engineworks.package.python_model import TritonPythonModel

    triton = SimpleNamespace(
        get_input_tensor_by_name=lambda request, name: Tensor(name, request[name]),
        Tensor=Tensor,
        TritonError=str,
        InferenceResponse=lambda output_tensors, error=None: SimpleNamespace(tensors=output_tensors, error=error),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    (folder,) = write_package(built.plan.loaded, [packaged(built)], tmp_path / "models")
    outputs = [{"name": "logits", "dims": [3]}]
    kernels = {"runtime_cache": {"string_value": str(tmp_path / "kernels")}}
    config = json.dumps({"max_batch_size": 16, "output": outputs, "parameters": kernels})
    place = {"model_instance_kind": kind, "model_instance_device_id": "1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    model = TritonPythonModel()
    model.initialize({"model_config": config, "model_repository": str(folder), **place})
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ("6" if kind == "GPU" else "4,6")
    run, batches = model._session.run, list[int]()
    monkeypatch.setattr(model._session, "run", lambda feeds: batches.append(len(feeds["image"])) or run(feeds))
    images = np.random.default_rng(0).normal(0, 1, (sum(sizes), 1, 4, 4)).astype(np.float32)
    parts = np.split(images, np.cumsum(sizes)[:-1])
    responses = model.execute([{"image": part} for part in parts])
    expected = onnxruntime.load(built.engine().path, {}).run({"image": images})["logits"]
    got = [response.tensors[0].array for response in responses]
    assert [len(g) for g in got] == list(sizes)
    np.testing.assert_allclose(np.concatenate(got), expected, atol=1e-5)
    assert batches == [{1: 1, 3: 4, 6: 8}[sum(sizes)] if kind == "GPU" else sum(sizes)]
    monkeypatch.setattr(model._session, "run", lambda feeds: _refuse_above(len(images), feeds) or run(feeds))
    unpadded = model.execute([{"image": images}])[0].tensors[0].array
    np.testing.assert_allclose(unpadded, expected, atol=1e-5)
    (wrong,) = model.execute([{"image": images.astype(np.float64)}])
    assert "float64" in wrong.error
    model.finalize()


@pytest.mark.parametrize("file", ["1/model.onnx", "config.pbtxt", "warmup/one-0.raw", "1/passports/cpu.json"])
def test_a_package_of_which_anything_was_altered_is_refused(
    built: Any, tmp_path: Path, alter: Callable[[Path], None], file: str
) -> None:
    (model,) = write_package(built.plan.loaded, [packaged(built)], tmp_path / "models")
    alter(model / file)
    with pytest.raises(TrustError, match=rf"{file}: was altered: its sha256 is .{{12}}…, the package says"):
        verify_package(tmp_path / "models", Trust())


def test_a_file_that_was_added_is_refused(built: Any, tmp_path: Path) -> None:
    (model,) = write_package(built.plan.loaded, [packaged(built)], tmp_path / "models")
    (model / "1" / "model.py").write_text("import os")
    with pytest.raises(TrustError, match=r"1/model\.py: is no part of the package"):
        verify_package(tmp_path / "models", Trust())


def test_an_altered_engine_is_not_loaded_even_where_the_manifest_was_altered_too(
    built: Any, tmp_path: Path, alter: Callable[[Path], None]
) -> None:
    (model,) = write_package(built.plan.loaded, [packaged(built)], tmp_path / "models")
    alter(model / "1" / "model.onnx")
    with pytest.raises(TrustError, match="its passport says"):
        open_packaged(model)


def test_with_trusted_keys_manifest_and_passports_must_be_signed(
    built: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(built.plan.loaded, [packaged(built)], tmp_path / "unsigned")
    trust = trust_mine(tmp_path, monkeypatch)
    with pytest.raises(TrustError, match=r"engineworks-package\.json: is not signed"):
        verify_package(tmp_path / "unsigned", trust)
    with pytest.raises(TrustError, match=r"engines\.json: is not signed"):
        open_packaged(tmp_path / "unsigned" / "tiny-int8-cpu")
    write_package(built.plan.loaded, [packaged(built)], tmp_path / "signed")
    (passport,) = verify_package(tmp_path / "signed", trust)
    assert passport.signed_by in trust.keys
    open_packaged(tmp_path / "signed" / "tiny-int8-cpu").close()


def test_engines_of_one_model_in_place_of_another_are_refused(
    built: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp32's signed files in int8's place, as an attacker without the key can put them."""
    trust = trust_mine(tmp_path, monkeypatch)
    int8, fp32 = "tiny-int8-cpu", "tiny-fp32-cpu"
    write_package(built.plan.loaded, [packaged(built), packaged(built, "tiny/fp32/cpu")], tmp_path / "models")
    place = shutil.copytree(tmp_path / "models" / fp32, tmp_path / "other" / int8)
    with pytest.raises(TrustError, match=r"engines\.json: is of model tiny-fp32-cpu, not of tiny-int8-cpu"):
        open_packaged(place)
    with pytest.raises(TrustError, match=r"is of model tiny-fp32-cpu, not of tiny-int8-cpu"):
        open_packaged(tmp_path / "models" / fp32, int8)  # the model that Triton was asked for
    description = json.loads((tmp_path / "models" / int8 / "1" / "passports" / "engines.json").read_text())
    (place / "1" / "passports" / "engines.json").write_text(json.dumps(description))
    with pytest.raises(TrustError, match=r"holds tiny/fp32/cpu in place of target cpu of tiny-int8-cpu"):
        open_packaged(place)
    description["targets"]["cpu"]["files"]["engine"] = "1/another.onnx"
    (place / "1" / "passports" / "engines.json").write_text(json.dumps(description))
    with pytest.raises(TrustError, match=r"engines\.json: was altered: it is not what was signed"):
        open_packaged(place)
    assert {p.id for p in verify_package(tmp_path / "models", trust)} == {"tiny/fp32/cpu", "tiny/int8/cpu"}


def test_a_signed_engine_that_failed_is_refused(built: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trust = trust_mine(tmp_path, monkeypatch)
    engine = packaged(built)
    body = json.loads(engine.passport.source.read_text())
    body["verdict"]["verdict"] = "fail"
    signer = read_signer()
    assert signer is not None
    source = tmp_path / "failed.json"
    source.write_text(json.dumps(signer.sign(body)))
    failed = PackagedEngine(engine.folder, Passport(body, source))
    write_package(built.plan.loaded, [failed], tmp_path / "models")
    with pytest.raises(TrustError, match="the verdict of tiny/int8/cpu is fail; do not use this engine"):
        verify_package(tmp_path / "models", trust)
    with pytest.raises(TrustError, match="the verdict of tiny/int8/cpu is fail"):
        open_packaged(tmp_path / "models" / "tiny-int8-cpu")


def test_a_package_of_an_older_engineworks_is_loaded_where_no_key_is_required(
    built: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model,) = write_package(built.plan.loaded, [packaged(built)], tmp_path / "models")
    place = model / "1" / "passports" / "engines.json"
    place.write_text(json.dumps(json.loads(place.read_text())["targets"]))
    open_packaged(model).close()
    trust_mine(tmp_path, monkeypatch)
    with pytest.raises(TrustError, match=r"engines\.json: is not signed"):
        open_packaged(model)


def test_a_package_replaces_an_older_one_and_nothing_else(built: Any, tmp_path: Path) -> None:
    out = tmp_path / "models"
    write_package(built.plan.loaded, [packaged(built), packaged(built, "tiny/fp32/cpu")], out)
    assert len(write_package(built.plan.loaded, [packaged(built)], out)) == 1
    assert sorted(p.name for p in tmp_path.glob("*models*")) == ["models"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    with pytest.raises(InputError, match="is neither empty nor an Engineworks package"):
        write_package(built.plan.loaded, [packaged(built)], tmp_path / "photos")


def test_a_model_whose_batch_is_not_in_front_is_packaged_without_batching(built: Any, tmp_path: Path) -> None:
    loaded = built.plan.loaded
    recipe = loaded.recipe.model_copy(update={"outputs": {"logits": (3, "batch")}})
    (model,) = write_package(replace(loaded, recipe=recipe), [packaged(built)], tmp_path / "models")
    config = config_of(model)
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [-1, 1, 4, 4]
    assert list(config.model_warmup[0].inputs["image"].dims) == [1, 1, 4, 4]


def test_the_command_packages_what_passed_and_says_what_it_left_out(
    built: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "models"
    assert run_command(["package", "recipes/tiny.yaml", "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["models"] == ["tiny-fp32-cpu", "tiny-int8-cpu"]
    assert said["left_out"] == []
    assert run_command(["verify", str(out)]) == 0
    assert capsys.readouterr().out.count("the bytes are those of its passport") == 2
    text = built.recipe.read_text(encoding="utf-8")
    built.recipe.write_text(text.replace("int8: {cosine: 0.98}", "int8: {cosine: 0.99999999}"), encoding="utf-8")
    assert run_command(["package", "recipes/tiny.yaml", "--out", str(out)]) == 1
    assert "left out: tiny/int8/cpu fail: logits: cosine similarity" in capsys.readouterr().out
    assert [p.name for p in out.iterdir() if p.is_dir()] == ["tiny-fp32-cpu"]
    assert run_command(["package", "recipes/tiny.yaml", "--out", str(out), "--only", "*/int8/*"]) == 2
    assert "there is no engine to package:\ntiny/int8/cpu fail" in capsys.readouterr().err
