"""What an ONNX file declares, read from the protobuf's wire format alone: inputs, outputs, external data.

`validate` and `plan` need it and must not import ONNX. Tensors and nodes are skipped over, so that a file of any size
takes few reads. Format: protobuf.dev/programming-guides/encoding; field numbers: onnx.proto. Weights in the attributes
of nodes are small by nature and are not looked at; the export step compares with what ONNX itself finds.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engineworks.errors import Keys, ModelError, did_you_mean
from engineworks.host.regular_files import open_regular
from engineworks.model.soundness import external_number, shown
from engineworks.model.wire import Span, fields, varint
from engineworks.tensors import Dim, TensorSpec

_GRAPH, _OPSET, _METADATA = 7, 8, 14  # ModelProto
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _SPARSE = 1, 5, 11, 12, 15  # GraphProto
_TENSOR_NAME, _EXTERNAL, _KEY, _ENTRY_VALUE = 8, 13, 1, 2  # TensorProto, StringStringEntryProto
_SPARSE_VALUES = 1  # SparseTensorProto
_VALUE_NAME, _TYPE, _TENSOR_TYPE = 1, 2, 1  # ValueInfoProto, TypeProto
_ELEMENT, _SHAPE, _DIM, _LENGTH, _SYMBOL = 1, 2, 1, 1, 2  # TypeProto.Tensor, TensorShapeProto, its Dimension

_KINDS: Mapping[int, str] = {1: "tensor", 4: "sequence", 5: "map", 8: "sparse_tensor", 9: "optional"}
_DTYPES: Mapping[int, str] = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
}  # fmt: skip
"""TensorProto.DataType; others, such as float8, are no inputs that a recipe could declare."""


@dataclass(frozen=True)
class Declared:
    """An input or output as the model declares it: kind is 'tensor' for all that a recipe can name, '' where no type
    is given; dtype '' and shape None where the model does not say; None for a dimension without length or name."""

    name: str
    kind: str = "tensor"
    dtype: str = ""
    shape: tuple[Dim | None, ...] | None = None

    def __str__(self) -> str:
        dims = (f"{self.name}_{axis}" if dim is None else str(dim) for axis, dim in enumerate(self.shape or ()))
        return f"{self.name}: {self.dtype or self.kind}[{', '.join(dims)}]"


@dataclass(frozen=True)
class Outline:
    """external: by the name of a file of external data, the number of bytes that the tensors in it need. inputs: those
    that a caller feeds, without the initializers that older models list among them."""

    external: Mapping[str, int]
    inputs: tuple[Declared, ...]
    outputs: tuple[Declared, ...]


def read_outline(path: Path) -> Outline:
    """The outline of the file. Raises `ModelError` for what is no ONNX model, or one that is cut short."""
    with _mapped(path) as data:
        try:
            return _outline(data, path)
        except (IndexError, ValueError):
            raise ModelError(f"{path}: not an ONNX model: its protobuf does not parse", hint=_hint(data[:64])) from None


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    """Map a regular file into memory. Raises `ModelError` for anything else, and for an empty file."""
    try:
        file = open_regular(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    with file:
        if os.fstat(file.fileno()).st_size == 0:
            raise ModelError(f"{path}: not an ONNX model: the file is empty", hint="copy it again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def metadata_of(path: Path) -> dict[str, str]:
    """The model's own metadata (`metadata_props`). Raises `ValueError` if it is no protobuf."""
    with _mapped(path) as data:
        try:
            entries = _all(data, (0, len(data)), _METADATA)
            return {_text(data, entry, _KEY): _text(data, entry, _ENTRY_VALUE) for entry in entries}
        except IndexError:
            raise ValueError(f"{path}: its protobuf does not parse") from None


def interface_problems(
    inputs: Sequence[TensorSpec], outputs: Mapping[str, Sequence[Dim]], outline: Outline
) -> Iterator[tuple[Keys, str, str]]:
    """Every difference between the recipe's inputs and outputs and the model's: what of the recipe it is about, a
    sentence, and what to do."""
    known = {value.name: value for value in outline.inputs}
    for spec in inputs:
        if spec.name in known:
            yield from _input_problems(spec, known[spec.name])
        else:
            yield ("inputs", spec.name), f"the model has no input '{spec.name}'", did_you_mean(spec.name, known)
    declared = {spec.name for spec in inputs}
    for value in outline.inputs:
        if value.name not in declared:
            yield ("inputs",), f"the model has an input that the recipe does not declare: {value}", ""
    made = {value.name: value for value in outline.outputs}
    for name, shape in outputs.items():
        if name not in made:
            yield ("outputs", name), f"the model has no output '{name}'", did_you_mean(name, made)
        else:
            yield from _output_problems(name, shape, made[name])
    for value in outline.outputs:
        if value.kind not in ("tensor", ""):
            yield ("outputs",), f"output '{value.name}' is no tensor but a {value.kind}", _TENSORS_ONLY


_TENSORS_ONLY = "export the model with tensors only"


def _input_problems(spec: TensorSpec, has: Declared) -> Iterator[tuple[Keys, str, str]]:
    where, what = ("inputs", spec.name), f"input '{spec.name}'"
    if has.kind != "tensor":
        yield where, f"{what} is no tensor but a {has.kind or 'value without a type'}", _TENSORS_ONLY
        return
    if has.dtype != spec.dtype:
        yield (*where, "dtype"), f"{what} is {has.dtype or 'undefined'} in the model, {spec.dtype} in the recipe", ""
    if has.shape is None:
        return
    if len(has.shape) != len(spec.shape):
        counts = f"{len(has.shape)} dimensions in the model ({has}), {len(spec.shape)} in the recipe ({spec})"
        yield (*where, "shape"), f"{what} has {counts}", ""
        return
    for axis, (dim, declared) in enumerate(zip(has.shape, spec.shape, strict=True)):
        if isinstance(dim, int) and dim != declared:
            named = isinstance(declared, str)
            wanted = f"'{declared}'" if named else declared
            problem = f"fixed to {dim} in the model, {wanted} in the recipe"
            hint = f"write {dim}" + (", or export the model with a dynamic dimension" if named else "")
            yield (*where, "shape", axis), f"{what}, axis {axis}: {problem}", hint


def _output_problems(name: str, shape: Sequence[Dim], has: Declared) -> Iterator[tuple[Keys, str, str]]:
    """Ranks and lengths only: a name of a dimension may stand for a length that the model claims from its export."""
    if has.shape is None or has.kind != "tensor":
        return
    if len(has.shape) != len(shape):
        problem = f"[{', '.join(map(str, shape))}]"
        counts = f"{len(has.shape)} dimensions in the model ({has}), {len(shape)} in the recipe ({problem})"
        yield ("outputs", name), f"output '{name}' has {counts}", "correct 'outputs' of the recipe"
        return
    for axis, (dim, declared) in enumerate(zip(has.shape, shape, strict=True)):
        if isinstance(dim, int) and isinstance(declared, int) and dim != declared:
            problem = f"{dim} in the model, {declared} in the recipe"
            yield ("outputs", name, axis), f"output '{name}', axis {axis}: {problem}", f"write {dim}"


def _hint(begin: bytes) -> str:
    if begin.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS: run 'git lfs pull'"
    return "is it another format, cut short, or the error page of a failed download?"


def _outline(data: mmap.mmap, path: Path) -> Outline:
    external: dict[str, int] = {}
    inputs: list[Declared] = []
    outputs: list[Declared] = []
    weights: set[str] = set()
    complete = {_OPSET: False, _NODE: False}
    for field, span in fields(data, (0, len(data))):
        complete[_OPSET] |= field == _OPSET
        for part, inner in fields(data, span) if field == _GRAPH else ():
            complete[_NODE] |= part == _NODE
            if part == _INPUT:
                inputs.append(_declared(data, inner))
            elif part == _OUTPUT:
                outputs.append(_declared(data, inner))
            elif part in (_INITIALIZER, _SPARSE):
                for tensor in [inner] if part == _INITIALIZER else _all(data, inner, _SPARSE_VALUES):
                    weights.add(_text(data, tensor, _TENSOR_NAME))
                    _add_external(data, tensor, external)
    if not all(complete.values()):
        raise ModelError(f"{path}: not an ONNX model: it holds no nodes or no opset", hint="is this another format?")
    return Outline(external, tuple(value for value in inputs if value.name not in weights), tuple(outputs))


def _add_external(data: mmap.mmap, tensor: Span, sizes: dict[str, int]) -> None:
    entries = {_text(data, e, _KEY): _text(data, e, _ENTRY_VALUE) for e in _all(data, tensor, _EXTERNAL)}
    if name := entries.get("location"):
        what = f"tensor '{shown(_text(data, tensor, _TENSOR_NAME))}': the {{}} of its external data,"
        spans = (external_number(entries.get(key) or "0", what.format(key)) for key in ("offset", "length"))
        end = sum(spans)
        sizes[name] = max(sizes.get(name, 0), end)


def _declared(data: mmap.mmap, value: Span) -> Declared:
    name, kind, dtype, shape = _text(data, value, _VALUE_NAME), "", "", None
    for type_span in _all(data, value, _TYPE):
        for field, inner in fields(data, type_span):
            kind = _KINDS.get(field, kind)
            if field == _TENSOR_TYPE:
                dtype = _DTYPES.get(_number(data, inner, _ELEMENT) or 0, dtype)
                for dims in _all(data, inner, _SHAPE):
                    shape = tuple(_dim(data, span) for span in _all(data, dims, _DIM))
    return Declared(name, kind, dtype, shape)


def _dim(data: mmap.mmap, dim: Span) -> Dim | None:
    """Length or name; None for what exporters write in place of them: nothing, '?' or -1."""
    length = _number(data, dim, _LENGTH)
    if length is not None:
        return length if length < 2**63 else None  # negative numbers have the highest bit
    symbol = _text(data, dim, _SYMBOL)
    return None if symbol in ("", "?", "-1", "None") else symbol


def _text(data: mmap.mmap, message: Span, wanted: int) -> str:
    return "".join(data[a:b].decode() for a, b in _all(data, message, wanted))


def _number(data: mmap.mmap, message: Span, wanted: int) -> int | None:
    number = None
    for field, (at, end) in fields(data, message):
        if field == wanted and at < end:
            number, _ = varint(data, at)
    return number


def _all(data: mmap.mmap, message: Span, wanted: int) -> Iterator[Span]:
    return (span for field, span in fields(data, message) if field == wanted)
