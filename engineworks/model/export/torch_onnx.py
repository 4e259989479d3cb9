"""A PyTorch module → `model.onnx`: example inputs, two exporters, and a check against the module itself.

The dynamo exporter comes first, the TorchScript one if that fails. An export counts only if it passes ONNX's checker
and ONNX Runtime gives the module's own outputs at two sets of lengths, so that a shape frozen while tracing is found
here and not in an engine. Nothing random is left in the file: same module, same bytes.
"""

from __future__ import annotations

import inspect
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engineworks.errors import EngineworksError, ExportError, ModelError
from engineworks.host.lazy import Array, onnx
from engineworks.model.export.interface import ExportReport, Interface, folder_bytes, versions_of
from engineworks.model.export.source_code import user_failure
from engineworks.model.export.torch_graph import convert_opset, name_interface, name_nodes, opset_of
from engineworks.model.export.trials import Trial, compare_outputs, difference_of, trial_inputs
from engineworks.model.onnx_files import EXTERNAL_ABOVE_BYTES, IR_VERSION, MODEL_FILE

if TYPE_CHECKING:
    import torch
    from onnxscript import ir

    Arrays = dict[str, Array]

TORCH_PACKAGES: Mapping[str, str] = {"torch": "torch", "onnxscript": "onnxscript"}
WRAPPED = "wrapped"
"""Attribute that holds the user's module; taken off the names of nodes and weights."""

DATA_FILE = MODEL_FILE + ".data"
DYNAMO, TORCHSCRIPT = "torch.onnx (dynamo)", "torch.onnx (TorchScript)"
DYNAMO_OPSET = 18
"""Oldest opset that the dynamo exporter writes; older ones are converted from it."""


def write_onnx(
    module: torch.nn.Module, interface: Interface, out: Path, *, root: Path, examples: Arrays | None = None
) -> ExportReport:
    """Export an eval'd module into the folder `out` as MODEL_FILE (weights above 256 MiB in DATA_FILE).

    examples: arrays by input name, in the recipe's dtypes and shapes, to trace and to check with; default: made from
    the interface. root: the recipe's folder, for messages. Raises `ModelError` if the module does not fit the
    interface, `ExportError` if it fails or no exporter gives a model with the module's outputs."""
    started = time.monotonic()
    wrapped = _wrap(module, interface)
    trials = [_try_module(wrapped, interface, inputs, root) for inputs in trial_inputs(interface, examples)]
    repeatable = difference_of(trials[-1].outputs, _run(wrapped, trials[-1].inputs, interface, root)) is not None
    failures: list[tuple[str, Exception]] = []
    for exporter, export in ((DYNAMO, _export_dynamo), (TORCHSCRIPT, _export_torchscript)):
        try:
            notes = _export_checked(export, wrapped, interface, out, trials, repeatable)
        except Exception as error:  # noqa: BLE001  the exporters raise whatever their parts raise
            failures.append((exporter, error))
            continue
        notes += [f"{name} failed: {_one_line(error)}" for name, error in failures]
        files = tuple(name for name in (MODEL_FILE, DATA_FILE) if (out / name).is_file())
        return ExportReport(
            exporter, interface.opset, files, folder_bytes(out, files), time.monotonic() - started, tuple(notes),
            versions_of("torch", "onnxscript", "onnx", "onnx-ir"),
        )  # fmt: skip
    raise ExportError(
        "no exporter gave a model: " + "; ".join(f"{name}: {_one_line(error)}" for name, error in failures),
        log="\n".join("".join(traceback.format_exception(error)) for _, error in failures),
    )


def _wrap(module: torch.nn.Module, interface: Interface) -> torch.nn.Module:
    """Takes the recipe's inputs in order and returns its outputs in order, all plain tensors.

    The module gets its inputs by name if `forward` has all of these names, else by position.
    """
    import torch

    names = tuple(spec.name for spec in interface.inputs)
    by_name = takes_names(module, names)

    class Wrapped(torch.nn.Module):  # type: ignore[misc]  # torch is not there for mypy
        def __init__(self) -> None:
            super().__init__()
            setattr(self, WRAPPED, module)

        def forward(self, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
            result = module(**dict(zip(names, args, strict=True))) if by_name else module(*args)
            return plain_outputs(result, tuple(interface.outputs))

    return Wrapped().eval()


def takes_names(module: torch.nn.Module, names: tuple[str, ...]) -> bool:
    """Whether `forward` has a parameter of every input's name; otherwise inputs go by position."""
    return set(names) <= set(inspect.signature(module.forward).parameters)


def plain_outputs(result: Any, names: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
    """The named outputs of what a module returned, in this order. Raises `ModelError` where it has others."""
    import torch

    if isinstance(result, Mapping):
        missing = [n for n in names if result.get(n) is None]
        if missing:
            there = ", ".join(k for k, v in result.items() if isinstance(v, torch.Tensor))
            raise ModelError(f"the model has no output '{missing[0]}'", hint=f"its outputs are: {there}")
        values = [result[n] for n in names]
    else:
        values = [result] if isinstance(result, torch.Tensor) else list(result)
        if len(values) != len(names):
            raise ModelError(
                f"the model returns {len(values)} values, the recipe names {len(names)} outputs ({', '.join(names)})"
            )
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, torch.Tensor):
            raise ModelError(f"output '{name}' of the model is a {type(value).__name__}, not a tensor")
    return tuple(values)


def _try_module(
    wrapped: torch.nn.Module, interface: Interface, trial: tuple[dict[str, int], Arrays], root: Path
) -> Trial:
    lengths, inputs = trial
    outputs = _run(wrapped, inputs, interface, root)
    for name, shape in interface.outputs.items():
        got = outputs[name].shape
        expected = tuple(lengths.get(d) if isinstance(d, str) else d for d in shape)
        if len(got) != len(expected) or any(s not in (None, g) for s, g in zip(expected, got, strict=True)):
            at = f" at {Trial(lengths, {}, {})}" if lengths else ""
            wanted = f"[{', '.join(map(str, shape))}]"
            raise ModelError(f"output '{name}' of the model has shape {list(got)}{at}; the recipe says {wanted}")
    return Trial(lengths, inputs, outputs)


def _run(wrapped: torch.nn.Module, inputs: Arrays, interface: Interface, root: Path) -> Arrays:
    import torch

    shown = ", ".join(f"{name} {list(a.shape)}" for name, a in inputs.items())
    try:
        with torch.no_grad():
            results = wrapped(*_tensors(inputs))
    except EngineworksError:
        raise
    except Exception as error:  # the user's module may raise anything
        raise user_failure(error, root, f"the model, called with {shown},") from error
    return {n: r.detach().to("cpu").float().numpy() if r.dtype == torch.bfloat16 else r.detach().cpu().numpy()
            for n, r in zip(interface.outputs, results, strict=True)}  # fmt: skip


def _tensors(inputs: Arrays) -> tuple[torch.Tensor, ...]:
    import torch

    return tuple(torch.from_numpy(np.array(array)) for array in inputs.values())


def _export_checked(
    export: Callable[[torch.nn.Module, Interface, Arrays], tuple[ir.Model, list[str]]], wrapped: torch.nn.Module,
    interface: Interface, out: Path, trials: list[Trial], repeatable: bool,
) -> list[str]:  # fmt: skip
    """Export, write and check; returns notes for the report."""
    model, notes = export(wrapped, interface, trials[-1].inputs)
    name_nodes(model, WRAPPED)
    convert_opset(model, interface.opset)
    if opset_of(model) != interface.opset:
        raise ExportError(
            f"opset {interface.opset} is not available, only {opset_of(model)}",
            hint=f"set model.opset: {opset_of(model)}",
        )
    name_interface(model, interface)
    model.ir_version = min(model.ir_version, IR_VERSION)
    _save(model, out)
    onnx.checker.check_model(str(out / MODEL_FILE))
    if not repeatable:
        return [*notes, "two runs of the module differ: its outputs were not compared"]
    worst = compare_outputs(out / MODEL_FILE, trials)
    shapes = "; ".join(map(str, trials))
    return [*notes, f"outputs agree with PyTorch's ({shapes}), largest relative difference {worst:.1e}"]


def _save(model: ir.Model, out: Path) -> None:
    from onnxscript import ir

    (out / DATA_FILE).unlink(missing_ok=True)  # of an exporter that failed
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if weights > EXTERNAL_ABOVE_BYTES:
        ir.save(model, out / MODEL_FILE, external_data=DATA_FILE, size_threshold_bytes=1024)
    else:
        ir.save(model, out / MODEL_FILE)


def _export_dynamo(wrapped: torch.nn.Module, interface: Interface, inputs: Arrays) -> tuple[ir.Model, list[str]]:
    import torch

    several = {dim for dim, lengths in interface.lengths().items() if lengths != (1,)}
    shapes = tuple({a: d for a, d in enumerate(s.shape) if d in several} or None for s in interface.inputs)
    with torch.no_grad():
        program = torch.onnx.export(
            wrapped, _tensors(inputs), dynamo=True, verbose=False,
            opset_version=max(interface.opset, DYNAMO_OPSET), dynamic_shapes={"args": shapes},
        )  # fmt: skip
    if program is None:
        raise ExportError("the exporter returned nothing")
    return program.model, []


def _export_torchscript(wrapped: torch.nn.Module, interface: Interface, inputs: Arrays) -> tuple[ir.Model, list[str]]:
    """Traced with the example's values; what tracing may have frozen is noted. The weights are read back into memory,
    as the exporter may write them as files."""
    import torch
    from onnxscript import ir

    names = [f"engineworks_input_{i}" for i in range(len(interface.inputs))]
    outputs = [f"engineworks_output_{i}" for i in range(len(interface.outputs))]
    shapes = (*(s.shape for s in interface.inputs), *interface.outputs.values())
    axes = {
        n: {a: d for a, d in enumerate(s) if isinstance(d, str)} for n, s in zip(names + outputs, shapes, strict=True)
    }
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as warned, torch.no_grad():
        warnings.simplefilter("always")
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            wrapped, _tensors(inputs), str(path), dynamo=False, verbose=False, opset_version=interface.opset,
            input_names=names, output_names=outputs, dynamic_axes=axes,
        )  # fmt: skip
        model = ir.from_proto(onnx.load(str(path)))
    frozen = sorted({f"{Path(w.filename).name}:{w.lineno}" for w in warned if w.category is torch.jit.TracerWarning})
    return model, [f"the trace may have frozen a choice at {place}" for place in frozen[:5]]


def _one_line(error: BaseException) -> str:
    """First informative line; exporters wrap their reasons in pages."""
    lines = [line.strip() for line in str(error).splitlines()]
    message = next((line for line in lines if line and not line.startswith(("#", "==", "--"))), "")
    kind = "" if isinstance(error, EngineworksError) else f"{type(error).__name__}: "
    return f"{kind}{message}"[:300]
