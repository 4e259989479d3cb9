"""The document of a champion comparison: the measuring step's document, the limits and the attempt's number.

The next build repeats a comparison that did not decide. Attempts that measured count, whatever their time limit
(`max_s` is no part of the key). Each further one needs more confidence (`measure.regression.confidence_of`), so
rebuilding cannot force a pass. A comparison that found a regression is never repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engineworks.fingerprint import digest_of
from engineworks.measure.champion import Champion, Champions
from engineworks.measure.champion_report import ChampionComparison, Earlier
from engineworks.measure.regression import confidence_of
from engineworks.plan.kinds import STEP_KINDS
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
    """Make the comparison's document and unkeyed inputs from those of the measuring step.

    The attempt's number, and with it the key, rises while the store holds an undecided report of this attempt. Unkeyed:
    `earlier`, the results of attempts that measured, and `by_history`, whether the champion could not run here last
    time.
    """
    measured, unkeyed = measure
    document = measured | {"step": "compare_champion", "version": STEP_KINDS["compare_champion"].version}
    document["inputs"] = {role: key for role, key in measured["inputs"].items() if role != "lower"}
    document["digests"] = {**measured["digests"], "champion": champion.digest}
    shapes = {name: {k: v for k, v in at.items() if k != "tail"} for name, at in measured["params"]["at"].items()}
    params = {k: v for k, v in measured["params"].items() if k not in _OF_MEASURING_ALONE}
    earlier: list[Document] = []
    attempt, by_history = 0, False
    while True:
        shared = {"limit": regression["latency"], "confidence": confidence_of(len(earlier))}
        document["params"] = {**params, **shared, "at": shapes, "attempt": attempt}
        report = _undecided(store, digest_of(document))
        if report is None:
            break
        by_history = report.method == "history"
        earlier += [] if by_history else [report.to_json()]
        attempt += 1
    more = {
        "champion": champion.to_json(), "places": champions.places, "conditions": conditions_of(measured),
        "max_s": regression["max_s"], "earlier": earlier, "by_history": by_history,
    }  # fmt: skip
    return document, {**{k: v for k, v in unkeyed.items() if k == "evaluation"}, **more}


def conditions_of(measure: Mapping[str, Any]) -> str:
    """Digest what measurements depend on besides the engine and the versions that built it. Measurements with the same
    digest may be compared."""
    params = {
        k: v
        for k, v in measure["params"].items()
        if k not in ("at", "samples", "disturbed_before", *_OF_MEASURING_ALONE)
    }
    shapes = {name: at["dims"] for name, at in measure["params"]["at"].items()}
    return digest_of({"hardware": measure["hardware"], "shapes": shapes, **params})


def _undecided(store: Store, key: str) -> Earlier | None:
    """Return the report of the attempt with this key if it exists and did not decide, else None."""
    if not store.has(key) or (artifact := store.get(key)) is None:
        return None
    report = artifact.read(ChampionComparison)
    verdicts = {shape.verdict for shape in report.shapes.values()}
    if report.method == "identical":
        return None
    if report.method != "history" and ("fail" in verdicts or "inconclusive" not in verdicts):
        return None
    return Earlier(key, report.method, report.confidence, report.shapes)
