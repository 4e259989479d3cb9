"""ONNX files on disk: read and write, with weights next to the file where one protobuf message cannot hold them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import IO

from engineworks.errors import ModelError
from engineworks.host.lazy import onnx
from engineworks.host.regular_files import open_regular
from engineworks.model.graphs import all_tensors, copy_fields, inner_tensors
from engineworks.model.soundness import check_sound, external_file, external_number, make_dense, shown
from engineworks.model.tensor_storage import append_values, attach, detach, external_span, is_external, tensor_bytes
from engineworks.tensors import Dim, TensorSpec

MODEL_FILE = "model.onnx"
"""Name of the model in its artifact folder; its weights, if external, are in `model.onnx.data` next to it."""

EXTERNAL_ABOVE_BYTES = 1 << 28
"""Weights above this go next to the file: parsing and writing a message copies them (512 MiB took 4.4 GiB to fold, 2.2
next to the file), and protobuf's hard limit is 2 GiB."""

IR_VERSION = 10
"""Newest IR version that every tool of the pipeline reads (ONNX Runtime 1.31 ≤ 13, TensorRT-RTX 1.7 ≤ 10 tested)."""

MOST_IR_VERSION, MOST_OPSET = 13, 26
"""Newest that ONNX Runtime 1.31 reads; onnx 1.23 itself writes IR 14 and opset 28 by default."""

_DETACHED_FROM_BYTES = 4096  # smaller tensors may be shapes or axes, which shape inference wants to see
_ALIGNMENT = 4096  # of a tensor in the data file: a page, so that it can be mapped into memory


def load_model(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """Parse the ONNX file; with `weights`, external data is read in. Sparse constants become dense.

    Raises `ModelError` if it is not a model.
    """
    from google.protobuf.message import DecodeError

    try:
        with open_regular(path) as file:
            model = onnx.load_model_from_string(file.read())
    except DecodeError:
        raise ModelError(f"{path}: not an ONNX model: its protobuf does not parse") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: the model cannot be read: {error}") from None
    if not model.graph.node or not model.opset_import:
        raise ModelError(f"{path}: not an ONNX model: it holds no nodes or no opset", hint="is this another format?")
    check_sound(model, path)
    if weights:
        _load_external(model, path)
    make_dense(model, str(path))
    return model


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    """Read external data in. Raises `ModelError`."""
    root = path.parent.resolve()
    for tensor in all_tensors(model):
        if is_external(tensor):
            detach(tensor, *_external_place(path, root, tensor))
            attach(tensor)


def check_tensors(model: onnx.ModelProto, path: Path) -> None:
    """Raises `ModelError` for an input or output that is no tensor: a sequence or map, as of scikit-learn's models."""
    for what, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            kind = value.type.WhichOneof("value")
            if kind not in ("tensor_type", None):
                raise ModelError(
                    f"{path}: {what} '{value.name}' is a {str(kind).removesuffix('_type')}, not a tensor",
                    hint="export the model with tensors only (of scikit-learn: options={'zipmap': False})",
                )


def detach_weights(model: onnx.ModelProto, path: Path, spill: Path) -> onnx.ModelProto:
    """A copy of `model`, as `load_model(path, weights=False)` gave it, whose weights stay on disk: every large
    initializer refers to its bytes in the model's own data file, or in `spill`, which is written. Other tensors are
    held whole. `model` is used up.

    Raises `ModelError` for external data that is missing, outside of the folder or cut short.
    """
    external_files(path, model)
    root = path.parent.resolve()
    for tensor in all_tensors(model):
        if is_external(tensor):
            detach(tensor, *_external_place(path, root, tensor))
            if tensor_bytes(tensor) < _DETACHED_FROM_BYTES:
                attach(tensor)
    for tensor in inner_tensors(model):
        attach(tensor)
    with spill.open("wb") as file:
        for tensor in model.graph.initializer:
            if tensor_bytes(tensor) < _DETACHED_FROM_BYTES or is_external(tensor):
                continue
            start = _align(file)
            if append_values(tensor, file):
                detach(tensor, spill, start)
    # Protobuf frees a message's memory only as a whole: the copy is without what was cleared.
    light: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    return light


def save_model(model: onnx.ModelProto, path: Path, *, beside: bool = False, spill: Path | None = None) -> None:
    """Write the model to `path`, its weights to `<path>.data` when large or with `beside`. The same model gives
    the same bytes.

    `model` is left as it was. Detached weights are copied from where they are, without being held in memory when
    they go next to the file. spill: the caller's file of them, as `detach_weights` wrote it: where it is what would be
    written, it is moved there instead. Raises `ModelError` if the rest does not fit into one message,
    and for an opset that ONNX Runtime does not read.
    """
    from google.protobuf.message import EncodeError

    shell = without_initializers(model)
    shell.ir_version = ir_version_for(model)
    if is_too_new(shell):
        raise ModelError(f"{path}: the model would be opset {opset_of(shell)}, above {MOST_OPSET}")
    data = path.with_name(path.name + ".data")
    data.unlink(missing_ok=True)
    if beside or weight_bytes(model) > EXTERNAL_ABOVE_BYTES:
        as_written = spill is not None and _is_as_written(spill, model.graph.initializer)
        if spill and as_written:
            os.replace(spill, data)
        with nullcontext() if as_written else data.open("wb") as file:
            for tensor in model.graph.initializer:
                _write_external(tensor, shell.graph.initializer.add(), file, data.name)
    else:
        for tensor in model.graph.initializer:
            written = shell.graph.initializer.add()
            written.CopyFrom(tensor)
            attach(written)
    try:
        path.write_bytes(shell.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise ModelError(f"{path}: its graph and attributes do not fit into one message: {error}") from None


def model_files(path: Path) -> tuple[Path, ...]:
    """The ONNX file and every external data file that it names. Raises `ModelError` for one that is missing or that
    lies outside the model's own folder."""
    return external_files(path, load_model(path, weights=False))


def saved_files(path: Path) -> tuple[Path, ...]:
    """The files that `save_model` wrote, without parsing them."""
    data = path.with_name(path.name + ".data")
    return (path, data) if data.exists() else (path,)


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the default operator set (0 if the model imports none)."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def is_too_new(model: onnx.ModelProto) -> bool:
    """Whether ONNX Runtime refuses the file for its IR version or opset."""
    return model.ir_version > MOST_IR_VERSION or opset_of(model) > MOST_OPSET


def ir_version_for(model: onnx.ModelProto) -> int:
    """The IR version to write: `IR_VERSION`, unless one of the opsets needs a newer one."""
    return max(IR_VERSION, onnx.helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True))


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all initializers, wherever they are kept."""
    return sum(tensor_bytes(t) for t in model.graph.initializer)


def tensor_specs(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    """Specs of graph inputs or outputs; a dimension without length or real name is called '<tensor>_<axis>'."""
    return tuple(
        TensorSpec(
            value.name,
            dtype_name(value.type.tensor_type.elem_type),
            tuple(
                f"{value.name}_{axis}" if (known := known_dim(dim)) is None else known
                for axis, dim in enumerate(value.type.tensor_type.shape.dim)
            ),
        )
        for value in values
    )


def known_dim(dim: onnx.TensorShapeProto.Dimension) -> Dim | None:
    """Length or name; None where the exporter wrote a placeholder: nothing, '?' or -1. Two '?' are not one
    dimension."""
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    return None if dim.dim_param in ("", "?", "-1", "None") else dim.dim_param


def dtype_name(elem_type: int) -> str:
    """ONNX element type → NumPy's dtype name: FLOAT → float32, FLOAT16 → float16, BOOL → bool."""
    name: str = onnx.TensorProto.DataType.Name(elem_type).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def graph_inputs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """The inputs that a caller must feed: initializers that older models list as inputs are left out."""
    weights = {t.name for t in model.graph.initializer}
    return tensor_specs(v for v in model.graph.input if v.name not in weights)


def graph_outputs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    return tensor_specs(model.graph.output)


def external_files(path: Path, model: onnx.ModelProto) -> tuple[Path, ...]:
    root = path.parent.resolve()
    names = {e.value for t in all_tensors(model) for e in t.external_data if e.key == "location"}
    files = [path]
    for name in sorted(names):
        file = external_file(root, name, str(path))
        if not file.is_file():
            raise ModelError(f"{path}: external data '{shown(name)}' is missing", hint="copy it beside the model")
        files.append(file)
    return tuple(files)


def _external_place(path: Path, root: Path, tensor: onnx.TensorProto) -> tuple[Path, int]:
    """File and offset of a tensor's external data. Raises `ModelError` unless all of it is there."""
    what = f"{path}: tensor '{shown(tensor.name)}'"
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location, needed = fields.get("location", ""), tensor_bytes(tensor)
    file = external_file(root, location, what)
    offset = external_number(fields.get("offset", "0"), f"{what}: the offset of its external data,")
    length = external_number(fields.get("length", str(needed)), f"{what}: the length of its external data,")
    if not file.is_file():
        missing = f"{path}: external data '{shown(location)}' cannot be read: it is missing"
        raise ModelError(missing, hint="copy it beside the model")
    size = file.stat().st_size
    if length != needed or offset + length > size:
        raise ModelError(
            f"{what} needs {needed} bytes at offset {offset} of external data '{shown(location)}', which has {size} "
            f"bytes ({length} of them for this tensor)",
            hint="copy the whole file beside the model",
        )
    return file, offset


def without_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of all but the main graph's initializers."""
    shell = onnx.ModelProto()
    copy_fields(model, shell, but={"graph"})
    copy_fields(model.graph, shell.graph, but={"initializer"})
    return shell


def _is_as_written(spill: Path, tensors: Iterable[onnx.TensorProto]) -> bool:
    """Whether the file holds all large tensors, one after the other, aligned, and nothing else."""
    end = 0
    for tensor in tensors:
        if tensor_bytes(tensor) >= _DETACHED_FROM_BYTES:
            if not is_external(tensor) or external_span(tensor)[:2] != (spill, _aligned(end)):
                return False
            end = _aligned(end) + tensor_bytes(tensor)
    return end == spill.stat().st_size


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def _align(file: IO[bytes]) -> int:
    """Seek to the next multiple of the alignment, and return it."""
    return file.seek(_aligned(file.tell()))


def _write_external(tensor: onnx.TensorProto, written: onnx.TensorProto, file: IO[bytes] | None, location: str) -> None:
    """Append the tensor's values to the data file; small tensors and those without a raw form stay in the message.

    file: None where the values already are where they would be written.
    """
    if tensor_bytes(tensor) >= _DETACHED_FROM_BYTES:
        start = external_span(tensor)[1] if file is None else _align(file)
        if file is None or append_values(tensor, file):
            written.name, written.data_type, written.doc_string = tensor.name, tensor.data_type, tensor.doc_string
            written.dims.extend(tensor.dims)
            detach(written, Path(location), start)
            return
    written.CopyFrom(tensor)
    attach(written)
