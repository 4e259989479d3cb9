"""The tensors of an engine: dtypes by the vendor's names and ours, shapes, location, and the shapes that each profile
takes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engineworks.errors import RunError
from engineworks.host.lazy import Arrays, np
from engineworks.tensors import InputRange, Profile, TensorSpec

DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "FP8": "float8e4m3fn",
    "INT64": "int64", "INT32": "int32", "INT8": "int8", "INT4": "int4", "UINT8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""The vendor's DataType by name → this project's dtype."""


def dtype_name(vendor_name: str) -> str:
    """Return this project's dtype for a name of the vendor's DataType."""
    return DTYPES.get(vendor_name, vendor_name.lower())


@dataclass(frozen=True)
class EngineTensor:
    """An input or output. on_host: the CPU reads or writes it (a shape tensor)."""

    spec: TensorSpec
    is_input: bool
    on_host: bool

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's dtype of the tensor's bytes: ml_dtypes' for bfloat16, uint8 for packed dtypes narrower than a
        byte."""
        return numpy_dtype(self.spec.dtype)

    def size(self, shape: tuple[int, ...]) -> int:
        """Return the tensor's bytes at this shape; int4 packs two values into each."""
        count = math.prod(shape)
        return (count + 1) // 2 if self.spec.dtype == "int4" else count * int(self.dtype.itemsize)

    def array_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of NumPy's array: packed int4 is a row of bytes."""
        return (self.size(shape),) if self.spec.dtype == "int4" else shape


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return NumPy's dtype for a dtype name of this project; int4 is uint8 with two values in each."""
    if name in ("bfloat16", "float8e4m3fn"):
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else ml_dtypes.float8_e4m3fn)
        return dtype
    return np.dtype({"int4": "uint8"}.get(name, name))


def engine_tensors(trt: Any, engine: Any, known: Sequence[TensorSpec]) -> tuple[EngineTensor, ...]:
    """Return all inputs and outputs in the engine's order. known: the builder's tensors with their dimension names,
    which an engine does not keep."""
    named = {spec.name: spec for spec in known}
    return tuple(_tensor(trt, engine, engine.get_tensor_name(i), named) for i in range(engine.num_io_tensors))


def _tensor(trt: Any, engine: Any, name: str, named: Mapping[str, TensorSpec]) -> EngineTensor:
    dtype, lengths = engine.get_tensor_dtype(name).name, engine.get_tensor_shape(name)
    return EngineTensor(
        named_spec(name, dtype, lengths, named),
        is_input=engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
        on_host=engine.get_tensor_location(name) == trt.TensorLocation.HOST,
    )


def named_spec(name: str, dtype: str, lengths: Sequence[int], named: Mapping[str, TensorSpec]) -> TensorSpec:
    """Return a vendor's tensor with its known dimension names. dtype: the vendor's name. lengths: -1 for a dynamic
    one."""
    given = named.get(name)
    names = given.shape if given is not None and len(given.shape) == len(lengths) else ()
    shape = (
        length if length >= 0 else (names[axis] if names else f"{name}_{axis}") for axis, length in enumerate(lengths)
    )
    return TensorSpec(name, dtype_name(dtype), tuple(shape))


def given_names(inputs: Iterable[str], outputs: Collection[str]) -> dict[str, str]:
    """Return the engine's name for each input of the model. They differ for an input that is also an output: the
    vendor's parser renames it to '__x', because names in an engine are unique."""
    engine = list(inputs)
    return {
        name[2:] if name.startswith("__") and name[2:] in outputs and name[2:] not in engine else name: name
        for name in engine
    }


def engine_profiles(engine: Any, tensors: Sequence[EngineTensor]) -> tuple[Profile, ...]:
    """Return the shapes that each profile takes, in the engine's order, named by position."""

    def limits(tensor: EngineTensor, index: int) -> InputRange:
        low, opt, high = (tuple(d) for d in engine.get_tensor_profile_shape(tensor.name, index))
        return InputRange(low, opt, high)

    inputs = [t for t in tensors if t.is_input]
    return tuple(
        Profile(str(index), {t.name: limits(t, index) for t in inputs})
        for index in range(engine.num_optimization_profiles)
    )


def choose_profile(profiles: Sequence[Profile], feeds: Arrays, current: int) -> int:
    """Return the index of a profile that takes these shapes, preferably the current one. Raises `RunError` that lists
    what each profile takes."""
    shapes = {name: array.shape for name, array in feeds.items()}
    order: list[int] = [current, *range(len(profiles))]
    for index in order:
        if profiles[index].admits(shapes):
            return index
    given = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    takes = "; ".join(_takes(p, shapes) for p in profiles)
    raise RunError(f"{given} lies outside every profile of the engine: {takes}", hint="widen 'shapes' in the recipe")


def _takes(profile: Profile, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Describe the profile's inputs that do not fit, with their allowed shapes."""
    wrong = [name for name, shape in shapes.items() if not profile.admits({name: shape})]
    return ", ".join(f"{name} {list(profile.inputs[name].min)} to {list(profile.inputs[name].max)}" for name in wrong)
