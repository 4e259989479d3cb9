"""The user's own Python next to a recipe: which files a module is made of, and how one of its functions is loaded.

A name lies next to the recipe if `name.py` or `name/__init__.py` does; the folders between need no `__init__.py`, and
the standard library is never shadowed. Reading and importing follow this one rule, so that what is fingerprinted is
what runs, even where an installed package has the same name as a folder of the recipe.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import cache, lru_cache
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any

from engineworks.errors import ExportError, ModelError, did_you_mean

WRITES = "a recipe's code may write below its temporary folder only (module tempfile)"


def source_closure(module: str, root: Path) -> tuple[Path, ...]:
    """The module's file under `root`, then every file there that it imports, directly or not, sorted.

    Nothing is executed: imports are read from the syntax tree (`import_module("literal")` too). Empty if the module
    is not under `root`; a file that does not parse counts without its imports.
    """
    modules = local_modules(module, root)
    own = modules.pop(module, None)
    return () if own is None else (own, *sorted(set(modules.values()) - {own}))


def local_modules(module: str, root: Path) -> dict[str, Path]:
    """The same closure by module name, packages under the name of the package."""
    modules: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = find_module(name, root)
        if name in modules or path is None:
            continue
        modules[name] = path
        waiting.extend(_parents(name))
        waiting.extend(_imported_names(name, path))
    return modules


def imported_distributions(module: str, root: Path) -> dict[str, str]:
    """Installed distributions that the closure imports, with their versions: they shape what a factory returns."""
    from importlib import metadata  # takes longer to import than all else here

    modules = local_modules(module, root)
    names = {n.partition(".")[0] for name, path in modules.items() for n in _imported_names(name, path)}
    local = {name.partition(".")[0] for name in modules}
    versions: dict[str, str] = {}
    for name in sorted(names - local - sys.stdlib_module_names):
        for distribution in _distributions().get(name, ()):
            versions[distribution] = metadata.version(distribution)
    return versions


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Distributions by the top-level module they bring; reads all installed metadata, so only once."""
    from importlib import metadata

    return metadata.packages_distributions()


def find_module(name: str, root: Path) -> Path | None:
    """The file of a dotted module name under `root`, None if it is not there."""
    parts = name.split(".")
    if not all(p.isidentifier() for p in parts) or parts[0] in sys.stdlib_module_names:
        return None
    base = root.joinpath(*parts)
    files = (base / "__init__.py", base.with_name(base.name + ".py"))
    return next((f for f in files if f.is_file()), None)


def load_function(reference: str, root: Path, *, role: str) -> Callable[..., Any]:
    """Import `module:function`, `root` before the installed modules. `role` names it in messages, e.g. "factory".

    Raises `ModelError` if module or function are missing, `ExportError` if the module's own code raises on import.
    """
    module_name, _, function_name = reference.partition(":")
    module = _import(module_name, root, f"{role} '{reference}'")
    function = getattr(module, function_name, None)
    if callable(function):
        return function  # type: ignore[no-any-return]
    where = module.__file__ or module_name
    if function is not None:
        raise ModelError(f"{where}: {role} '{function_name}' is a {type(function).__name__}, not a function")
    defined = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]
    hint = did_you_mean(function_name, defined)
    raise ModelError(f"{where}: no function '{function_name}' for the {role} '{reference}'", hint=hint)


def user_failure(error: BaseException, root: Path, doing: str) -> ExportError:
    """What the user's code raised, at its own last line; the whole traceback is in `log`."""
    log = "".join(traceback.format_exception(error))
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{_shown(error.filename, root)}:{error.lineno or 0}:{error.offset or 0}"
    else:
        place = _last_place(error.__traceback__, root)
    last = traceback.format_exception_only(error)[-1].strip()
    hint = WRITES if isinstance(error, PermissionError) else ""
    return ExportError(f"{place + ': ' if place else ''}{doing} raised {last}", hint=hint, log=log)


def _last_place(trace: TracebackType | None, root: Path) -> str:
    frames = traceback.extract_tb(trace)
    own = [f for f in frames if Path(f.filename).is_relative_to(root)]
    return f"{_shown(own[-1].filename, root)}:{own[-1].lineno}" if own else ""


def _shown(filename: str, root: Path) -> str:
    path = Path(filename)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else filename


def _parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _imported_names(name: str, path: Path) -> Iterator[str]:
    """Every dotted name that the file may import; most are not modules, the caller looks which are there."""
    yield from _names_in(path.read_bytes(), name if path.name == "__init__.py" else name.rpartition(".")[0])


@lru_cache(maxsize=64)
def _names_in(source: bytes, package: str) -> tuple[str, ...]:
    """Names that this source may import in `package`. Kept, because recipes of a folder share their modules."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ()
    return tuple(name for node in ast.walk(tree) for name in _names_at(node, package))


def _names_at(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = _absolute(node, package)
        if base:
            yield base
        yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names)
    elif isinstance(node, ast.Call):
        yield from _literal_import(node, package)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """The module that `from X import …` names, made absolute as `importlib` does."""
    if not node.level:
        return node.module or ""
    parts = package.split(".") if package else []
    parts = parts[: max(0, len(parts) - node.level + 1)]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _literal_import(node: ast.Call, package: str) -> Iterator[str]:
    function = node.func
    called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if called in ("import_module", "__import__") and node.args:
        argument = node.args[0]
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            yield package + argument.value if argument.value.startswith(".") else argument.value


class _SourceLoader(SourceFileLoader):
    """Compiles the source each time: bytecode of an edit within the same second would be stale."""

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


class _LocalFinder:
    """Finds the modules of one closure at their files, and the plain folders above them as namespace packages."""

    def __init__(self, modules: Mapping[str, Path], root: Path) -> None:
        self._files = modules
        self._folders = {p: root.joinpath(*p.split(".")) for m in modules for p in _parents(m) if p not in modules}

    @property
    def names(self) -> set[str]:
        return {*self._files, *self._folders}

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name in self._files:
            file = self._files[name]
            folder = [str(file.parent)] if file.name == "__init__.py" else None
            loader = _SourceLoader(name, str(file))
            return importlib.util.spec_from_file_location(name, file, loader=loader, submodule_search_locations=folder)
        if name in self._folders:
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(self._folders[name])]
            return spec
        return None


def _import(name: str, root: Path, doing: str) -> ModuleType:
    modules = local_modules(name, root)
    if name not in modules and not _is_installed(name):
        raise _missing(name, root, doing)
    finder = _LocalFinder(modules, root)
    for stale in finder.names:  # another recipe's module of the same name
        sys.modules.pop(stale, None)
    sys.meta_path[:] = [finder, *(f for f in sys.meta_path if not isinstance(f, _LocalFinder))]
    if str(root) not in sys.path:
        sys.path.append(str(root))
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except BaseException as error:  # the user's code may raise anything, also SystemExit
        if isinstance(error, ModuleNotFoundError) and name not in modules and f"{name}.".startswith(f"{error.name}."):
            raise _missing(name, root, doing) from None  # its package is there, in another place
        raise user_failure(error, root, f"{doing}: importing '{name}'") from error


def _missing(name: str, root: Path, doing: str) -> ModelError:
    expected = root.joinpath(*name.split("."))
    return ModelError(
        f"{doing}: there is no module '{name}'",
        hint=f"looked for {expected}.py, {expected / '__init__.py'} and an installed module '{name}'",
    )


def _is_installed(name: str) -> bool:
    """Whether the top-level package can be found; nothing is imported for it."""
    try:
        return importlib.util.find_spec(name.partition(".")[0]) is not None
    except ValueError:
        return False
