"""Artifacts by digest: on this host, and shared between hosts behind a URL."""

from engineworks.store.store import FULL, MANIFEST, Artifact, Store, open_store

__all__ = ["Artifact", "FULL", "MANIFEST", "Store", "open_store"]
