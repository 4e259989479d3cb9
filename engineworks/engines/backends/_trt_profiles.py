"""Checks and adds optimization profiles: the vendor accepts wrong ones silently or fails without a reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engineworks.errors import BuildError
from engineworks.tensors import InputRange, Profile, TensorSpec


def check_profile(profile: Profile, inputs: Sequence[TensorSpec]) -> None:
    """Check that every input has a valid range: min ≤ opt ≤ max, unchanged fixed lengths, and one length per named
    dimension. Raises `BuildError`."""
    known = {spec.name: spec for spec in inputs}
    if unknown := sorted(profile.inputs.keys() - known.keys()):
        raise BuildError(
            f"profile '{profile.name}': the model has no input '{unknown[0]}'", hint=f"it has {', '.join(known)}"
        )
    dims: dict[str, tuple[int, int, int]] = {}
    for name, spec in known.items():
        if name in profile.inputs:
            _check_range(profile, spec, profile.inputs[name], dims)
        elif spec.dynamic_dims:
            raise BuildError(f"profile '{profile.name}': input '{spec}' is missing, it has dynamic dimensions")


def _check_range(profile: Profile, spec: TensorSpec, given: InputRange, dims: dict[str, tuple[int, int, int]]) -> None:
    where = f"profile '{profile.name}', input '{spec.name}'"
    if not len(given.min) == len(given.opt) == len(given.max) == len(spec.shape):
        raise BuildError(f"{where}: its shapes must have {len(spec.shape)} dimensions, as {spec}")
    for axis, dim in enumerate(spec.shape):
        lengths = (given.min[axis], given.opt[axis], given.max[axis])
        shown = "/".join(map(str, lengths))
        if not 0 <= lengths[0] <= lengths[1] <= lengths[2]:
            raise BuildError(f"{where}, dimension {axis}: min ≤ opt ≤ max does not hold for {shown}")
        if isinstance(dim, int) and lengths != (dim, dim, dim):
            raise BuildError(f"{where}, dimension {axis}: the model fixes it at {dim}, the profile says {shown}")
        if isinstance(dim, str) and dims.setdefault(dim, lengths) != lengths:
            other = "/".join(map(str, dims[dim]))
            raise BuildError(f"{where}, dimension {axis}: '{dim}' is {shown} here and {other} in another input")


def add_profiles(
    builder: Any,
    config: Any,
    network: Any,
    profiles: Sequence[Profile],
    inputs: Sequence[TensorSpec],
    names: Mapping[str, str],
) -> None:
    """Add the profiles to the vendor's configuration; a model with fixed shapes needs none. names: the network's names
    of the inputs, by the model's. Raises `BuildError`."""
    dynamic = [spec for spec in inputs if spec.dynamic_dims]
    for profile in profiles:
        check_profile(profile, inputs)
    if dynamic and not profiles:
        raise BuildError(f"input '{dynamic[0]}' has dynamic dimensions and there is no profile", hint="give `shapes`")
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if tensor.is_shape_tensor:
            raise BuildError(
                f"input '{tensor.name}' holds a shape, not data: a profile would have to range over its values",
                hint="make it a constant of the model",
            )
    for profile in profiles if dynamic else ():
        added = builder.create_optimization_profile()
        for name, given in profile.inputs.items():
            added.set_shape(names.get(name, name), given.min, given.opt, given.max)
        if config.add_optimization_profile(added) < 0:
            raise BuildError(f"profile '{profile.name}' was refused")
