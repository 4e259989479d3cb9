"""Python environments beside the present one: everything that is installed here, with some packages in other versions.

A new environment sees the packages of this one, and holds only what differs. It is made once per set of requirements.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from engineworks.errors import InputError

REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9][A-Za-z0-9._!+-]*)")

READY_FILE = "engineworks.json"
"""Written last: an environment without it was never finished."""

INSTALL_LIMIT_S = 1800.0


def check_requirement(text: str) -> tuple[str, str]:
    """Return name and version. Raises `InputError` for anything but NAME==VERSION."""
    match = REQUIREMENT.fullmatch(text.strip())
    if match is None:
        raise InputError(f"--with: '{text}' is no package with a version", hint="write NAME==VERSION")
    return match["name"], match["version"]


def make_environment(requirements: Sequence[str], folder: Path, echo: Callable[[str], None]) -> Path:
    """Make the environment, unless it is there, and return its Python.

    requirements: NAME==VERSION each. Raises `InputError` where pip cannot install one.
    """
    wanted = dict(check_requirement(text) for text in requirements)
    paths = _search_path()
    asked = {"packages": wanted, "python": sys.version, "paths": paths}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    place = folder / digest
    python = place / "bin" / "python"
    if (place / READY_FILE).is_file():
        return python
    shutil.rmtree(place, ignore_errors=True)
    echo(f"new environment with {', '.join(requirements)}")
    place.parent.mkdir(parents=True, exist_ok=True)
    _call([sys.executable, "-m", "venv", "--without-pip", str(place)], "a new environment cannot be made")
    (packages,) = (place / "lib").glob("python*/site-packages")
    (packages / "engineworks-present.pth").write_text("\n".join(paths) + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install"]
    pip += ["--quiet", "--no-input", "--disable-pip-version-check"]
    _call([*pip, *requirements], f"pip cannot install {', '.join(requirements)}")
    for name, version in wanted.items():
        code = f"import importlib.metadata as m; print(m.version({name!r}))"
        found = _call([str(python), "-c", code], f"{name} is not importable").strip()
        if found != version:
            raise InputError(f"{name} {version} was asked for, and {found} is what the new environment uses")
    (place / READY_FILE).write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")
    return python


def _search_path() -> list[str]:
    """The folders from which this process imports packages, ours among them."""
    own = str(Path(__file__).resolve().parents[2])
    folders = [path for path in sys.path if path and Path(path).is_dir() and "site-packages" in path]
    return list(dict.fromkeys([*folders, own]))


def _call(command: Sequence[str], what: str) -> str:
    """Run a command of the environment's making. Raises `InputError` with the last line that it printed."""
    environ = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    try:
        done = subprocess.run(
            list(command), capture_output=True, text=True, env=environ, timeout=INSTALL_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"{what}: {error}") from None
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        last = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "no reason")
        raise InputError(f"{what}: {last.removeprefix('ERROR: ')}", hint="does this version exist for this Python?")
    return done.stdout
