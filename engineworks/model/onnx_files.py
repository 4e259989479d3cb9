"""ONNX files on disk: read and write, with weights next to the file where one protobuf message cannot hold them."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from engineworks.errors import ModelError
from engineworks.host.lazy import onnx
from engineworks.host.regular_files import open_regular
from engineworks.model.graphs import all_tensors, copy_fields, inner_tensors
from engineworks.model.soundness import check_raw, check_sound, external_file, external_number, make_dense, shown
from engineworks.model.tensor_storage import append_values, attach, detach, is_external, tensor_bytes
from engineworks.model.wire import Span, without_raw_data
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
    model, _ = _parsed(path, lambda file: (file.read(), {}))
    check_sound(model, path)
    if weights:
        _load_external(model, path)
    make_dense(model, str(path))
    return model


def load_detached(path: Path) -> onnx.ModelProto:
    """Parse the ONNX file without the values of its large initializers, which refer to where they lie in it: it costs
    the graph's memory alone. Those in other files stay as they are (`detach_weights`). Raises `ModelError` as
    `load_model`."""
    model, spans = _parsed(path, _light)
    for index, (start, end) in spans.items():
        detach(model.graph.initializer[index], path.resolve(), start, end - start)
    check_sound(model, path)
    for index, (start, end) in spans.items():
        tensor = model.graph.initializer[index]
        check_raw(tensor, end - start, f"{path}: tensor '{shown(tensor.name)}'")
    make_dense(model, str(path))
    return model


def _light(file: IO[bytes]) -> tuple[bytes, dict[int, Span]]:
    try:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return without_raw_data(data, _DETACHED_FROM_BYTES)
    except (IndexError, ValueError):  # empty, or no protobuf, which the parser says
        return file.read(), {}


def _parsed(
    path: Path, read: Callable[[IO[bytes]], tuple[bytes, dict[int, Span]]]
) -> tuple[onnx.ModelProto, dict[int, Span]]:
    from google.protobuf.message import DecodeError

    try:
        with open_regular(path) as file:
            content, spans = read(file)
        model = onnx.load_model_from_string(content)
    except DecodeError:
        raise ModelError(f"{path}: not an ONNX model: its protobuf does not parse") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: the model cannot be read: {error}") from None
    if not model.graph.node or not model.opset_import:
        raise ModelError(f"{path}: not an ONNX model: it holds no nodes or no opset", hint="is this another format?")
    return model, spans


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
    """A copy of `model`, as `load_model(path, weights=False)` or `load_detached` gave it, whose weights stay on disk:
    every large initializer refers to its bytes in the model's own files, or in `spill`, which is written. Other tensors
    are held whole. `model` is used up.

    Raises `ModelError` for external data that is missing, outside of the folder or cut short.
    """
    external_files(path, model)
    root = path.parent.resolve()
    for tensor, _ in external_tensors(model, path):
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
            start = file.tell()
            if append_values(tensor, file):
                detach(tensor, spill, start)
    # Protobuf frees a message's memory only as a whole: the copy is without what was cleared.
    light: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    return light


def save_model(model: onnx.ModelProto, path: Path, *, beside: bool = False) -> None:
    """Write the model to `path`, its weights to `<path>.data` when large or with `beside`. The same model gives
    the same bytes.

    `model` is left as it was. Detached weights are copied from where they are, without being held in memory when
    they go next to the file. Raises `ModelError` if the rest does not fit into one message, and for an opset that ONNX
    Runtime does not read.
    """
    from google.protobuf.message import EncodeError

    shell = without_initializers(model)
    shell.ir_version = ir_version_for(model)
    if is_too_new(shell):
        raise ModelError(f"{path}: the model would be opset {opset_of(shell)}, above {MOST_OPSET}")
    data = path.with_name(path.name + ".data")
    data.unlink(missing_ok=True)
    if beside or weight_bytes(model) > EXTERNAL_ABOVE_BYTES:
        with data.open("wb") as file:
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


def external_tensors(model: onnx.ModelProto, path: Path) -> Iterator[tuple[onnx.TensorProto, dict[str, str]]]:
    """Yield the tensors with external data, and what their entries say; without those whose values `load_detached` left
    in the model's own file."""
    own = str(path.resolve())
    for tensor in all_tensors(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if (entries or is_external(tensor)) and entries.get("location") != own:
            yield tensor, entries


def external_files(path: Path, model: onnx.ModelProto) -> tuple[Path, ...]:
    root = path.parent.resolve()
    names = {entries["location"] for _, entries in external_tensors(model, path) if "location" in entries}
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


def _write_external(tensor: onnx.TensorProto, written: onnx.TensorProto, file: IO[bytes], location: str) -> None:
    """Append the tensor's values to the data file; small tensors and those without a raw form stay in the message."""
    if tensor_bytes(tensor) >= _DETACHED_FROM_BYTES:
        file.seek(-file.tell() % _ALIGNMENT, 1)
        start = file.tell()
        if append_values(tensor, file):
            written.name, written.data_type, written.doc_string = tensor.name, tensor.data_type, tensor.doc_string
            written.dims.extend(tensor.dims)
            detach(written, Path(location), start)
            return
    written.CopyFrom(tensor)
    attach(written)
