"""Why two engines differ: which input of which step, and its effect. Pure: recorded documents in, sentences out.

A step's document is all that shapes its result (its key is the document's digest), so whatever made two engines
different is in the documents of their steps: the recipe's lines, files by their digests, versions, hardware.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engineworks.measure.accuracy_report import Accuracy
from engineworks.measure.check import message_of
from engineworks.measure.latency_report import Latency, ShapeMeasurement
from engineworks.plan.kinds import STEP_KINDS, StepName
from engineworks.typed_json import Record

NOT_BUILT_FROM = frozenset({"description", "owner", "time_limits"})
_FROM_RECIPE = {"profiles": "shapes", "shapes": "performance", "serving": "serving"}
"""What some settings of steps are called in a recipe."""
_SHORT = 60


@dataclass(frozen=True)
class Difference(Record):
    """One input that differs. kind: recipe, model, data, code, version, hardware, step, setting. steps: those that read
    it."""

    kind: str
    what: str
    steps: tuple[str, ...] = ()
    place: str = ""


@dataclass(frozen=True)
class Effect(Record):
    """One figure or verdict of the result, before and after. note: its meaning, '' if obvious."""

    name: str
    before: str
    after: str
    note: str = ""


@dataclass(frozen=True)
class Side:
    """One engine as it was recorded. documents: of its steps, by kind. resolved: the whole recipe with its defaults.
    checks: verdict.json. metrics: as in MLflow."""

    engine: str
    run: str
    verdict: str
    started_at: float
    digest: str = ""
    documents: Mapping[str, Mapping[str, Any]] | None = None
    resolved: Mapping[str, Any] | None = None
    checks: tuple[Mapping[str, str], ...] = ()
    accuracy: Accuracy | None = None
    latency: Latency | None = None
    size: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Explanation:
    """rebuilt: steps whose keys differ. complete: whether both sides recorded the documents of all steps."""

    before: Side
    after: Side
    differences: tuple[Difference, ...]
    effects: tuple[Effect, ...]
    rebuilt: tuple[str, ...]
    complete: bool = True

    def to_json(self) -> dict[str, Any]:
        return {
            "before": {"engine": self.before.engine, "run": self.before.run, "verdict": self.before.verdict},
            "after": {"engine": self.after.engine, "run": self.after.run, "verdict": self.after.verdict},
            "differences": [d.to_json() for d in self.differences],
            "effects": [e.to_json() for e in self.effects],
            "rebuilt": list(self.rebuilt),
            "complete": self.complete,
        }


def explain(before: Side, after: Side) -> Explanation:
    """Everything that differs between the two, inputs first."""
    old, new = before.documents or {}, after.documents or {}
    rebuilt = tuple(k for k in STEP_KINDS if k in old and k in new and old[k].get("key") != new[k].get("key"))
    found: list[Difference] = [
        Difference("step", f"step {kind} is {'new' if kind in new else 'gone'}", (kind,))
        for kind in STEP_KINDS if (kind in old) != (kind in new)
    ]  # fmt: skip
    for kind in STEP_KINDS:
        if kind in old and kind in new:
            found += _step_differences(kind, old[kind], new[kind])
    lines = list(_recipe_differences(before.resolved or {}, after.resolved or {}))
    if before.engine != after.engine:
        lines.insert(0, Difference("engine", f"engine: {before.engine} → {after.engine}"))
    mentioned = {part for line in lines for part in line.place.split(".")}
    rest = [d for d in found if d.kind != "setting" or not _is_mentioned(d, mentioned)]
    listed = [*lines, *rest]
    complete = all(k in d for d in (old, new) for k in ("export", "fold", "build"))
    return Explanation(before, after, _joined(listed), tuple(_effects(before, after)), rebuilt, complete)


def changed_values(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted path, before, now) of every leaf that differs; None where there is none. Lists are leaves."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            yield from changed_values(before.get(key), now.get(key), f"{path}.{key}" if path else str(key))
    elif before != now:
        yield path, before, now


def _is_mentioned(setting: Difference, mentioned: set[str]) -> bool:
    """Whether a listed line of the recipe has this setting."""
    parts = re.split(r"[.:]", setting.what)
    return bool({_FROM_RECIPE.get(parts[0], parts[0]), parts[0], parts[-2] if len(parts) > 1 else ""} & mentioned)


def _recipe_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    for path, old, new in changed_values(before, after):
        if path.partition(".")[0] not in NOT_BUILT_FROM:
            yield Difference("recipe", f"{path}: {shown(old)} → {shown(new)}", place=path)


def _step_differences(kind: StepName, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Difference]:
    for name, first, second in changed_values(old.get("digests", {}), new.get("digests", {})):
        yield Difference(_file_kind(kind, name), f"file {name}: {_contents(first, second)}", (kind,))
    for name, first, second in changed_values(old.get("libraries", {}), new.get("libraries", {})):
        yield Difference("version", f"{name}: {shown(first)} → {shown(second)}", (kind,))
    for name, first, second in changed_values(old.get("hardware", {}), new.get("hardware", {})):
        yield Difference("hardware", f"{name}: {shown(first)} → {shown(second)}", (kind,))
    if old.get("version") != new.get("version"):
        what = f"Engineworks' own step {kind}: version {old.get('version')} → {new.get('version')}"
        yield Difference("version", what, (kind,))
    for name, first, second in changed_values(old.get("params", {}), new.get("params", {})):
        yield Difference("setting", f"{name}: {shown(first)} → {shown(second)}", (kind,))


def _file_kind(step: StepName, name: str) -> str:
    if name.startswith("metric "):
        return "code"
    return "model" if STEP_KINDS[step].files == "model" else "data"


def _contents(old: object, new: object) -> str:
    if old is None or new is None:
        return "new" if old is None else "gone"
    return f"other contents ({str(old)[:8]} → {str(new)[:8]})"


def shown(value: object) -> str:
    """A value of a recipe or a document in a few characters."""
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHORT else text[: _SHORT - 1] + "…"


def _joined(differences: Iterable[Difference]) -> tuple[Difference, ...]:
    """One line for what several steps read."""
    merged: dict[tuple[str, str], Difference] = {}
    for difference in differences:
        known = merged.get((difference.kind, difference.what))
        steps = (*(known.steps if known else ()), *difference.steps)
        merged[difference.kind, difference.what] = Difference(
            difference.kind, difference.what, tuple(dict.fromkeys(steps)), difference.place
        )
    return tuple(merged.values())


def _effects(before: Side, after: Side) -> Iterator[Effect]:
    if before.verdict != after.verdict:
        yield Effect("verdict", before.verdict, after.verdict)
    yield from _check_effects(before, after)
    yield from _metric_effects(before.accuracy, after.accuracy)
    yield from _latency_effects(before.latency, after.latency)
    if before.size and after.size and before.size != after.size:
        yield Effect("engine size", f"{before.size / 2**20:.2f} MiB", f"{after.size / 2**20:.2f} MiB")
    if before.error != after.error:
        yield Effect("error", before.error or "none", after.error or "none")


def _check_effects(before: Side, after: Side) -> Iterator[Effect]:
    old, new = ({c["name"]: c for c in side.checks} for side in (before, after))
    for name in dict.fromkeys((*old, *new)):
        verdicts = [c[name]["verdict"] if name in c else "not checked" for c in (old, new)]
        if verdicts[0] != verdicts[1]:
            yield Effect(f"check {name}", verdicts[0], verdicts[1], message_of(new.get(name, old.get(name, {}))))


def _metric_effects(old: Accuracy | None, new: Accuracy | None) -> Iterator[Effect]:
    first, second = (side.metric if side else None for side in (old, new))
    for name, word in (("engine", "task metric"), ("reference", "task metric of the fp32 reference")):
        pair = [getattr(side, name, None) for side in (first, second)]
        if pair[0] != pair[1]:
            yield Effect(word, _number(pair[0]), _number(pair[1]))
    cosines = [{k: o.cosine for k, o in side.outputs.items()} if side else {} for side in (old, new)]
    for output in dict.fromkeys((*cosines[0], *cosines[1])):
        pair = [side.get(output) for side in cosines]
        if pair[0] != pair[1]:
            yield Effect(f"cosine of {output}", _number(pair[0]), _number(pair[1]))


def _latency_effects(old: Latency | None, new: Latency | None) -> Iterator[Effect]:
    shapes = [side.shapes if side else {} for side in (old, new)]
    for name in dict.fromkeys((*shapes[0], *shapes[1])):
        first, second = (side.get(name) for side in shapes)
        if first is None or second is None:
            yield Effect(f"median at {name}", _median(first), _median(second))
        elif first.latency_ms_p50 != second.latency_ms_p50:
            yield Effect(f"median at {name}", _median(first), _median(second), _compared(first, second))


def _median(values: ShapeMeasurement | None) -> str:
    """'0.023 ms (0.022 to 0.024)': the 95% interval of the median."""
    if values is None:
        return "not measured"
    interval = values.median_interval
    spread = f" ({interval[0]:.4g} to {interval[1]:.4g})" if interval else ""
    return f"{values.latency_ms_p50:.4g} ms{spread}"


def _compared(old: ShapeMeasurement, new: ShapeMeasurement) -> str:
    """Whether the difference is one: two runs on one day are not the same day."""
    first, second = old.median_interval, new.median_interval
    ratio = new.latency_ms_p50 / old.latency_ms_p50
    change = f"{abs(ratio - 1):.1%} {'slower' if ratio > 1 else 'faster'}"
    if old.complaints or new.complaints:
        return f"{change}, but something was wrong with the device while one was measured"
    if not first or not second:
        return f"{change}, with too few runs to tell"
    apart = first[0] > second[1] or second[0] > first[1]
    return f"{change}: the 95% intervals do not meet" if apart else "no difference: the 95% intervals overlap"


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float | int) else "none"
