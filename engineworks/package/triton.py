"""Writes Triton's description of a model, `config.pbtxt`. Pure.

Fields are those of `inference.ModelConfig` (triton-inference-server/common, protobuf/model_config.proto). Tests parse
the text with `tritonclient`'s message, and so does `engineworks package` where it is installed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engineworks.engines.backends import backend
from engineworks.engines.backends.base import Traits
from engineworks.errors import InputError
from engineworks.package.python_model import CACHE_PARAMETER
from engineworks.recipe.recipe import Triton
from engineworks.tensors import Dim, TensorSpec

DATA_TYPES = {
    "float64": "TYPE_FP64", "float32": "TYPE_FP32", "float16": "TYPE_FP16", "bfloat16": "TYPE_BF16",
    "int64": "TYPE_INT64", "int32": "TYPE_INT32", "int16": "TYPE_INT16", "int8": "TYPE_INT8",
    "uint64": "TYPE_UINT64", "uint32": "TYPE_UINT32", "uint16": "TYPE_UINT16", "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}  # fmt: skip


GRAPH_LEVELS = {"basic": -1, "extended": 1, "none": 2}
"""This project's name of ONNX Runtime's level → that of Triton's ONNX Runtime backend."""


PYTHON = "python"
"""Triton's backend for models in Python."""

ENVIRONMENT_PARAMETER = "EXECUTION_ENV_PATH"
"""The Python backend's parameter for the environment of a model: a folder, or an archive by conda-pack."""


def served_by(traits: Traits, available: Collection[str]) -> str:
    """Return the backend of Triton that runs an engine: the engine's own where the server has it, else Python's.

    available: the server's backends. Raises `InputError` where it has neither.
    """
    name = traits.triton.name
    if name not in available and PYTHON not in available:
        wanted = f"'{name}' and not '{PYTHON}'" if name != PYTHON else f"'{name}'"
        raise InputError(
            f"the Triton server has no backend {wanted}; it has {', '.join(sorted(available)) or 'none'}",
            hint="take a Triton with one of them, such as NVIDIA's container",
        )
    return name if name in available else PYTHON


@dataclass(frozen=True)
class EnumValue:
    """A bare word in the text format: the name of an enum's value."""

    text: str


@dataclass(frozen=True)
class WarmUp:
    """One warm-up sample: Triton runs `batch` copies of it, as one batch, `count` times. files: data file by input.
    shapes: of one sample without its batch dimension, or complete where Triton does no batching."""

    name: str
    batch: int
    count: int
    shapes: Mapping[str, Sequence[int]]
    files: Mapping[str, str]


@dataclass(frozen=True)
class TritonModel:
    """One directory of a model repository. backend: the engines'; served_by: Triton's. file: the engine's, if it is the
    only one and Triton's backend reads it; capabilities: file by compute
    capability. max_batch: 0 where Triton cannot batch. shapes: the named shapes, for CUDA graphs.
    profiles: number of optimization profiles of its engines. options: of the target. load_level: maximum optimization
    level when ONNX Runtime loads the engine, '' for ONNX Runtime's default."""

    name: str
    backend: str
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    max_batch: int
    settings: Triton
    served_by: str
    file: str = ""
    capabilities: Mapping[str, str] = field(default_factory=dict)
    profiles: int = 1
    warm_ups: Sequence[WarmUp] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    cuda_graphs: bool = False
    load_level: str = ""

    @property
    def traits(self) -> Traits:
        return backend(self.backend).TRAITS

    @property
    def native(self) -> bool:
        """Whether Triton's own backend runs the engine, not a Python model."""
        return self.served_by != PYTHON


def config_text(model: TritonModel) -> str:
    """Return the model's `config.pbtxt`."""
    return "\n".join(_lines(_config(model))) + "\n"


def _config(model: TritonModel) -> dict[str, Any]:
    settings = model.settings
    own_profiles = model.native and model.traits.triton.own_profiles
    fields: dict[str, Any] = {"name": model.name, "backend": model.served_by, "max_batch_size": model.max_batch}
    if model.file:
        fields["default_model_filename"] = model.file
    fields["input"] = [_tensor(model, spec) for spec in model.inputs]
    fields["output"] = [_tensor(model, spec) for spec in model.outputs]
    batching = settings.dynamic_batching
    if batching is not None and not batching.measured and model.max_batch:
        fields["dynamic_batching"] = {
            "preferred_batch_size": list(batching.preferred),
            "max_queue_delay_microseconds": batching.max_delay_us,
        }
    group: dict[str, Any] = {
        "count": settings.instances,
        "kind": EnumValue("KIND_GPU" if model.traits.on_gpu else "KIND_CPU"),
    }
    if own_profiles and model.profiles > 1:
        group["profile"] = [str(index) for index in range(model.profiles)]
    fields["instance_group"] = [group]
    if model.capabilities:
        fields["cc_model_filenames"] = [{"key": k, "value": v} for k, v in sorted(model.capabilities.items())]
    if own_profiles and model.cuda_graphs:
        specs = [_graph(model, warm_up) for warm_up in model.warm_ups]
        fields["optimization"] = {"cuda": {"graphs": True, "graph_spec": specs}}
    if model.native and model.load_level in GRAPH_LEVELS:
        fields["optimization"] = {"graph": {"level": GRAPH_LEVELS[model.load_level]}}
    parameters = _parameters(model)
    if parameters:
        fields["parameters"] = [{"key": k, "value": {"string_value": v}} for k, v in parameters.items()]
    fields["model_warmup"] = [_warm_up(model, sample) for sample in model.warm_ups]
    return fields


def _tensor(model: TritonModel, spec: TensorSpec) -> dict[str, Any]:
    """Describe a tensor without its batch dimension. Triton wants at least one dimension: none becomes [1],
    reshaped."""
    shape: tuple[Dim, ...] = spec.shape[1:] if model.max_batch else spec.shape
    dims = [-1 if isinstance(d, str) else d for d in shape]
    described: dict[str, Any] = {"name": spec.name, "data_type": EnumValue(DATA_TYPES[spec.dtype]), "dims": dims or [1]}
    return described if dims else {**described, "reshape": {"shape": []}}


def _graph(model: TritonModel, warm_up: WarmUp) -> dict[str, Any]:
    """Describe a CUDA graph for this batch and these shapes; batch 0 where Triton does no batching."""
    shapes = [{"key": name, "value": {"dim": list(shape)}} for name, shape in warm_up.shapes.items()]
    return {"batch_size": warm_up.batch if model.max_batch else 0, "input": shapes}


def _parameters(model: TritonModel) -> dict[str, str]:
    """Return the target's options that Triton's backend has a name for; our Python model reads the passport, and gets
    the places on the server."""
    if not model.native:
        cache = model.settings.runtime_cache if model.traits.on_gpu else None
        places = {ENVIRONMENT_PARAMETER: model.settings.python_environment, CACHE_PARAMETER: cache}
        return {name: place for name, place in places.items() if place}
    named = model.traits.triton.options
    return {named[k]: str(v) for k, v in model.options.items() if k in named}


def _warm_up(model: TritonModel, warm_up: WarmUp) -> dict[str, Any]:
    types = {spec.name: EnumValue(DATA_TYPES[spec.dtype]) for spec in model.inputs}
    inputs = [
        {
            "key": name,
            "value": {"data_type": types[name], "dims": list(warm_up.shapes[name]) or [1], "input_data_file": file},
        }
        for name, file in warm_up.files.items()
    ]
    return {"name": warm_up.name, "batch_size": warm_up.batch, "inputs": inputs, "count": warm_up.count}


def _lines(fields: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Yield Protobuf's text format: scalars as `name: value`, messages and repeated messages in braces."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _message(name, value, indent)
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for message in value:
                yield from _message(name, message, indent)
        elif isinstance(value, list):
            yield f"{indent}{name}: [{', '.join(map(_scalar, value))}]"
        else:
            yield f"{indent}{name}: {_scalar(value)}"


def _message(name: str, fields: Mapping[str, Any], indent: str) -> Iterator[str]:
    yield f"{indent}{name} {{"
    yield from _lines(fields, indent + "  ")
    yield f"{indent}}}"


def _scalar(value: object) -> str:
    if isinstance(value, EnumValue):
        return value.text
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):  # octal escapes for bytes outside of printable ASCII
        quoted = (chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in value.encode())
        return '"' + "".join(quoted) + '"'
    return str(value)
