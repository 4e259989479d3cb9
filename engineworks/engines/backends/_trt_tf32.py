"""Keeps TensorRT-RTX from using TF32.

TF32 products have a 10-bit mantissa and an error of 1e-3: they are not fp32, although the vendor's default enables
them. TensorRT obeys its builder flag. TensorRT-RTX 1.6 on Hopper does not: only the driver's switch
NVIDIA_TF32_OVERRIDE=0 gives fp32 products (on an H100: error 1e-3 without, 1e-5 with it). An engine refuses to run
under another value than its build's, so a server must set it too: the sidecar lists it under `environment`.

A process keeps the value under which it made its first context, whatever the variable says later. An engine of
ResNet-50 in fp32 that was loaded after one in fp16 gave products in TF32, without a word: 5 times the error, in a third
of the time (TensorRT-RTX 1.6.1, H200). Such a load is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from engineworks.errors import RunError

SWITCH = "NVIDIA_TF32_OVERRIDE"

INCONSISTENT = re.compile(rf"Inconsistent setting of {SWITCH} env var at build (-?\d+) and at execution")
"""How TensorRT-RTX 1.6 reports an engine built under another switch; -1 means unset."""


def environment(precision: str, *, rtx: bool, tf32: bool) -> Mapping[str, str]:
    """Return the variables to set where an engine is built and run. Only fp32 engines need them: in lower precisions
    the last bits do not justify a condition on the server."""
    return {SWITCH: "0"} if rtx and precision == "fp32" and not tf32 else {}


@contextmanager
def switched(values: Mapping[str, str]) -> Iterator[None]:
    """Set the switch to these values while an engine is built."""
    before = os.environ.get(SWITCH)
    _set(values.get(SWITCH))
    try:
        yield
    finally:
        _set(before)


def follow_switch(log: str) -> bool:
    """Set the switch as the engine requires by the vendor's log. False if the log does not mention it."""
    match = INCONSISTENT.search(log)
    if match is not None:
        _set(None if match[1] == "-1" else match[1])
    return match is not None


def keep_switch() -> None:
    """Call it after the first context of a TensorRT-RTX engine. Raises `RunError` where this process has run engines
    with TF32 and the engine must not."""
    if not _kept:
        _kept.append(os.environ.get(SWITCH))
    elif os.environ.get(SWITCH) == "0" != _kept[0]:
        raise RunError(
            "this process has run another engine with TF32, which TensorRT-RTX now uses for every engine, and this one "
            "was built without",
            hint="load engines in fp32 first, or in a process of their own",
        )


_kept: list[str | None] = []
"""The switch's value at this process's first context."""


def _set(value: str | None) -> None:
    if value is None:
        os.environ.pop(SWITCH, None)
    else:
        os.environ[SWITCH] = value
