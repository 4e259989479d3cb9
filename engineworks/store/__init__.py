"""Artifacts by digest: on this host, and shared between hosts behind a URL."""

from engineworks.store.artifact import MANIFEST, Artifact
from engineworks.store.open import open_store
from engineworks.store.store import FULL, Store

__all__ = ["Artifact", "FULL", "MANIFEST", "Store", "open_store"]
