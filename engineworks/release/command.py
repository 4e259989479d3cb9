"""`engineworks release`: the build, by the Prefect flow where something is to do, and then what was released of it."""

from __future__ import annotations

from collections.abc import Sequence

from engineworks.build_command import load_flows, recorded_result
from engineworks.plan import Plan
from engineworks.release.promotion import ReleaseResult, champions_before, release_build
from engineworks.settings import Settings
from engineworks.tracking import open_tracking


def release_plans(plans: Sequence[Plan], settings: Settings, *, only: str | None = None) -> list[ReleaseResult]:
    """Build, judge and release every plan; results come in the order of the plans."""
    results = []
    for plan in plans:
        tracking = open_tracking(settings.artifacts, settings.tracking_uri)
        champions = champions_before(plan, tracking.registry()) if not plan.to_do else {}
        recorded = recorded_result(plan, settings)
        if recorded is not None:
            results.append(release_build(plan, recorded, tracking, champions))
        else:
            results += load_flows()([plan], settings, only=only, release=True)
    return results
