"""The document of a champion comparison: the measuring step's own, the limits, and which attempt it is.

A comparison that did not decide is tried again by the next build. Attempts that measured are counted, whatever time
they were given (`max_s` is no part of the key), and each further one needs more confidence
(`measure.regression.confidence_of`), so that rebuilding cannot force a pass. One that has found a
regression is never tried again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engineworks.fingerprint import digest_of
from engineworks.measure.champion import Champion, Champions
from engineworks.measure.regression import confidence_of
from engineworks.plan.kinds import CHAMPION_COMPARISON_FILE, STEP_KINDS
from engineworks.store.store import Store

Document = dict[str, Any]
Report = dict[str, Any]

_OF_MEASURING_ALONE = ("sweep", "streams")


def champion_comparison_document(
    measure: tuple[Document, Mapping[str, Any]],
    champion: Champion,
    champions: Champions,
    regression: Mapping[str, Any],
    store: Store,
) -> tuple[Document, dict[str, Any]]:
    """From the measuring step's document and its unkeyed inputs. While the store holds a report of this attempt that
    did not decide, the number of the attempt, and with it the key, is the next. Unkeyed: `earlier`, the
    results of the attempts that measured, and `by_history`, whether at the last one the champion did not run here."""
    measured, unkeyed = measure
    document = measured | {"step": "compare_champion", "version": STEP_KINDS["compare_champion"].version}
    document["digests"] = {**measured["digests"], "champion": champion.digest}
    shapes = {name: {k: v for k, v in at.items() if k != "tail"} for name, at in measured["params"]["at"].items()}
    params = {k: v for k, v in measured["params"].items() if k not in _OF_MEASURING_ALONE}
    earlier: list[Report] = []
    attempt, by_history = 0, False
    while True:
        shared = {"limit": regression["latency"], "confidence": confidence_of(len(earlier))}
        document["params"] = {**params, **shared, "at": shapes, "attempt": attempt}
        report = _undecided(store, digest_of(document))
        if report is None:
            break
        by_history = report["method"] == "history"
        earlier += [] if by_history else [report]
        attempt += 1
    more = {
        "champion": champion.to_json(), "places": champions.places, "conditions": conditions_of(measured),
        "max_s": regression["max_s"], "earlier": earlier, "by_history": by_history,
    }  # fmt: skip
    return document, {**{k: v for k, v in unkeyed.items() if k == "evaluation"}, **more}


def conditions_of(measure: Mapping[str, Any]) -> str:
    """Digest of what the figures of a measuring step depend on besides the engine and the versions that built it:
    measurements that have it in common may be compared."""
    params = {
        k: v
        for k, v in measure["params"].items()
        if k not in ("at", "samples", "disturbed_before", *_OF_MEASURING_ALONE)
    }
    shapes = {name: at["dims"] for name, at in measure["params"]["at"].items()}
    return digest_of({"hardware": measure["hardware"], "shapes": shapes, **params})


def summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """A champion comparison's report without its samples."""
    shapes = {name: dict(figures) for name, figures in report.get("shapes", {}).items()}
    return {**report["champion"], "method": report["method"], "limit": report["limit"], "shapes": shapes}


def _undecided(store: Store, key: str) -> Report | None:
    """The report of the attempt with this key, if it did not decide; None where it did, or was not made yet."""
    if not store.has(key) or (artifact := store.get(key)) is None:
        return None
    report = artifact.read_json(CHAMPION_COMPARISON_FILE)
    words = {shape["verdict"] for shape in report.get("shapes", {}).values()}
    if report["method"] != "history" and ("fail" in words or "inconclusive" not in words):
        return None
    return {"key": key, **{k: report[k] for k in ("method", "confidence", "shapes") if k in report}}
