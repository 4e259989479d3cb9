"""How a sandbox is started: its environment, its folders, and bubblewrap where it is asked for."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from engineworks.errors import InputError
from engineworks.host.child.start import Command

SETTING = "ENGINEWORKS_SANDBOX"
BWRAP, PROCESS = "bwrap", "process"
"""Its values: bubblewrap, or a process of its own that may write what we may. By default the kernel (`landlock`)
refuses writes outside of the temporary folder, where it can."""

BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from engineworks.host.sandbox.serve import serve; serve(int(sys.argv[2]), int(sys.argv[3]))"
)

_WITHHELD = re.compile(
    r"(?:ENGINEWORKS|MLFLOW|PREFECT|AWS|AZURE|GOOGLE|FSSPEC)_|.*(?:KEY|TOKEN|SECRET|PASSW|CREDENTIAL)", re.IGNORECASE
)
"""Names of variables that user code does not get: places of ours, and whatever may open something."""


def sandbox_command(environ: Mapping[str, str], cwd: Path, scratch: Path) -> Command:
    """Return how to start a sandbox whose temporary files lie in `scratch`. Raises `InputError` as `bubblewrap`."""
    env = {name: value for name, value in environ.items() if not _WITHHELD.match(name)}
    asked = {SETTING: environ[SETTING]} if environ.get(SETTING) else {}
    return Command(env | asked | {"TMPDIR": str(scratch)}, BOOTSTRAP, bubblewrap(environ, scratch), cwd)


def bubblewrap(environ: Mapping[str, str], scratch: Path | None = None) -> tuple[str, ...]:
    """Return the call of bubblewrap, () where the setting does not ask for it.

    Raises `InputError` for another setting, and where bubblewrap is not installed.
    """
    asked = environ.get(SETTING, "")
    if asked in ("", PROCESS):
        return ()
    if asked != BWRAP:
        raise InputError(
            f"{SETTING}={asked}: unknown sandbox", hint=f"set it to '{BWRAP}' or '{PROCESS}', or leave it out"
        )
    program = shutil.which(BWRAP, path=environ.get("PATH"))
    if program is None:
        raise InputError(
            f"{SETTING}={BWRAP}: bubblewrap is not installed", hint=f"install it, or run without {SETTING}"
        )
    writable = () if scratch is None else ("--bind", str(scratch), str(scratch))
    return (
        program, "--unshare-all", "--die-with-parent", "--new-session", "--ro-bind", "/", "/", "--dev-bind", "/dev",
        "/dev", "--tmpfs", "/dev/shm", "--proc", "/proc", *writable, "--",
    )  # fmt: skip
