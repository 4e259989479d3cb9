"""TF32, and how TensorRT-RTX is kept from using it.

Products of fp32 with 10 bits of mantissa have an error of 1e-3: they are no fp32, and on in the vendor's default.
TensorRT heeds its builder flag. TensorRT-RTX 1.6 on Hopper does not: there only the driver's own switch,
NVIDIA_TF32_OVERRIDE=0, gives fp32 products (seen on an H100: error 1e-3 without, 1e-5 with it). An engine remembers the
switch of its build and refuses to run under another, so whoever serves such an engine must set it too: its sidecar says
so under `environment`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

SWITCH = "NVIDIA_TF32_OVERRIDE"

INCONSISTENT = re.compile(rf"Inconsistent setting of {SWITCH} env var at build (-?\d+) and at execution")
"""How TensorRT-RTX 1.6 says that an engine was built under another switch; -1 is none."""


def environment(precision: str, *, rtx: bool, tf32: bool) -> Mapping[str, str]:
    """What must be set where an engine is built and run. Only fp32 engines are bound to it: where nearly everything is
    computed in a lower precision, the last bits of the rest are not worth a condition on who serves the engine."""
    return {SWITCH: "0"} if rtx and precision == "fp32" and not tf32 else {}


@contextmanager
def switched(values: Mapping[str, str]) -> Iterator[None]:
    """Let the switch be as these values say while an engine is built."""
    before = os.environ.get(SWITCH)
    _set(values.get(SWITCH))
    try:
        yield
    finally:
        _set(before)


def follow_switch(log: str) -> bool:
    """Set the switch as the vendor's log says that an engine wants it. False if the log says nothing of it."""
    match = INCONSISTENT.search(log)
    if match is not None:
        _set(None if match[1] == "-1" else match[1])
    return match is not None


def _set(value: str | None) -> None:
    if value is None:
        os.environ.pop(SWITCH, None)
    else:
        os.environ[SWITCH] = value
