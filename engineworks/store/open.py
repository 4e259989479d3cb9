"""Opens the store that the settings name."""

from __future__ import annotations

import os
from pathlib import Path

from engineworks.settings import Settings
from engineworks.store.remote import RemoteStore
from engineworks.store.shared import SharedStore
from engineworks.store.store import Store


def open_store(settings: Settings) -> Store:
    """Return the store of the settings: a local folder, or any fsspec URL with `<artifacts>/store` as its cache.

    Raises `StoreError` for a URL that fsspec does not know.
    """
    if "://" not in settings.store:
        return Store(Path(os.path.realpath(Path(settings.store).expanduser())))
    remote = RemoteStore(settings.store)
    return Store(Path(remote.root)) if remote.is_local else SharedStore(settings.artifacts / "store", remote)
