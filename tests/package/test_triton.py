"""config.pbtxt, parsed with Triton's own message."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engineworks.errors import EngineworksError
from engineworks.package.package import validate_config
from engineworks.package.triton import TritonModel, WarmUp, config_text
from engineworks.recipe.recipe import DynamicBatching, Triton
from engineworks.tensors import TensorSpec

text_format = pytest.importorskip("google.protobuf.text_format")
model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2", exc_type=Exception)

IMAGE = TensorSpec("image", "float32", ("batch", 1, "height", 8))
MASK = TensorSpec("mask", "int64", ("batch",))
SCORE = TensorSpec("score", "float16", ("batch",))
MODEL = TritonModel(
    name="net-int8-cpu",
    backend="onnxruntime",
    inputs=(IMAGE, MASK),
    outputs=(SCORE,),
    max_batch=32,
    served_by="onnxruntime",
    settings=Triton(dynamic_batching=DynamicBatching(preferred=(8, 32), max_delay_us=500), instances=2),
    file="model.onnx",
    warm_ups=(WarmUp("bulk", 32, 3, {"image": (1, 16, 8), "mask": ()}, {"image": "bulk-0.raw", "mask": "bulk-1.raw"}),),
    options={"threads": 4, "spinning": False},
)
TENSORRT = replace(
    MODEL, backend="tensorrt", served_by="tensorrt", file="a100.plan", profiles=2, options={},
    capabilities={"8.0": "a100.plan", "9.0": "h100.plan"},
    settings=Triton(), cuda_graphs=True,
)  # fmt: skip


def parse(model: TritonModel) -> Any:
    return text_format.Parse(config_text(model), model_config_pb2.ModelConfig())


def test_tensors_have_their_types_and_lose_their_batch() -> None:
    config = parse(MODEL)
    image, mask = config.input
    assert (image.name, list(image.dims)) == ("image", [1, -1, 8])
    assert image.data_type == model_config_pb2.TYPE_FP32
    assert (list(mask.dims), list(mask.reshape.shape), mask.HasField("reshape")) == ([1], [], True)
    assert config.output[0].data_type == model_config_pb2.TYPE_FP16
    assert config.max_batch_size == 32


def test_without_batching_shapes_are_whole() -> None:
    config = parse(replace(MODEL, max_batch=0))
    assert list(config.input[0].dims) == [-1, 1, -1, 8]
    assert not config.HasField("dynamic_batching")


def test_dynamic_batching_instances_and_threads_are_the_recipes() -> None:
    config = parse(MODEL)
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 32]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    (group,) = config.instance_group
    assert (group.count, group.kind) == (2, model_config_pb2.ModelInstanceGroup.KIND_CPU)
    assert {k: v.string_value for k, v in config.parameters.items()} == {"intra_op_thread_count": "4"}
    assert (config.backend, config.default_model_filename) == ("onnxruntime", "model.onnx")


def test_warm_up_is_one_sample_that_triton_repeats() -> None:
    (warm_up,) = parse(MODEL).model_warmup
    assert (warm_up.name, warm_up.batch_size, warm_up.count) == ("bulk", 32, 3)
    assert list(warm_up.inputs["image"].dims) == [1, 16, 8]
    assert warm_up.inputs["image"].input_data_file == "bulk-0.raw"
    assert list(warm_up.inputs["mask"].dims) == [1]


def test_several_gpu_types_are_one_model_with_a_file_for_each() -> None:
    config = parse(TENSORRT)
    assert dict(config.cc_model_filenames) == {"8.0": "a100.plan", "9.0": "h100.plan"}
    assert config.backend == "tensorrt"
    (group,) = config.instance_group
    assert list(group.profile) == ["0", "1"]
    assert group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU


def test_cuda_graphs_are_captured_at_the_named_shapes() -> None:
    cuda = parse(TENSORRT).optimization.cuda
    assert cuda.graphs
    (spec,) = cuda.graph_spec
    assert spec.batch_size == 32
    assert list(spec.input["image"].dim) == [1, 16, 8]
    assert not parse(replace(TENSORRT, cuda_graphs=False)).HasField("optimization")


def test_tensorrt_rtx_runs_in_the_python_backend() -> None:
    config = parse(replace(TENSORRT, backend="tensorrt_rtx", served_by="python", file=""))
    assert (config.backend, config.default_model_filename) == ("python", "")


def test_a_gpu_keeps_compiled_kernels_in_the_recipes_folder_and_a_cpu_has_none() -> None:
    settings = Triton(runtime_cache="/var/cache/kernels")
    served = replace(TENSORRT, backend="tensorrt_rtx", served_by="python", file="", settings=settings)
    assert parse(served).parameters["runtime_cache"].string_value == "/var/cache/kernels"
    assert not parse(replace(MODEL, served_by="python", settings=settings)).parameters


def test_names_that_need_escapes_survive() -> None:
    name = 'größe "x"\\\n'
    spec = TensorSpec(name, "float32", ("batch", 2))
    config = parse(replace(MODEL, inputs=(spec,), warm_ups=()))
    assert config.input[0].name == name


def test_a_text_that_triton_would_not_read_is_a_defect_not_a_package() -> None:
    validate_config('name: "x"')
    with pytest.raises(EngineworksError, match="is not what Triton reads"):
        validate_config("nane: 3")


def test_an_engine_that_must_not_be_optimized_further_says_so_to_triton() -> None:
    assert not parse(MODEL).HasField("optimization")
    assert parse(replace(MODEL, load_level="basic")).optimization.graph.level == -1
    assert parse(replace(MODEL, load_level="none")).optimization.graph.level == 2
