"""The sidecar of an engine: what its builder knows of it, in a file next to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer

from engineworks.engines.backends.base import BuildReport, BuildRequest
from engineworks.engines.decoder.parts import Part
from engineworks.engines.engine_files import LOG_FILE, SIDECAR_FILE
from engineworks.engines.strict_json import Digest
from engineworks.host.file_digests import digest_file
from engineworks.model.decoder.interface import DecoderInterface
from engineworks.tensors import TensorSpec
from engineworks.typed_json import Count, Document, Report, Size


@dataclass(frozen=True)
class StoredPart(Part, Document):
    """An engine inside a decoder's artifact."""

    sha256: Digest


@dataclass(frozen=True)
class DecoderFacts(Document):
    """computes: the precision of its products. streams: numbers of sequences that the recipe serves. stop: tokens that
    end a text. parts: () where one engine takes every shape."""

    interface: Annotated[DecoderInterface, PlainSerializer(DecoderInterface.to_json)]
    computes: Literal["fp32", "fp16", "bf16", "w4a8"]
    streams: Annotated[tuple[Count, ...], Field(min_length=1)]
    tokenizer_sha256: Digest
    stop: tuple[int, ...]
    parts: tuple[StoredPart, ...] = ()


@dataclass(frozen=True)
class Sidecar(Report):
    """engine: name of the main file, with its sha256. bytes: of all files. profiles: as `Profile.to_json` writes them.
    versions: of the libraries that shaped it. details: the backend's own. decoder: None for other models."""

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
    decoder: DecoderFacts | None = None

    @property
    def digests(self) -> dict[str, str]:
        """sha256 by name of the engine files."""
        parts = self.decoder.parts if self.decoder else ()
        return {self.engine: self.sha256, **{part.file: part.sha256 for part in parts}}

    @classmethod
    def of(
        cls, request: BuildRequest, report: BuildReport, target: Mapping[str, Any], model: Path,
        decoder: DecoderFacts | None = None,
    ) -> Sidecar:  # fmt: skip
        """Describe the engine files in the request's folder. model: the lowered ONNX that they were made from."""
        return cls(
            engine=report.file,
            sha256=digest_file(request.out / report.file),
            bytes=sum(f.stat().st_size for f in request.out.iterdir() if f.name != LOG_FILE),
            precision=request.precision,
            target=target,
            inputs=report.inputs,
            outputs=report.outputs,
            profiles=tuple(p.to_json() for p in request.profiles),
            model_sha256=digest_file(model),
            build_seconds=round(report.seconds, 3),
            versions=report.versions,
            details=report.details,
            decoder=decoder,
        )

    def passport_facts(self) -> dict[str, Any]:
        """Return what a passport says of the engine, as JSON."""
        value = self.to_json()
        return {k: value[k] for k in ("inputs", "outputs", "details", "model_sha256")}
