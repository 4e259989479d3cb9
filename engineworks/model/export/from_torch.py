"""`torch: module:factory` → `model.onnx`. Runs in a child process: the factory is the user's code.

Which files it reads is recorded, so that none of them is missing from a fingerprint. Python reports every file that it
opens (`sys.addaudithook`, event "open"). Native code does not: safetensors, whose loader is such, is watched by its own
function; what other extensions open stays unseen.
"""

from __future__ import annotations

import importlib
import inspect
import os
import site
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engineworks.errors import ExportError, ModelError
from engineworks.host.lazy import Array
from engineworks.model.export.interface import ExportReport, Interface, require_packages
from engineworks.model.export.source_code import load_function, source_closure, user_failure

if TYPE_CHECKING:
    import torch

    Arrays = dict[str, Array]


SYSTEM_FOLDERS = (
    "/proc", "/sys", "/dev", "/etc", "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/tmp",
)  # fmt: skip

_listeners: list[Callable[[str], None]] = []
_hooked = False


@contextmanager
def recorded_reads() -> Iterator[set[Path]]:
    """The files opened for reading while the block runs, absolute; filled when the block ends, however it ends."""
    _add_hook()
    names: list[str] = []
    files: set[Path] = set()
    _listeners.append(names.append)
    try:
        with _watched_safetensors(names.append):
            yield files
    finally:
        _listeners.remove(names.append)
        files.update(path.resolve() for path in map(Path, names) if path.is_file())


def undeclared_reads(reads: Iterable[Path], root: Path, declared: Iterable[Path]) -> list[Path]:
    """Those of `reads` that shape the result but are neither declared (as files or folders) nor part of Python.

    Everything below `root` counts; elsewhere, all but the Python installation, system and temporary folders.
    A compiled file counts as its source.
    """
    root = root.resolve()
    known = {path.resolve() for path in declared}
    installed = [Path(p).resolve() for p in _installed_folders()]
    own_bytecode = {_cached(path) for path in known}

    def is_known(path: Path) -> bool:
        return path in known or path in own_bytecode or any(path.is_relative_to(k) for k in known)

    def is_foreign(path: Path) -> bool:
        if any(path.is_relative_to(folder) for folder in installed if not root.is_relative_to(folder)):
            return False
        return path.is_relative_to(root) or not any(path.is_relative_to(f) for f in _exempt_folders())

    return sorted(path for path in reads if not is_known(path) and is_foreign(path))


def _cached(source: Path) -> Path:
    name = f"{source.stem}.{sys.implementation.cache_tag}.pyc"
    return source.parent / "__pycache__" / name


def _installed_folders() -> set[str]:
    """Standard library and site-packages; a prefix such as /usr holds more than Python, that of a venv does not."""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    own = str(Path(__file__).parents[2])  # not in site-packages where it is worked on
    folders = {own, *(sysconfig.get_path(k) for k in kinds), *site.getsitepackages(), site.getusersitepackages()}
    return folders if sys.prefix == sys.base_prefix else {*folders, sys.prefix}


def _exempt_folders() -> list[Path]:
    return [Path(p).resolve() for p in (*SYSTEM_FOLDERS, tempfile.gettempdir())]


def _add_hook() -> None:
    """Once a process: an audit hook cannot be removed, only made silent."""
    global _hooked
    if not _hooked:
        sys.addaudithook(_on_event)
        _hooked = True


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not _listeners:
        return
    path, mode, flags = arguments
    if isinstance(path, (str, bytes)) and _reads(mode, flags):
        name = str(Path(os.fsdecode(path)).absolute())
        for listener in tuple(_listeners):
            listener(name)


def _reads(mode: str | None, flags: int | None) -> bool:
    if mode is not None:
        return "r" in mode or "+" in mode
    return (flags or 0) & os.O_ACCMODE != os.O_WRONLY


@contextmanager
def _watched_safetensors(listener: Callable[[str], None]) -> Iterator[None]:
    """While the block runs, every module's `safe_open` reports which file it opens."""
    try:
        original = importlib.import_module("safetensors").safe_open
    except ImportError:
        yield
        return

    def safe_open(filename: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        listener(str(Path(filename).absolute()))
        return original(filename, *args, **kwargs)

    _replace_everywhere(original, safe_open)
    try:
        yield
    finally:
        _replace_everywhere(safe_open, original)


def _replace_everywhere(old: object, new: object) -> None:
    modules: list[Any] = list(sys.modules.values())
    for module in modules:
        if getattr(module, "__dict__", {}).get("safe_open") is old:
            module.safe_open = new


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
