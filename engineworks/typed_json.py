"""JSON documents as frozen dataclasses: read strictly, written in one form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar, cast

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from engineworks.errors import EngineworksError, StoreError

T = TypeVar("T")

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
"""The `__pydantic_config__` of a document's dataclass: unknown keys, NaN and infinities are refused."""

Count = Annotated[int, Field(ge=0)]
Size = Annotated[float, Field(ge=0)]
"""A finite number that is not negative: a duration, a distance, an amount of memory."""

Cosine = Annotated[float, Field(ge=-1, le=1)]


class Document:
    """Base of a frozen dataclass that is a JSON object, or part of one. Values equal to their default are left out."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    @classmethod
    def from_json(cls, value: object, what: str = "") -> Self:
        """The inverse of `to_json`. what: the document's name in messages. Raises `StoreError`."""
        return parse(cls, json.dumps(value), what or cls.__name__)

    def to_json(self) -> dict[str, Any]:
        return cast(dict[str, Any], plain(self))


class Record(Document):
    """A document that is written with every key."""

    def to_json(self) -> dict[str, Any]:
        return {name: _json_value(value) for name, value in vars(self).items()}


def _json_value(value: Any) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: _json_value(inner) for key, inner in value.items()}
    return [_json_value(inner) for inner in value] if isinstance(value, list | tuple) else value


class Report(Document):
    """A document that a step writes into the file FILE of its artifact, and that others read as this class alone."""

    FILE: ClassVar[str]

    @classmethod
    def parse(cls, data: bytes | str, what: str) -> Self:
        """Read a file's contents. Raises `StoreError` for an unknown or missing key, or a value of another type."""
        return parse(cls, data, what)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the report in the folder of an artifact. Raises `StoreError`."""
        return cls.parse(read_file(folder / cls.FILE), str(folder / cls.FILE))


def read_file(path: Path) -> bytes:
    """Return a report's bytes. Raises `StoreError`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}", hint="build again") from None


def parse(
    kind: type[T], data: bytes | str, what: str, *,
    error: type[EngineworksError] = StoreError, hint: str = "build again",
) -> T:  # fmt: skip
    """Return JSON text as the frozen dataclass `kind`. Raises `error` for the first key or value that does not fit."""
    try:
        return cast(T, _adapter(cast(Any, kind)).validate_json(data, strict=True))
    except ValidationError as invalid:
        first = invalid.errors(include_url=False)[0]
    place = ".".join(str(part)[:80] for part in first["loc"] if not str(part).startswith("function-"))
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        raise error(f"{what}: unknown key '{place}'", hint=hint)
    if first["type"] in ("missing", "missing_argument"):
        raise error(f"{what}: '{place}' is missing", hint=hint)
    reason = first["msg"][0].lower() + first["msg"][1:]
    where = f"'{place}' " if place else ""
    raise error(f"{what}: {where}is not as documented: {reason}", hint=hint)


def plain(value: object) -> Any:
    """The inverse of `parse`: plain JSON values, without keys whose value is the default."""
    return _adapter(cast(Any, type(value))).dump_python(
        value, mode="json", by_alias=True, exclude_defaults=True, warnings=False
    )


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
