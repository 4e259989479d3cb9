"""Garbage: artifacts that no MLflow run refers to, and leftovers of killed builds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engineworks.settings import Settings
from engineworks.store.open import open_store


@dataclass(frozen=True)
class Freed:
    artifacts: int
    partial: int
    bytes: int
    kept: int
    dry_run: bool

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    def sentence(self) -> str:
        verb = "would free" if self.dry_run else "freed"
        return (
            f"{verb} {self.bytes / 2**20:.1f} MiB in {self.artifacts} artifacts and {self.partial} unfinished ones; "
            f"{self.kept} artifacts are in use or young"
        )


def collect_garbage(settings: Settings, *, keep_hours: float, dry_run: bool) -> Freed:
    """Delete artifacts older than `keep_hours` that no run refers to. A running build's artifacts are younger."""
    from engineworks.tracking.runs import open_tracking
    from engineworks.tracking.spool import keys_in_use

    store = open_store(settings)
    in_use = open_tracking(settings.artifacts, settings.tracking_uri).digests_in_use()
    in_use |= keys_in_use(settings.artifacts)
    keep_s = 3600 * keep_hours
    gone = [key for key in store.keys() if key not in in_use and store.age_s(key) > keep_s]
    freed = sum(store.size_of(key) if dry_run else store.remove(key) for key in gone)
    partial = 0 if dry_run else store.sweep(keep_s)
    kept = sum(1 for _ in store.keys()) - (len(gone) if dry_run else 0)
    return Freed(len(gone), partial, freed, kept, dry_run)
