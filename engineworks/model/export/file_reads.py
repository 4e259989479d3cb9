"""Which files a piece of the user's code reads, so that none of them is missing from a fingerprint.

Python reports every file that it opens (`sys.addaudithook`, event "open"). Native code does not: safetensors, whose
loader is such, is watched by its own function; what other extensions open stays unseen.
"""

from __future__ import annotations

import importlib
import os
import site
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SYSTEM_FOLDERS = (
    "/proc",
    "/sys",
    "/dev",
    "/etc",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/share/zoneinfo",
    "/tmp",
)

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
