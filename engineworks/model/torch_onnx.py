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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engineworks.errors import EngineworksError, ExportError, ModelError
from engineworks.model.export import ExportReport, Interface, folder_bytes, versions_of
from engineworks.model.onnx_files import EXTERNAL_ABOVE_BYTES, IR_VERSION, MODEL_FILE
from engineworks.model.source_code import user_failure
from engineworks.model.torch_graph import convert_opset, name_interface, name_nodes, opset_of

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[np.generic]]

TORCH_PACKAGES: Mapping[str, str] = {"torch": "torch", "onnxscript": "onnxscript"}
WRAPPED = "wrapped"
"""Attribute that holds the user's module; taken off the names of nodes and weights."""

DYNAMO, TORCHSCRIPT = "torch.onnx (dynamo)", "torch.onnx (TorchScript)"
DYNAMO_OPSET = 18
"""Oldest opset that the dynamo exporter writes; older ones are converted from it."""

TOLERANCE = {"float16": 3e-2, "bfloat16": 3e-2}
"""Largest difference from the module's outputs, relative to their largest absolute value; 1e-3 for other dtypes."""


@dataclass(frozen=True)
class Trial:
    """The module's own outputs for one set of inputs."""

    lengths: Mapping[str, int]
    inputs: Arrays
    outputs: Arrays

    def __str__(self) -> str:
        return ", ".join(f"{dim}={n}" for dim, n in self.lengths.items()) or "fixed shapes"


def write_onnx(
    module: torch.nn.Module, interface: Interface, out: Path, *, root: Path, examples: Arrays | None = None
) -> ExportReport:
    """Export an eval'd module into the folder `out` as MODEL_FILE (weights above 1 GiB beside it).

    examples: inputs to trace and to check with; default: made from the interface. root: the recipe's folder, for
    messages. Raises `ModelError` if the module does not fit the interface, `ExportError` if it fails or no exporter
    gives a model with the module's outputs.
    """
    started = time.monotonic()
    wrapped = _wrap(module, interface)
    trials = [_try_module(wrapped, interface, inputs, root) for inputs in trial_inputs(interface, examples)]
    repeatable = _difference(trials[-1].outputs, _run(wrapped, trials[-1].inputs, interface, root)) is not None
    notes: list[str] = [] if repeatable else ["two runs of the module differ: its outputs were not compared"]
    failures: list[tuple[str, Exception]] = []
    for exporter, export in ((DYNAMO, _export_dynamo), (TORCHSCRIPT, _export_torchscript)):
        try:
            worst = _export_checked(export, wrapped, interface, out, trials, repeatable)
        except Exception as error:  # the exporters raise whatever their parts raise
            failures.append((exporter, error))
            continue
        if worst is not None:
            shapes = "; ".join(map(str, trials))
            notes.append(f"outputs agree with PyTorch's ({shapes}), largest relative difference {worst:.1e}")
        notes.extend(f"{name} failed: {_one_line(error)}" for name, error in failures)
        files = tuple(sorted((p.name for p in out.iterdir()), key=lambda n: (n != MODEL_FILE, n)))
        return ExportReport(
            exporter, interface.opset, files, folder_bytes(out, files), time.monotonic() - started, tuple(notes),
            versions_of("torch", "onnxscript", "onnx", "onnx-ir"),
        )  # fmt: skip
    raise ExportError(
        "no exporter gave a model: " + "; ".join(f"{name}: {_one_line(error)}" for name, error in failures),
        log="\n".join("".join(traceback.format_exception(error)) for _, error in failures),
    )


def trial_inputs(interface: Interface, examples: Arrays | None) -> list[tuple[dict[str, int], Arrays]]:
    """Inputs at the smallest lengths of the profiles, and at the next larger ones (those are traced: no length is 1
    if it may be 2, as tracing would freeze it). Given examples are cut or repeated to those lengths.
    """
    lengths = interface.lengths()
    low = {dim: known[0] for dim, known in lengths.items()}
    high = {dim: known[min(1, len(known) - 1)] for dim, known in lengths.items()}
    found = []
    for dims in (low, high) if low != high else (low,):
        shapes = {spec.name: spec.concrete(dims) for spec in interface.inputs}
        if examples is None:
            found.append((dims, _made_inputs(interface, shapes)))
        else:
            found.append((dims, {name: _fitted(examples[name], shape) for name, shape in shapes.items()}))
    return found


def _made_inputs(interface: Interface, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    """Normal numbers for floats; 0 and 1 for integers: valid as token ids, masks and segments of every model."""
    draw = np.random.default_rng(0)
    inputs: Arrays = {}
    for spec in interface.inputs:
        shape = shapes[spec.name]
        if spec.dtype.startswith("float"):
            inputs[spec.name] = draw.standard_normal(shape).astype(spec.dtype)
        else:
            values = draw.integers(0, 2, shape)
            values[..., :1] = 1  # no row is masked as a whole
            inputs[spec.name] = values.astype(spec.dtype)
    return inputs


def _fitted(array: NDArray[np.generic], shape: tuple[int, ...]) -> NDArray[np.generic]:
    for axis, length in enumerate(shape):
        array = np.take(array, np.arange(length) % array.shape[axis], axis=axis)
    return np.ascontiguousarray(array)


def _wrap(module: torch.nn.Module, interface: Interface) -> torch.nn.Module:
    """Takes the recipe's inputs in order and returns its outputs in order, all plain tensors.

    The module gets its inputs by name if `forward` has all of these names, else by position.
    """
    import torch

    names = tuple(spec.name for spec in interface.inputs)
    by_name = set(names) <= set(inspect.signature(module.forward).parameters)

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, WRAPPED, module)

        def forward(self, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
            result = module(**dict(zip(names, args, strict=True))) if by_name else module(*args)
            return _plain_outputs(result, tuple(interface.outputs))

    return Wrapped().eval()


def _plain_outputs(result: Any, names: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
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
            raise ModelError(f"the model returns {len(values)} values, the recipe names {len(names)} outputs ({', '.join(names)})")
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
        said = tuple(lengths.get(d) if isinstance(d, str) else d for d in shape)
        if len(got) != len(said) or any(s not in (None, g) for s, g in zip(said, got, strict=True)):
            at = f" at {Trial(lengths, {}, {})}" if lengths else ""
            raise ModelError(
                f"output '{name}' of the model has shape {list(got)}{at}; the recipe says [{', '.join(map(str, shape))}]"
            )
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
    export: Callable[[torch.nn.Module, Interface, Arrays], ir.Model], wrapped: torch.nn.Module, interface: Interface,
    out: Path, trials: list[Trial], repeatable: bool,
) -> float | None:  # fmt: skip
    """Export, write and check; the largest relative difference from the module's outputs, None if not compared."""
    import onnx

    model = export(wrapped, interface, trials[-1].inputs)
    name_nodes(model, WRAPPED)
    convert_opset(model, interface.opset)
    if opset_of(model) != interface.opset:
        raise ExportError(f"opset {interface.opset} can not be had, only {opset_of(model)}", hint=f"set model.opset: {opset_of(model)}")
    name_interface(model, interface)
    model.ir_version = min(model.ir_version, IR_VERSION)
    for stale in out.iterdir():
        stale.unlink()
    _save(model, out)
    onnx.checker.check_model(str(out / MODEL_FILE))
    return _compare(out / MODEL_FILE, trials) if repeatable else None


def _save(model: ir.Model, out: Path) -> None:
    import onnx_ir as ir

    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if weights > EXTERNAL_ABOVE_BYTES:
        ir.save(model, out / MODEL_FILE, external_data=f"{MODEL_FILE}.data", size_threshold_bytes=1024)
    else:
        ir.save(model, out / MODEL_FILE)


def _compare(path: Path, trials: list[Trial]) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for trial in trials:
        results = session.run(None, trial.inputs)
        got = dict(zip(trial.outputs, results, strict=True))
        difference = _difference(trial.outputs, got)
        if difference is None:
            raise ExportError(f"the exported model's outputs differ from the module's at {trial}")
        worst = max(worst, difference)
    return worst


def _difference(expected: Arrays, got: Arrays) -> float | None:
    """Largest absolute difference relative to the largest expected value of the same output; None if it is too large
    or shapes, NaNs or more than 1 % of the integers differ."""
    worst = 0.0
    for name, right in expected.items():
        value = got[name]
        if value.shape != right.shape:
            return None
        if right.dtype.kind != "f":
            if right.size and np.mean(value == right) < 0.99:
                return None
            continue
        right, value = right.astype(np.float64), value.astype(np.float64)
        finite = np.isfinite(right)
        if not np.array_equal(finite, np.isfinite(value)):
            return None
        scale = float(np.abs(right[finite]).max(initial=0.0))
        off = float(np.abs(right[finite] - value[finite]).max(initial=0.0))
        relative = off / scale if scale else off
        if relative > TOLERANCE.get(expected[name].dtype.name, 1e-3):
            return None
        worst = max(worst, relative)
    return worst


def _export_dynamo(wrapped: torch.nn.Module, interface: Interface, inputs: Arrays) -> ir.Model:
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
    return program.model


def _export_torchscript(wrapped: torch.nn.Module, interface: Interface, inputs: Arrays) -> ir.Model:
    """Traced with the example's values; weights are read back into memory, as the exporter may write them as files."""
    import onnx
    import onnx_ir as ir
    import torch

    names = [f"engineworks_input_{i}" for i in range(len(interface.inputs))]
    outputs = [f"engineworks_output_{i}" for i in range(len(interface.outputs))]
    shapes = (*(s.shape for s in interface.inputs), *interface.outputs.values())
    axes = {
        n: {a: d for a, d in enumerate(s) if isinstance(d, str)} for n, s in zip(names + outputs, shapes, strict=True)
    }
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            wrapped, _tensors(inputs), str(path), dynamo=False, verbose=False, opset_version=interface.opset,
            input_names=names, output_names=outputs, dynamic_axes=axes,
        )  # fmt: skip
        return ir.from_proto(onnx.load(str(path)))


def _one_line(error: BaseException) -> str:
    """First line that says something; exporters wrap their reasons in pages."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = next((line for line in lines if line and not line.startswith(("#", "==", "--"))), "")
    kind = "" if isinstance(error, EngineworksError) else f"{type(error).__name__}: "
    return f"{kind}{said}"[:300]
