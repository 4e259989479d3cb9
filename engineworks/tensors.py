"""Names, dtypes and shapes of tensors, without NumPy or ONNX, as `plan` needs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Dim = int | str
"""A dimension: its length, or the name of a dynamic one."""

DTYPES = (
    "float64", "float32", "float16", "bfloat16", "float8e4m3fn",
    "int64", "int32", "int16", "int8", "int4", "uint64", "uint32", "uint16", "uint8", "bool",
)  # fmt: skip
"""The dtype names of recipes, sidecars and reports: NumPy's names, and ONNX's for dtypes that NumPy lacks."""


NARROWED = (("float32", "float64"), ("int32", "int64"))
"""(engine's dtype, model's dtype): dtypes that TensorRT substitutes for those of the model's inputs and outputs.

Sidecars, Triton's configuration, MLflow's signature and outputs have the engine's dtype; a session also takes the
model's.
"""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a model; `shape` holds lengths and dimension names. batch: name of the dimension that
    counts samples, where neither its name nor its place tells (see `recipe.batch`)."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    batch: str = ""

    @property
    def dynamic_dims(self) -> tuple[str, ...]:
        return tuple(d for d in self.shape if isinstance(d, str))

    def concrete(self, dims: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with every named dimension replaced by its length in `dims` (KeyError if one is missing)."""
        return tuple(dims[d] if isinstance(d, str) else d for d in self.shape)

    def to_json(self) -> dict[str, object]:
        value: dict[str, object] = {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}
        return value | ({"batch": self.batch} if self.batch else {})

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class InputRange:
    """The shapes that one profile allows for one input: min ≤ opt ≤ max in every dimension."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """One optimization profile: a name and the range of every input (static inputs have min = opt = max)."""

    name: str
    inputs: Mapping[str, InputRange]

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "inputs": {
                n: {"min": list(r.min), "opt": list(r.opt), "max": list(r.max)} for n, r in sorted(self.inputs.items())
            },
        }

    def admits(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether all the given input shapes lie within this profile."""
        return all(
            len(shape) == len(self.inputs[name].min)
            and all(
                lo <= n <= hi for lo, n, hi in zip(self.inputs[name].min, shape, self.inputs[name].max, strict=True)
            )
            for name, shape in shapes.items()
        )


def profile_from_json(value: Mapping[str, object]) -> Profile:
    """The inverse of `Profile.to_json`."""
    inputs = value["inputs"]
    assert isinstance(inputs, Mapping)
    return Profile(
        name=str(value["name"]),
        inputs={n: InputRange(tuple(r["min"]), tuple(r["opt"]), tuple(r["max"])) for n, r in inputs.items()},
    )


def spec_from_json(value: Mapping[str, object]) -> TensorSpec:
    """The inverse of `TensorSpec.to_json`."""
    shape = value["shape"]
    assert isinstance(shape, list)
    return TensorSpec(str(value["name"]), str(value["dtype"]), tuple(shape), str(value.get("batch", "")))


def dims_text(dims: Mapping[str, int]) -> str:
    """Return 'batch 8, sequence 128'."""
    return ", ".join(f"{name} {length}" for name, length in dims.items())
