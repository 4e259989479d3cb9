"""The findings of `engineworks doctor` as terminal text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineworks.report.terminal import echo, print_table

if TYPE_CHECKING:
    from engineworks.commands.doctor import Findings, TargetHere


def print_findings(findings: Findings) -> None:
    libraries = ((lib.name, lib.version or "not installed", lib.purpose) for lib in findings.libraries)
    print_table(("library", "version", "for"), libraries)
    targets = ((target.name, target.build or "yes", _run_and_measure(target)) for target in findings.targets)
    print_table(("target", "build here", "run and measure here"), targets)
    echo(findings.python_says)
    echo(_gpu_line(findings))
    for conflict in findings.conflicts:
        echo(f"conflict: {conflict}")
    if not findings.conflicts:
        echo("no conflicts")


def _run_and_measure(target: TargetHere) -> str:
    if target.run is not None:
        return target.run
    return "yes" if target.measure is None else f"yes, but {target.measure}"


def _gpu_line(findings: Findings) -> str:
    gpu = findings.gpu
    if gpu is None:
        return "GPU: none found (nvidia-smi is not there, or shows none)"
    facts = [gpu.name, f"compute capability {gpu.compute_capability or 'unknown'}", f"driver {gpu.driver}"]
    facts += [f"CUDA {gpu.cuda}"] if gpu.cuda else []
    facts += [f"{gpu.memory_mib} MiB"] if gpu.memory_mib is not None else []
    return f"GPU: {', '.join(facts)}; {findings.gpu_says}"
