"""The sidecar of an engine: what its builder knows of it, in a file next to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from engineworks.engines.engine_files import SIDECAR_FILE
from engineworks.engines.strict_json import Digest
from engineworks.tensors import TensorSpec
from engineworks.typed_json import Count, Report, Size


@dataclass(frozen=True)
class Sidecar(Report):
    """engine: name of the main file, with its sha256. bytes: of all files. profiles: as `Profile.to_json` writes them.
    versions: of the libraries that shaped it. details: the backend's own. decoder: the decoder's interface, tokenizer
    and parts, None for other models."""

    FILE = SIDECAR_FILE

    engine: Annotated[str, Field(min_length=1)]
    sha256: Digest
    bytes: Count
    precision: str
    target: Mapping[str, Any]
    inputs: tuple[TensorSpec, ...]
    outputs: Annotated[tuple[TensorSpec, ...], Field(min_length=1)]
    profiles: tuple[Mapping[str, Any], ...]
    model_sha256: Digest
    build_seconds: Size
    versions: Mapping[str, str]
    details: Mapping[str, Any]
    decoder: Mapping[str, Any] | None = None
