"""Every report comes back as it was written, and each change of a document is refused or told apart."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engineworks.errors import StoreError
from engineworks.measure.accuracy_report import Accuracy
from engineworks.measure.decoder.report import Continuation, DecoderAccuracy, Difference, Refusal
from engineworks.typed_json import Report
from tests.report_example import accuracy, latency
from tests.typed_reports import shape

DECODER = DecoderAccuracy(
    "fp16", {"end": Difference(None, 3, 0), "beyond": Refusal(True)},
    (Continuation("a", "b", "c", (1, 2), (1, 3), 1, 0.5, "b", "near tie"),), 0.1, 0.01,
)  # fmt: skip
REPORTS: dict[str, Report] = {
    "accuracy": accuracy("int8"),
    "decoder": replace(accuracy("fp16"), decoder=DECODER),
    "latency": replace(latency("fp32"), shapes={"one": shape(0.5)}),
}
WRONG: tuple[Any, ...] = (None, True, -1, 0.5, "a", [], {}, {"a": 1}, float("nan"), float("inf"), 10**400, "\ud800")


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_comes_back_as_it_was_written(name: str) -> None:
    report = REPORTS[name]
    text = json.dumps(report.to_json(), allow_nan=False)
    assert type(report).parse(text, name) == report


@settings(deadline=None)
@given(st.sampled_from(sorted(REPORTS)), st.data())
def test_a_changed_document_is_refused_or_is_another(name: str, data: st.DataObject) -> None:
    """Whatever is taken as the report is what the document says: no key is dropped, and no value is read as another."""
    report = REPORTS[name]
    document = copy.deepcopy(report.to_json())
    place = data.draw(st.sampled_from([*_places(document)]))
    holder, last = document, place[-1]
    for part in place[:-1]:
        holder = holder[part]
    if isinstance(holder, dict) and data.draw(st.booleans()):
        how = data.draw(st.sampled_from(["remove", "add"]))
        holder.pop(last) if how == "remove" else holder.update({"unheard_of": holder[last]})
    else:
        holder[last] = data.draw(st.sampled_from(WRONG))
    read, refused = None, ""
    try:
        read = type(report).parse(json.dumps(document), "run 1: report.json")
    except StoreError as error:
        refused = str(error)
    assert _says(document, read.to_json()) if read else refused.startswith("run 1: report.json: ")
    assert "\n" not in refused


def test_a_report_without_figures_is_none() -> None:
    with pytest.raises(StoreError, match=r"^a\.json: 'outputs' is not as documented: .*at least 1 item"):
        Accuracy.parse('{"outputs": {}, "metric": null, "samples": 4, "batches": [1]}', "a.json")
    with pytest.raises(StoreError, match=r"^a\.json: 'metric' is missing; build again"):
        Accuracy.parse(json.dumps({k: v for k, v in accuracy("int8").to_json().items() if k != "metric"}), "a.json")
    with pytest.raises(StoreError, match=r"^a\.json: unknown key 'verdict'"):
        Accuracy.parse(json.dumps({**accuracy("int8").to_json(), "verdict": "pass"}), "a.json")


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*place, key)
        yield from _places(inner, (*place, key))


def _says(document: Any, read: Any) -> bool:
    """Whether the report read says what the document says; only a value that equals its default is left out."""
    if isinstance(document, dict):
        left_out = [document[key] for key in document.keys() - read.keys()]
        return all(not value for value in left_out) and all(_says(document[key], read[key]) for key in read)
    if isinstance(document, list):
        return len(document) == len(read) and all(map(_says, document, read))
    return bool(document == read) and isinstance(document, bool) == isinstance(read, bool)
