"""A git revision → the recipes and engines that changed since."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from engineworks.plan.changed import Changes, find_changes
from engineworks.settings import read_settings


@task(name="changed", task_run_name="changed since {since}", cache_policy=NO_CACHE)
def find_changed(since: str, recipes: Sequence[str] | None) -> Changes:
    return find_changes(since, [Path(r) for r in recipes] if recipes else None, read_settings())
