"""A noisy measurement does not count: the next build measures again and reports that.

Only measurements that make a budget or a comparison with earlier ones inconclusive are repeated. The device's report
decides, never the value: repeating cannot force a pass. Each measurement has a number, and so its own key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engineworks.fingerprint import digest_of
from engineworks.measure.gates.gates import disturbed_budgets
from engineworks.measure.latency_report import Latency
from engineworks.recipe.performance import Budget
from engineworks.store.store import Store

Document = dict[str, Any]


def measured_again(
    document: Document, budgets: Mapping[str, Budget], store: Store, *, by_history: bool = False
) -> Document:
    """Return the measuring step's document, numbered after any noisy measurements in the store.

    by_history: whether it is compared with earlier measurements because the champion does not run here.
    """
    before = 0
    now = document
    while (budgets or by_history) and _disturbed(store, digest_of(now), budgets, by_history):
        before += 1
        now = {**document, "params": {**document["params"], "disturbed_before": before}}
    return now


def _disturbed(store: Store, key: str, budgets: Mapping[str, Budget], by_history: bool) -> bool:
    if not store.has(key) or (artifact := store.get(key)) is None or Latency.FILE not in artifact.files:
        return False
    report = artifact.read_measurements(Latency, 1)
    if by_history and any(shape.complaints for shape in report.shapes.values()):
        return True
    return bool(disturbed_budgets(report, budgets))
