"""Whether this host can run a target's engines. (Being written beside: replaced at the merge.)"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engineworks.backends._gpu import first_gpu

if TYPE_CHECKING:
    from engineworks.backends._trt import Vendor


def why_not_run_here(vendor: Vendor, compute_capabilities: Sequence[str]) -> str | None:
    gpu = first_gpu()
    if not vendor.versions():
        return f"{vendor.title} is not installed"
    if gpu is None:
        return "there is no NVIDIA GPU here"
    if gpu.compute_capability not in compute_capabilities:
        return f"the {gpu.name} here has compute capability {gpu.compute_capability}"
    return None
