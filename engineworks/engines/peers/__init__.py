"""What engines are compared with, on request: one literal table. Adding one is a module and a line here.

A peer runs the same model on the same samples and is timed in the same way; its outputs are compared with the same
fp32 reference. What it cannot do is a row with a sentence: a peer never fails a build.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import cast

from engineworks.engines.peers.base import Peer
from engineworks.errors import InputError
from engineworks.suggest import did_you_mean

PEERS: Mapping[str, str] = {
    "pytorch": "engineworks.engines.peers.pytorch",
    "ort-cpu": "engineworks.engines.peers.ort_cpu",
    "ort-cuda": "engineworks.engines.peers.ort_cuda",
}


def peer(name: str) -> Peer:
    """The peer's module; its framework is not imported. Raises `InputError` for a name that is not in the table."""
    if name not in PEERS:
        raise InputError(f"--compare: unknown peer '{name}'", hint=did_you_mean(name, PEERS))
    return cast(Peer, importlib.import_module(PEERS[name]))


def read_names(text: str | None) -> tuple[str, ...]:
    """'pytorch,ort-cpu' → the names, each once, in the table's order. Raises `InputError` for an unknown one."""
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in names:
        peer(name)
    return tuple(name for name in PEERS if name in names)
