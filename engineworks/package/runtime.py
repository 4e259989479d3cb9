"""The part of Engineworks that a served Python model runs, as one zip file: the server needs no Engineworks.

A served engine computes what was compared, because it is the code that ran then. The zip holds the modules that the
model imports, found by following import statements, those inside functions too. Each is there twice: its source, and
its code compiled by the Python that packaged it. Another version of Python finds that the code is not its own and
compiles the source, which takes 0.2 s.
"""

from __future__ import annotations

import ast
import importlib.util
import marshal
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from engineworks.engines.backends import BACKENDS, backend
from engineworks.host.packages import installed_version
from engineworks.model.export.source_code import find_module

RUNTIME_FILE = "runtime.zip"
REQUIREMENTS_FILE = "requirements.txt"

PACKAGE = "engineworks"
ENTRY = "engineworks.package.python_model"
UNCHECKED = (1).to_bytes(4, "little")
"""The flags of compiled code that is not compared with its source (PEP 552); the package's manifest has its digest."""

NO_REFERENCES = 2
"""marshal's last version without back references, which depend on what else the process holds."""

EARLIEST = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip can hold: the same modules give the same bytes."""

MODEL = '''"""{title} in Triton's Python backend. It needs the packages of requirements.txt, and no Engineworks."""

import gc
import os
import sys
from pathlib import Path

gc.disable()  # nothing is garbage until the model is ready, and searching for it takes time
sys.path.insert(0, str(Path(__file__).with_name("{runtime}")))
sys.path += filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))  # Triton's stub ignores it
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # else pydantic reads the metadata of every distribution

from engineworks.package import python_model  # noqa: E402


class TritonPythonModel(python_model.TritonPythonModel):
    def initialize(self, args):
        super().initialize(args)
        gc.freeze()  # what is loaded stays: no request waits for a search through it
        gc.enable()
'''


def write_python_model(folder: Path, version: Path, name: str, versions: Mapping[str, str]) -> None:
    """Write `model.py` and the runtime into the version's folder, and `requirements.txt` into the model's.

    name: the engines' backend. versions: of the libraries that built the engine.
    """
    text = MODEL.format(title=backend(name).TITLE, runtime=RUNTIME_FILE)
    (version / "model.py").write_text(text, encoding="utf-8")
    _write_zip(version / RUNTIME_FILE, runtime_modules(name))
    (folder / REQUIREMENTS_FILE).write_text("\n".join(requirements(name, versions)) + "\n", encoding="utf-8")


def requirements(name: str, versions: Mapping[str, str]) -> list[str]:
    """Return what the model's Python needs, as pip requirements: the versions that built the engine, else ours."""
    wanted = backend(name).TRAITS.triton.requires
    pinned = {d: versions.get(d) or installed_version(d) for d in wanted}
    return [f"{d}=={version}" if version else d for d, version in pinned.items()]


def runtime_modules(name: str) -> Mapping[str, Path]:
    """Return the file of every module that the model of this backend imports, by its path in the zip."""
    root = Path(__file__).parents[1]
    found: dict[str, Path] = {}
    pending = [ENTRY, BACKENDS[name]]
    while pending:
        module = pending.pop()
        file = find_module(module, root.parent)
        if file is None or module in found:
            continue
        found[module] = file
        pending += [module.rpartition(".")[0], *(_imports(file) if module != PACKAGE else ())]
    return {file.relative_to(root.parent).as_posix(): file for file in found.values()}


@cache
def _imports(file: Path) -> tuple[str, ...]:
    return tuple(name for name in _imported(file) if name.split(".")[0] == PACKAGE)


def _imported(file: Path) -> Iterator[str]:
    """Yield the modules that a file imports when it runs, and names in them."""
    pending: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        for_types = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        pending += () if for_types else ast.iter_child_nodes(node)


def _write_zip(path: Path, files: Mapping[str, Path]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            source = files[name].read_bytes()
            for entry, data in ((name, source), (f"{name}c", _compiled(source, name))):
                archive.writestr(zipfile.ZipInfo(entry, EARLIEST), data, zipfile.ZIP_DEFLATED)


def _compiled(source: bytes, name: str) -> bytes:
    """Return the contents of a .pyc file of this Python, in which tracebacks name the file `name`."""
    code = compile(source, name, "exec", dont_inherit=True, optimize=0)
    unchecked = importlib.util.MAGIC_NUMBER + UNCHECKED + importlib.util.source_hash(source)
    return unchecked + marshal.dumps(code, NO_REFERENCES)
