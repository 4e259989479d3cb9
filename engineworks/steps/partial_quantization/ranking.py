"""The order of the trials, and the search for the shortest list of parts to exclude. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engineworks.measure.accuracy_report import Accuracy
from engineworks.measure.sensitivity_report import Part
from engineworks.steps.partial_quantization.groups import Group

CHANCE_SAMPLES = 4
"""A metric that counts samples and loses d of them loses them by chance with a standard error of √d: from 4 on it is
two standard errors. Losses are compared in steps of that many samples; within a step the outputs' error decides."""

SHARE_TO_SPLIT = 0.9
"""Groups that make this share of all noise are tried node by node."""


@dataclass(frozen=True)
class Trial:
    """The cost of quantizing only one group.

    noise: Σ(e - r)² / Σr² of the worst output, inf if values became NaN or infinite; noises of independent parts add
    up. loss: of the task metric, as a share of fp32's; None without labels. report: the accuracy of each output and the
    metric, as in `accuracy.json`.
    """

    group: Group
    noise: float
    loss: float | None
    report: Accuracy
    seconds: float = 0.0

    @property
    def figures(self) -> tuple[float | None, ...]:
        """The fields of `sensitivity_report.Cost`."""
        return (
            self.noise if math.isfinite(self.noise) else None,
            -10 * math.log10(self.noise) if 0 < self.noise < math.inf else None,
            self.report.worst_cosine,
            self.report.metric.engine if self.report.metric else None,
            self.loss if self.loss is not None and math.isfinite(self.loss) else None,
        )

    @property
    def part(self) -> Part:
        return Part(*self.figures, name=self.group.name, nodes=tuple(self.group.nodes), seconds=self.seconds)


def make_trial(group: Group, report: Accuracy, seconds: float = 0.0) -> Trial:
    """Make the trial of a group from the accuracy report of the model in which only it is quantized."""
    loss = report.metric.loss() if report.metric else None
    return Trial(group, worst_noise(report), loss, report, seconds)


def worst_noise(report: Accuracy) -> float:
    """Return the largest noise of any output."""
    return max(output.noise for output in report.outputs.values())


def rank(trials: Sequence[Trial], samples: int) -> list[Trial]:
    """Rank the costliest first: by the task metric if there are labels and the loss is more than chance, then by the
    outputs' error.

    Of equal ones, the first in the graph comes first.
    """
    step = CHANCE_SAMPLES / max(1, samples)

    def cost(trial: Trial) -> tuple[float, float]:
        loss = trial.loss or 0.0
        return (math.floor(loss / step) if 0 < loss < math.inf else max(0.0, loss), trial.noise)

    return sorted(trials, key=cost, reverse=True)


def to_split(ranked: Sequence[Trial]) -> list[Trial]:
    """Return the first groups of the ranking that make most of the noise, without those of one node."""
    total = sum(t.noise for t in ranked if math.isfinite(t.noise))
    chosen: list[Trial] = []
    covered = 0.0
    for trial in ranked:
        if covered >= SHARE_TO_SPLIT * total and (not chosen or math.isfinite(trial.noise)):
            break
        covered += trial.noise if math.isfinite(trial.noise) else 0.0
        chosen.append(trial)
    return [trial for trial in chosen if len(trial.group.nodes) > 1]


def shortest_list(ranked: Sequence[Group], holds: Callable[[Sequence[Group]], bool]) -> list[Group] | None:
    """Return the groups that must be excluded so that `holds` of them; None if excluding all but the last is not
    enough.

    First the shortest beginning of the ranking, by bisection; then each of it that proves unnecessary is removed, the
    cheapest first. `holds` is called at most 2 + log₂(n) + length of the list times. A shorter list may exist: there
    are 2ⁿ.
    """
    if holds([]):
        return []
    most = len(ranked) - 1
    if most < 1 or not holds(ranked[:most]):
        return None
    high = bisect_left(range(most), True, 1, key=lambda count: holds(ranked[:count]))
    kept = list(ranked[:high])
    for group in reversed(ranked[: high - 1]):  # the last of the list is needed: without it the limits did not hold
        fewer = [other for other in kept if other is not group]
        if holds(fewer):
            kept = fewer
    return kept
