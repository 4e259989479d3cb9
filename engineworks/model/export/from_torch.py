"""`torch: module:factory` → `model.onnx`. Runs in a child process: the factory is the user's code."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engineworks.errors import ExportError, ModelError
from engineworks.host.lazy import Array
from engineworks.model.export.file_reads import recorded_reads, undeclared_reads
from engineworks.model.export.interface import ExportReport, Interface, require_packages
from engineworks.model.export.source_code import load_function, source_closure, user_failure

if TYPE_CHECKING:
    import torch

    Arrays = dict[str, Array]


def export_torch(
    factory: str, root: Path, interface: Interface, out: Path, *, files: Sequence[Path] = ()
) -> ExportReport:
    """Call the factory (no arguments; returns a module, or a module and example inputs) and export what it returns.

    `out` is an existing, empty folder. Raises `ModelError` for a missing module, function or package and for a module
    that does not fit the interface; `ExportError` (traceback in `log`) for what the factory or the module raised, for
    a file that it read and `files` does not list, and where no exporter gives a right model.
    """
    from engineworks.model.export.torch_onnx import TORCH_PACKAGES, write_onnx

    require_packages(TORCH_PACKAGES, extra="torch", doing=f"the PyTorch model '{factory}'")
    root = root.resolve()
    module, examples = load_module(factory, root, interface, files)
    return write_onnx(module, interface, out, root=root, examples=examples)


def load_module(
    factory: str, root: Path, interface: Interface, files: Sequence[Path]
) -> tuple[torch.nn.Module, Arrays | None]:
    """The module that the factory makes, eval'd, on the CPU, and its example inputs; always with the same random
    weights. `root` is absolute. Raises as `export_torch`. Leaves PyTorch with one thread."""
    use_one_thread()
    with recorded_reads() as reads:
        made = _call(factory, root)
    declared = [*source_closure(factory.partition(":")[0], root), *files]
    _refuse_undeclared(undeclared_reads(reads, root, declared), root)
    module, examples = _module_and_examples(made, factory, interface)
    return module.eval().cpu(), examples


def use_one_thread() -> None:
    """Two torch threads were 5 to 17 times slower than one on small machines; the order of sums is fixed, too."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)


def _call(factory: str, root: Path) -> Any:
    function = load_function(factory, root, role="factory")
    try:
        return function()
    except BaseException as error:  # the user's code may raise anything, also SystemExit or an error of ours
        raise user_failure(error, root, f"factory '{factory}'") from error


def _refuse_undeclared(paths: Sequence[Path], root: Path) -> None:
    if not paths:
        return
    shown = [p.relative_to(root).as_posix() if p.is_relative_to(root) else str(p) for p in paths]
    many = ", ".join(f"'{s}'" for s in shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
    them = "it" if len(shown) == 1 else "them"
    raise ExportError(
        f"the factory read {many}, which model.files does not list", hint=f"list {them} so that a change rebuilds"
    )


def _module_and_examples(made: Any, factory: str, interface: Interface) -> tuple[torch.nn.Module, Arrays | None]:
    import torch

    module, examples = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, torch.nn.Module):
        what = f"the class {module.__name__}" if inspect.isclass(module) else f"a {type(module).__name__}"
        raise ModelError(
            f"factory '{factory}' returned {what}, not a torch.nn.Module",
            hint="return the module, or (module, example_inputs)",
        )
    return module, None if examples is None else _named_examples(examples, factory, interface)


def _named_examples(examples: Any, factory: str, interface: Interface) -> Arrays:
    """Example inputs by name, checked against the recipe's dtypes and shapes."""
    import torch

    names = [spec.name for spec in interface.inputs]
    if isinstance(examples, torch.Tensor):
        examples = (examples,)
    given = dict(examples) if isinstance(examples, Mapping) else dict(zip(names, examples, strict=False))
    count = len(examples)
    if set(given) != set(names) or count != len(names):
        raise ModelError(
            f"factory '{factory}' gave {count} example inputs ({', '.join(given)}), the recipe has {', '.join(names)}"
        )
    arrays: Arrays = {}
    lengths: dict[str, int] = {}
    for spec in interface.inputs:
        value = given[spec.name]
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        if array.dtype.name != spec.dtype or not _fits(array.shape, spec.shape, lengths):
            what = f"{array.dtype.name}{list(array.shape)}"
            raise ModelError(f"factory '{factory}': example input '{spec.name}' is {what}, the recipe says {spec}")
        arrays[spec.name] = array
    return arrays


def _fits(got: tuple[int, ...], expected: Sequence[int | str], lengths: dict[str, int]) -> bool:
    """Whether a shape is what the recipe says; a dimension's name has one length in all examples, never 0."""
    if len(got) != len(expected) or 0 in got:
        return False
    return all(g == (lengths.setdefault(s, g) if isinstance(s, str) else s) for g, s in zip(got, expected, strict=True))
