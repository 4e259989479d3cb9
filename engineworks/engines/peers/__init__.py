"""The table of peers, the frameworks to compare engines with on request. A new peer is a module and a line here.

A peer runs the same model on the same samples with the same timing; its outputs are compared with the same fp32
reference. A peer that cannot run is a row with the reason and never fails a build.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import cast

from engineworks.engines.peers.base import Peer
from engineworks.errors import InputError, did_you_mean

PEERS: Mapping[str, str] = {
    "pytorch": "engineworks.engines.peers.pytorch",
    "ort-cpu": "engineworks.engines.peers.ort_cpu",
    "ort-cuda": "engineworks.engines.peers.ort_cuda",
    "genai": "engineworks.engines.peers.genai",
}


def peer(name: str) -> Peer:
    """Return the peer's module; does not import its framework. Raises `InputError` for an unknown name."""
    if name not in PEERS:
        raise InputError(f"--compare: unknown peer '{name}'", hint=did_you_mean(name, PEERS))
    return cast(Peer, importlib.import_module(PEERS[name]))


def read_names(text: str | None) -> tuple[str, ...]:
    """'pytorch,ort-cpu' → the distinct names in the table's order. Raises `InputError` for an unknown one."""
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in names:
        peer(name)
    return tuple(name for name in PEERS if name in names)
