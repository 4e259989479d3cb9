"""A build in a child process: engines are built by C++ that may hang, crash, or swallow Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engineworks.backends import backend, builder
from engineworks.backends.base import BuildReport, BuildRequest, report_from_json, request_from_json
from engineworks.child import default_pool
from engineworks.errors import BuildError


def build_in_child(
    backend_name: str,
    request: BuildRequest,
    *,
    time_limit_s: float,
    log_file: Path,
    on_line: Callable[[str], None] | None = None,
    cancel: threading.Event | None = None,
) -> BuildReport:
    """Build an engine; its report's details also hold `memory_mib_peak`, MiB.

    log_file: gets every line of the build as it comes, and is there however the build ends. on_line: gets them too.
    Raises what the builder raises, `BuildError` also for a crash, `TimeLimitError`, `Interrupted`.
    """
    with log_file.open("w", encoding="utf-8", buffering=1) as log:

        def keep(line: str) -> None:
            log.write(line + "\n")
            if on_line is not None:
                on_line(line)

        answer = default_pool().run(
            f"{__name__}:build_here", {"backend": backend_name, "request": request.to_json()},
            time_limit_s=time_limit_s, on_line=keep, cancel=cancel, error=BuildError,
            what=f"the {backend(backend_name).TITLE} build of {request.model.name} in {request.precision}",
        )  # fmt: skip
    report = report_from_json(answer)
    return replace(report, details={**report.details, "memory_mib_peak": answer["memory_mib_peak"]})


def build_here(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The job of the child: build, print the log."""
    name = payload["backend"]
    build = builder(name)
    if build is None:
        raise BuildError(f"backend '{name}' runs engines, it does not build them")
    return build.build(request_from_json(payload["request"]), _say).to_json()


def _say(line: str) -> None:
    import sys

    sys.stdout.write(line.rstrip("\n") + "\n")


def prestart_builders(backend_names: Iterable[str], *, count: int = 1) -> None:
    """Start children that import what builds with these backends need, while we do something else."""
    imports = dict.fromkeys(module for name in backend_names for module in backend(name).IMPORTS)
    default_pool().prestart([__name__, *imports], count=count)
