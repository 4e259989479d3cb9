"""Garbage: artifacts that nothing refers to any more, and leftovers of killed builds.

In use is what the runs of every record noted in the store refer to, what waits to be recorded, the lineage of
champions, candidates and packages, and what running builds hold a lease on. Not knowing is not unused: where one of the
records cannot be asked, gc refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engineworks.errors import InputError, StoreError, TrackingError
from engineworks.settings import Settings
from engineworks.store.leases import Held, deciding, held_leases
from engineworks.store.lineage import lineage
from engineworks.store.record_notes import noted_records
from engineworks.store.shared import open_store
from engineworks.store.store import Store
from engineworks.typed_json import Record


@dataclass(frozen=True)
class Freed(Record):
    artifacts: int
    partial: int
    bytes: int
    kept: int
    dry_run: bool

    def summary(self) -> str:
        verb = "would free" if self.dry_run else "freed"
        return (
            f"{verb} {self.bytes / 2**20:.1f} MiB in {self.artifacts} artifacts and {self.partial} unfinished ones; "
            f"{self.kept} artifacts are in use or young"
        )


def collect_garbage(settings: Settings, *, keep_hours: float, dry_run: bool) -> Freed:
    """Delete artifacts older than `keep_hours` that are not in use.

    Raises `TrackingError` where a record is missing, empty, another store's, or does not answer: nothing is freed then.
    """
    if not keep_hours >= 0:
        raise InputError(f"--keep-hours: {keep_hours:g} is less than 0", hint="0 frees whatever is not in use")
    store, keep_s = open_store(settings), 3600 * keep_hours
    try:
        with deciding(store.root):  # builds that start now wait, and look again for what they use
            gone = _unused(store, settings, keep_s)
            freed = sum(store.size_of(key) if dry_run else store.remove(key) for key in gone)
    except OSError as error:
        raise StoreError(f"the store {store.root} cannot be written: {error.strerror}") from None
    partial = 0 if dry_run else store.sweep(keep_s)
    kept = sum(1 for _ in store.keys()) - (len(gone) if dry_run else 0)
    return Freed(len(gone), partial, freed, kept, dry_run)


def _unused(store: Store, settings: Settings, keep_s: float) -> list[str]:
    leases = held_leases(store.root)
    recorded = _recorded(store, settings)
    used = lineage(store, recorded.union(*(lease.keys for lease in leases)))
    return [key for key in store.keys() if key not in used and _is_old(store, key, keep_s, leases)]


def _is_old(store: Store, key: str, keep_s: float, leases: list[Held]) -> bool:
    """Whether the artifact is older than `keep_s` and than every running build."""
    age_s = store.age_s(key)
    return age_s > keep_s and all(age_s > lease.since.age_s() for lease in leases)


def _recorded(store: Store, settings: Settings) -> set[str]:
    """Return the keys that the record of these settings and every other one noted in the store refer to."""
    from engineworks.package.sources import packaged_keys
    from engineworks.tracking.existing import ELSEWHERE, open_existing
    from engineworks.tracking.runs import default_uri
    from engineworks.tracking.spool import keys_in_use

    mine = open_existing(settings.tracking_uri or default_uri(settings.artifacts))
    used = mine.keys_in_use() | keys_in_use(settings.artifacts) | packaged_keys(store.root)
    known = False
    for note, record in noted_records(store.root):
        place = Path(record.artifacts)
        used |= keys_in_use(place)
        if record.id == mine.id if record.id else place == settings.artifacts:
            known = True
            continue
        way_out = f"delete {note} if that record is gone for good, or run gc where it is"
        try:
            other = open_existing(record.uri)
        except TrackingError as error:
            message = f"the store {store.root} is used by another record: {error.message}"
            raise TrackingError(message, hint=way_out) from None
        if record.id and other.id != record.id:
            message = f"the store {store.root} is used by a record that was at {record.uri}, where another is now"
            raise TrackingError(message, hint=way_out)
        used |= other.keys_in_use()
    keys = set(store.keys())
    if keys and not known and used.isdisjoint(keys):
        raise TrackingError(
            f"the record {mine.shown} refers to nothing in the store {store.root}: nothing is freed, because another "
            f"record may need it",
            hint=ELSEWHERE,
        )
    return used
