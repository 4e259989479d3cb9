"""Hostile and damaged input of every kind: each case ends with an exit code and a sentence, in 10 s and within 1 GiB.

Run: python benchmarks/hostile_input.py [--kind recipes] [--count 100] [--seed 16] [--show]
It forks a process per batch of cases, so that one that dies, hangs or takes too much memory is one case's failure.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from hostile_cases import KINDS, template

from engineworks.errors import EXIT_DEFECT
from engineworks.host.memory import peak_mib, reset_peak

RESULTS = Path(__file__).parent / "results"
BATCH = 100
LONGEST_S, MOST_MIB = 10.0, 1024.0
KILLED_AFTER_S = 30.0
ADDRESS_SPACE = 8 << 30
"""A case that asks for more gets a MemoryError, and the host stays well."""


def run_case(kind: str, seed: int, number: int, folder: Path) -> dict[str, Any]:
    """One case in this process: how each attempt ended, and what it took."""
    dice = random.Random(f"{kind} {seed} {number}")
    failures: list[str] = []
    codes: list[int] = []
    output = io.StringIO()
    try:
        attempts = KINDS[kind][0](folder, dice)
    except Exception:  # noqa: BLE001 - a mistake of this script's, which must not pass for a good end
        failures.append(f"the case could not be made: {traceback.format_exc()}")
        attempts = {}
    reset_peak()
    begin, longest = time.monotonic(), 0.0
    for name, attempt in attempts.items():
        start = time.monotonic()
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                code = attempt()
            codes.append(code)
            if code == EXIT_DEFECT:
                last = folder / "artifacts" / "defects" / "last.txt"
                failures.append(f"{name}: exit 70: {last.read_text() if last.is_file() else output.getvalue()[-500:]}")
        except BaseException:  # noqa: BLE001 - the outer boundary
            failures.append(f"{name}: {traceback.format_exc()}")
        longest = max(longest, time.monotonic() - start)
    if "Traceback (most recent call last)" in output.getvalue():
        failures.append(f"a traceback was printed: {output.getvalue()[-1500:]}")
    taken = peak_mib()
    if longest > LONGEST_S:
        failures.append(f"took {longest:.1f} s")
    if taken > MOST_MIB:
        failures.append(f"took {taken:.0f} MiB")
    return {
        "number": number, "failures": failures, "codes": codes, "seconds": round(time.monotonic() - begin, 3),
        "longest_s": round(longest, 3), "mib": round(taken),
    }  # fmt: skip


def run_kind(kind: str, seed: int, numbers: list[int]) -> Iterator[dict[str, Any]]:
    """Every case's outcome, from forked processes."""
    pending = list(numbers)
    template()
    while pending:
        batch, done = pending[:BATCH], 0
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            _work(kind, seed, batch, write)
        os.close(write)
        for line in _lines(read):
            done += 1
            yield json.loads(line)
        os.close(read)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if done < len(batch):
            why = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
            failures = [f"the process ended: {why}, or hung"]
            yield {"number": batch[done], "failures": failures, "codes": [], "longest_s": 0.0, "seconds": 0.0, "mib": 0}
            done += 1
        pending = pending[done:]


def _work(kind: str, seed: int, batch: list[int], write: int) -> None:
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    folder = Path(tempfile.mkdtemp(prefix="engineworks-hostile-"))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        for number in batch:
            value = run_case(kind, seed, number, folder / "repository")
            os.write(write, json.dumps(value).encode("utf-8", "surrogatepass") + b"\n")
    finally:
        os.chdir("/")
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)


def _lines(read: int) -> Iterator[bytes]:
    """Lines as they come; ends where nothing comes for too long."""
    rest = b""
    while select.select([read], [], [], KILLED_AFTER_S)[0]:
        data = os.read(read, 1 << 16)
        if not data:
            return
        *complete, rest = (rest + data).split(b"\n")
        yield from complete


def measure(kind: str, seed: int, count: int, *, show: bool) -> dict[str, Any]:
    begin, codes, failed = time.monotonic(), Counter[str](), Counter[str]()
    longest = most = 0.0
    first: list[Mapping[str, Any]] = []
    for outcome in run_kind(kind, seed, list(range(count))):
        codes.update(map(str, outcome["codes"]))
        longest, most = max(longest, outcome["longest_s"]), max(most, outcome["mib"])
        for failure in outcome["failures"]:
            last = failure.strip().splitlines()[-1][:160]
            if failed[last] == 0:
                first.append(outcome)
                if show:
                    print(f"--- {kind} {outcome['number']}\n{failure[-900:]}", flush=True)
            failed[last] += 1
        if outcome["number"] % 500 == 499:
            print(f"{kind}: {outcome['number'] + 1} of {count}, {sum(failed.values())} failed", flush=True)
    return {
        "cases": count, "seed": seed, "failed": sum(failed.values()), "failures": dict(failed.most_common(40)),
        "exit codes": dict(sorted(codes.items())), "longest_s": longest, "most_mib": most,
        "seconds": round(time.monotonic() - begin, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=list(KINDS), action="append")
    parser.add_argument("--count", type=int, help="cases of each kind; default: those of the figures")
    parser.add_argument("--seed", type=int, default=16)
    parser.add_argument("--show", action="store_true", help="print each defect once; write no results")
    given = parser.parse_args()
    file = RESULTS / "hostile-input-cpu.json"
    report = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for kind in given.kind or KINDS:
        report[kind] = measure(kind, given.seed, given.count or KINDS[kind][1], show=given.show)
        print(kind, json.dumps(report[kind]), flush=True)
        if not given.show:
            file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if any(kind["failed"] for kind in report.values()) else 0)


if __name__ == "__main__":
    main()
