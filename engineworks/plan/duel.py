"""The document of a duel: the measuring step's own, and what the two engines are held to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engineworks.champion import Champion, Champions
from engineworks.fingerprint import digest_of
from engineworks.steps import STEP_KINDS
from engineworks.store import Store

DUEL_FILE = "duel.json"

Document = dict[str, Any]

_OF_MEASURING_ALONE = ("sweep", "streams")


def duel_document(
    measure: tuple[Document, Mapping[str, Any]],
    champion: Champion,
    champions: Champions,
    regression: Mapping[str, Any],
    store: Store,
) -> tuple[Document, dict[str, Any]]:
    """From the measuring step's document and aside. A result that did not decide is no reason not to try again: while
    the store holds such a one, the number of the attempt, and with it the key, is the next."""
    measured, aside = measure
    document = measured | {"step": "duel", "version": STEP_KINDS["duel"].version}
    document["digests"] = {**measured["digests"], "champion": champion.digest}
    shapes = {name: {k: v for k, v in at.items() if k != "tail"} for name, at in measured["params"]["at"].items()}
    params = {k: v for k, v in measured["params"].items() if k not in _OF_MEASURING_ALONE}
    limits = {"limit": regression["latency"], "most_s": regression["most_s"]}
    attempt = 0
    while True:
        document["params"] = {**params, **limits, "at": shapes, "attempt": attempt}
        if not _undecided(store, digest_of(document)):
            break
        attempt += 1
    places = {"champion": champion.to_json(), "places": champions.places, "conditions": conditions_of(measured)}
    return document, {**{k: v for k, v in aside.items() if k == "evaluation"}, **places}


def conditions_of(measure: Mapping[str, Any]) -> str:
    """Digest of what the figures of a measuring step depend on besides the engine and the versions that built it:
    measurements that have it in common may be compared."""
    params = {k: v for k, v in measure["params"].items() if k not in ("at", "samples", *_OF_MEASURING_ALONE)}
    shapes = {name: at["dims"] for name, at in measure["params"]["at"].items()}
    return digest_of({"hardware": measure["hardware"], "shapes": shapes, **params})


def summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """A duel's report without its samples."""
    shapes = {name: dict(found) for name, found in report.get("shapes", {}).items()}
    return {**report["champion"], "method": report["method"], "limit": report["limit"], "shapes": shapes}


def _undecided(store: Store, key: str) -> bool:
    if not store.has(key) or (artifact := store.get(key)) is None:
        return False
    report = artifact.read_json(DUEL_FILE)
    return report["method"] == "history" or any(
        shape["verdict"] == "inconclusive" for shape in report.get("shapes", {}).values()
    )
