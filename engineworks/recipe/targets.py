"""Targets: where an engine runs. `_targets.yaml` next to the recipes maps a name to backend and GPU type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, WithJsonSchema
from pydantic_core import PydanticKnownError

from engineworks.engines.backends import BACKENDS
from engineworks.recipe.part import Name, Part, Seconds


def _number_as_text(value: object) -> object:
    """The number as text, because YAML reads an unquoted 8.9 as a number."""
    return str(value) if isinstance(value, float) else value


ComputeCapability = Annotated[str, BeforeValidator(_number_as_text), StringConstraints(pattern=r"^\d{1,2}\.\d$")]


def _known_backend(name: str) -> str:
    if name not in BACKENDS:
        raise PydanticKnownError("literal_error", {"expected": ", ".join(f"'{known}'" for known in BACKENDS)})
    return name


BackendName = Annotated[str, AfterValidator(_known_backend), WithJsonSchema({"enum": list(BACKENDS), "type": "string"})]


class Target(Part):
    """One GPU type (or the CPU), the backend that builds and runs its engines, and where its jobs go."""

    backend: BackendName = Field(description="what builds and runs its engines")
    description: str = Field("", description="which GPUs are meant; shapes nothing")
    compute_capability: tuple[ComputeCapability, ...] = Field(
        (), description="such as [8.9]; several make one portable engine; empty for the CPU"
    )
    pool: str = Field("", description="Prefect work pool of its jobs")
    time_limit_s: Seconds = Field(7200.0, description="a build that takes longer is stopped")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the backend")


class Targets(Part):
    """The file `_targets.yaml`."""

    targets: dict[Name, Target] = Field(min_length=1)


@dataclass(frozen=True)
class NamedTarget:
    """context: positions of a decoder's cache where the recipe lists several; the name then ends with it."""

    name: str
    target: Target
    context: int = 0

    def to_json(self) -> dict[str, object]:
        """Parameters that shape an engine; pool, time limit and description do not."""
        return {
            "backend": self.target.backend,
            "compute_capability": list(self.target.compute_capability),
            "options": dict(self.target.options),
        }


DEFAULT_TARGETS: Mapping[str, Target] = {"cpu": Target(backend="onnxruntime", description="ONNX Runtime on this CPU")}
"""The targets if no `_targets.yaml` exists next to the recipes."""
