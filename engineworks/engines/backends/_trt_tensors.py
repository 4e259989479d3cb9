"""The tensors of an engine: dtypes, shapes, where they live and which shapes each profile takes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engineworks.engines.backends._trt_dtypes import dtype_name
from engineworks.errors import RunError
from engineworks.tensors import InputRange, Profile, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]


@dataclass(frozen=True)
class EngineTensor:
    """An input or output. on_host: read or written by the processor: a shape tensor."""

    spec: TensorSpec
    is_input: bool
    on_host: bool

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's dtype of the tensor's bytes. bfloat16 is ml_dtypes'; what is narrower than a byte is bytes."""
        return numpy_dtype(self.spec.dtype)

    def size(self, shape: tuple[int, ...]) -> int:
        """Bytes of the tensor with this shape; int4 packs two values into each."""
        count = math.prod(shape)
        return (count + 1) // 2 if self.spec.dtype == "int4" else count * int(self.dtype.itemsize)

    def array_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape as NumPy's array has it: packed int4 is a row of bytes."""
        return (self.size(shape),) if self.spec.dtype == "int4" else shape


def numpy_dtype(name: str) -> np.dtype[Any]:
    """NumPy's dtype for a dtype name of this project; int4 is uint8, two values in each."""
    import numpy as np

    if name in ("bfloat16", "float8e4m3fn"):
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else ml_dtypes.float8_e4m3fn)
        return dtype
    return np.dtype({"int4": "uint8"}.get(name, name))


def engine_tensors(trt: Any, engine: Any, known: Sequence[TensorSpec]) -> tuple[EngineTensor, ...]:
    """All inputs and outputs in the engine's order. known: the tensors as the builder knew them, with the names of
    their dimensions, which an engine does not keep."""
    named = {spec.name: spec for spec in known}
    return tuple(_tensor(trt, engine, engine.get_tensor_name(i), named) for i in range(engine.num_io_tensors))


def _tensor(trt: Any, engine: Any, name: str, named: Mapping[str, TensorSpec]) -> EngineTensor:
    lengths = tuple(engine.get_tensor_shape(name))
    given = named.get(name)
    names = given.shape if given is not None and len(given.shape) == len(lengths) else ()
    shape = tuple(
        length if length >= 0 else (names[axis] if names else f"{name}_{axis}") for axis, length in enumerate(lengths)
    )
    dtype = dtype_name(engine.get_tensor_dtype(name).name)
    return EngineTensor(
        TensorSpec(name, dtype, shape),
        is_input=engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
        on_host=engine.get_tensor_location(name) == trt.TensorLocation.HOST,
    )


def given_names(inputs: Iterable[str], outputs: Collection[str]) -> dict[str, str]:
    """The model's name of an input → the engine's. They differ for an input that is an output too: the vendor's parser
    calls the input of such a pair '__x', for an engine has each name once."""
    engine = list(inputs)
    return {
        name[2:] if name.startswith("__") and name[2:] in outputs and name[2:] not in engine else name: name
        for name in engine
    }


def engine_profiles(engine: Any, tensors: Sequence[EngineTensor]) -> tuple[Profile, ...]:
    """The shapes that each of the engine's profiles takes, in the engine's order, called by their place."""

    def limits(tensor: EngineTensor, index: int) -> InputRange:
        low, opt, high = (tuple(d) for d in engine.get_tensor_profile_shape(tensor.name, index))
        return InputRange(low, opt, high)

    inputs = [t for t in tensors if t.is_input]
    return tuple(
        Profile(str(index), {t.name: limits(t, index) for t in inputs})
        for index in range(engine.num_optimization_profiles)
    )


def choose_profile(profiles: Sequence[Profile], feeds: Mapping[str, Array], current: int) -> int:
    """Index of a profile that takes these shapes: the current one if it does. Raises `RunError` that says what each
    profile takes."""
    shapes = {name: array.shape for name, array in feeds.items()}
    order: list[int] = [current, *range(len(profiles))]
    for index in order:
        if profiles[index].admits(shapes):
            return index
    given = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    takes = "; ".join(_takes(p, shapes) for p in profiles)
    raise RunError(f"{given} lies outside every profile of the engine: {takes}", hint="widen 'shapes' in the recipe")


def _takes(profile: Profile, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The inputs of a profile that do not fit, with what they may be."""
    wrong = [name for name, shape in shapes.items() if not profile.admits({name: shape})]
    return ", ".join(f"{name} {list(profile.inputs[name].min)} to {list(profile.inputs[name].max)}" for name in wrong)
