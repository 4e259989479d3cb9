"""Data that a night needs for its recipes: opened once, asked for each of them."""

from __future__ import annotations

import json
from datetime import datetime
from functools import cached_property
from pathlib import Path

from engineworks.builds.command import NOT_ASKED, FinishedBuilds
from engineworks.errors import TrackingError
from engineworks.host.file_digests import FileDigests
from engineworks.host.git import Checkout
from engineworks.report.night.summary import NIGHT_JSON
from engineworks.settings import Settings
from engineworks.store.shared import open_store
from engineworks.store.store import Store
from engineworks.tracking.runs import Tracking, open_tracking
from engineworks.tracking.sending import send_waiting

LONGEST_BUILD_S = 86400.0
"""Builds that began at most this long before the last night may have ended after it."""


class Lookup:
    """Store, digests of files, checkouts and MLflow's finished builds as one night sees them.

    A plain class on purpose: Prefect walks through dataclasses and mappings passed to a task. What cannot be opened
    raises for every recipe that asks for it.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._checkouts: dict[Path, Checkout] = {}

    @cached_property
    def store(self) -> Store:
        """One store for all recipes, so that shared results are verified once."""
        return open_store(self.settings)

    @cached_property
    def digests(self) -> FileDigests:
        return FileDigests(self.settings.artifacts / "digests.db")

    def checkout(self, root: Path) -> Checkout:
        return self._checkouts.setdefault(root, Checkout(root))

    @cached_property
    def finished(self) -> FinishedBuilds:
        """The builds of the last night, and all later ones; the builds of other recipes are searched for one by one.

        Empty if MLflow does not answer: the next request reports that.
        """
        try:
            tracking = open_tracking(self.settings.artifacts, self.settings.tracking_uri)
            send_waiting(tracking, self.settings.artifacts)
            return finished_since_last_night(tracking)
        except TrackingError:
            return NOT_ASKED


def finished_since_last_night(tracking: Tracking) -> FinishedBuilds:
    """Return the finished builds; empty before the first night or without its record. Raises `TrackingError`."""
    try:
        night = json.loads(tracking.last_night_text(NIGHT_JSON) or "null")
        runs = [str(recipe["run"]) for recipe in (*night["recipes"], *night.get("absent", ())) if recipe["run"]]
        began = datetime.fromisoformat(night["at"]).timestamp() - float(night["seconds"])
    except (ValueError, KeyError, TypeError):
        return NOT_ASKED
    return tracking.finished_builds(runs, began - LONGEST_BUILD_S)
