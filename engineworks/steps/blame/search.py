"""Which nodes are to blame: bisect along the graph, then cut away what the fault does not need.

Any part of the model can be built alone, fed with the reference's values. The first search finds the first place at
which the fault shows: where a prefix of the nodes crashes, or where one of the tensors at a cut is wrong (several cuts
are marked as outputs of one build). The second finds how much before that place is needed. Each halves what is left.

Parts have fixed shapes. A fault that fixed shapes do not show is searched with dynamic ones: a second reference, at
another shape, tells which lengths of which tensors those are.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engineworks.errors import EngineworksError
from engineworks.steps.blame.bodies import inner_model, iterations, shortened, states_of
from engineworks.steps.blame.graph import Graph, Nodes, Values, is_controlled, label
from engineworks.steps.blame.probe import Answer, Budget, OutOfBuilds, Prober, same_crash

MARKS = 7
"""Cuts that one build marks: so few that most of a builder's fusions stay."""

MOST_MARKS = 200
"""Inner tensors of a part that the last build marks."""

REMOVED_SINGLY = 10
"""A part of so many units or fewer is tried without each of them."""


def most_builds(nodes: int) -> int:
    """Builds that a search may take: 2 log₂ n + 10."""
    return math.floor(2 * math.log2(max(2, nodes)) + 10)


@dataclass(frozen=True)
class Found:
    """The smallest part that shows the fault.

    graph, nodes: of the part, in the model or in the branch or body `inside` of it. outputs: that are wrong, or all
    after a crash. values: the reference's. answer: of its last build. notes: what limits the result. other: the
    reference at another shape, where the part has dynamic ones.
    """

    graph: Graph
    nodes: Nodes
    outputs: tuple[str, ...]
    values: Values
    answer: Answer
    builds: int
    inside: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    other: Values | None = None

    @property
    def labels(self) -> list[str]:
        """The nodes, after those that make their constants, such as a weight's DequantizeLinear."""
        nodes = [self.graph.nodes[i] for i in sorted(self.nodes)]
        return [label(node) for node in (*self.graph.closure(nodes)[0], *nodes)]

    def model(self) -> Any:
        return self.graph.extract(self.nodes, self.outputs, self.values, self.other)

    def feeds(self) -> dict[str, Any]:
        return {name: self.values[name] for name in self.graph.fed(self.nodes, self.values, self.other)}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The other shape of every input; {} where shapes are fixed."""
        return {} if self.other is None else {name: self.other[name].shape for name in self.feeds()}

    def wanted(self) -> dict[str, Any]:
        return {name: self.values[name] for name in self.outputs}


Reference = Callable[[Any, Mapping[str, Any]], tuple[Values, Mapping[str, float]]]
"""Model, feeds → every inner tensor's value, and the largest error that a correct engine may have there."""


def blame_engine(
    graph: Graph, values: Values, allowed: Mapping[str, float], prober: Prober, reference: Reference,
    other: Callable[[], Values | None] = lambda: None,
) -> Found | None:  # fmt: skip
    """The smallest part of the graph that the engine gets wrong; None if it gets the whole graph right.

    values: of every inner tensor and input. allowed: the largest right error by tensor. other: gives the values at
    another shape, for faults of dynamic shapes; None where shapes are fixed.
    """
    budget = prober if isinstance(prober, Budget) else Budget(prober, most_builds(graph.count))
    search = _Search(graph, values, allowed, budget)
    if not search.starts():
        dynamic = other()
        if dynamic is None or not _same_ranks(values, dynamic):
            return None
        search = _Search(graph, values, allowed, budget, dynamic)
        if not search.starts():
            return None
    found = search.smallest()
    while sum(is_controlled(found.graph.nodes[i]) for i in found.nodes) == 1:
        inner, note = _descend(found, budget, reference)
        if inner is None:
            return replace(found, builds=budget.builds, notes=(*found.notes, note))
        found = inner
    return found


def _same_ranks(values: Values, other: Values) -> bool:
    return values.keys() == other.keys() and all(values[n].ndim == other[n].ndim for n in values)


def _descend(found: Found, budget: Budget, reference: Reference) -> tuple[Found | None, str]:
    """The same fault inside of the branch or body of the only node that is left; else None and the reason."""
    (index,) = (i for i in found.nodes if is_controlled(found.graph.nodes[i]))

    def search(model: Any, feeds: Mapping[str, Any], *inside: str) -> _Search:
        graph = Graph(model)
        values, allowed = reference(model, feeds)
        return _Search(graph, values, allowed, budget, inside=(*found.inside, *inside), like=found.answer.crash)

    try:
        name, model, feeds = inner_model(found.graph, index, found.values)
        inner = search(model, feeds, name)
        most = iterations(found.graph, index, found.values)
        if not (inner.graph.nodes and inner.starts()) and most > 1:
            last = _first_iteration(lambda n: search(*shortened(found.graph, index, found.values, n), name), most)
            before = search(*shortened(found.graph, index, found.values, last - 1), name)
            states = states_of(before.graph, 0, before.values)
            name, model, feeds = inner_model(found.graph, index, found.values, last - 1, states)
            inner = search(model, feeds, name)
            inner.starts()
        if inner.shows:
            return inner.smallest(), ""
    except OutOfBuilds:
        return None, f"stopped after {budget.builds} builds: a smaller part inside of it may show it, too"
    except (EngineworksError, KeyError) as error:
        return None, f"what is inside of it cannot be run alone: {error}"
    return None, f"the {name} shows no fault alone"


def _first_iteration(shortened_search: Callable[[int], _Search], most: int) -> int:
    """The first number of iterations, at most `most`, with which the node shows the fault; one does not."""
    too_few, enough = 1, 2
    while enough < most and not shortened_search(enough).starts():
        too_few, enough = enough, min(enough * 2, most)
    return bisect_left(range(enough), True, too_few + 1, key=lambda count: shortened_search(count).starts())


@dataclass
class _Search:
    graph: Graph
    values: Values
    allowed: Mapping[str, float]
    budget: Budget
    other: Values | None = None
    inside: tuple[str, ...] = ()
    like: str = ""
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.units = self.graph.units(self.values)
        self.full = Answer()

    def starts(self) -> bool:
        """Whether the whole graph shows the fault."""
        self.full = self._probe(self._prefix(len(self.units)), self.graph.frontier(self._prefix(len(self.units))))
        if not self.inside:
            self.like = self.full.crash
        return self.shows

    @property
    def shows(self) -> bool:
        """Whether the whole graph, as it was built last, shows the fault."""
        return self._shows(self.full)

    def smallest(self) -> Found:
        """The smallest part that was found before the builds ran out."""
        count = len(self.units)
        self._keep(self._prefix(count), self._bad(self.full) or self._ends(self._prefix(count)), self.full)
        try:
            end, bad = self._first_bad(count, self._bad(self.full))
            self._shrink(end, bad)
            self._look_inside()
        except OutOfBuilds:
            self.notes.append(f"stopped after {self.budget.builds} builds: a smaller part may show it too")
        return replace(self._best, builds=self.budget.builds, notes=tuple(self.notes))

    def _first_bad(self, end: int, bad: list[str]) -> tuple[int, list[str]]:
        """The first cut at which the fault shows, and the tensors that are wrong there (none after a crash)."""
        start, marks = 0, 1 if self.full.crash else MARKS
        while end - start > 1:
            cuts = _between(start, end, marks)
            nodes = self._prefix(end if marks > 1 else cuts[0])
            at_cut = {cut: self.graph.frontier(self._prefix(cut)) for cut in cuts}
            ends = bad if marks > 1 else []
            answer = self._probe(nodes, dict.fromkeys([n for names in at_cut.values() for n in names] + ends))
            if self.full.crash:
                if self._shows(answer):
                    end = cuts[0]
                    self._keep(nodes, self._ends(nodes), answer)
                else:
                    start = cuts[0]
                continue
            wrong = set(self._bad(answer))
            first = next((cut for cut in cuts if wrong.intersection(at_cut[cut])), None)
            if first is None and not wrong.intersection(bad) and marks > 1:
                marks = 1  # marked tensors are not fused away: with fewer of them the fault may show
                continue
            if first is None:
                start = cuts[-1]
            else:
                start = max((cut for cut in cuts if cut < first), default=start)
                end, bad = first, [n for n in at_cut[first] if n in wrong]
                self._keep(self._prefix(end), bad, answer)
        return end, bad

    def _shrink(self, end: int, bad: list[str]) -> None:
        """Keep of the units up to `end` those that the fault needs."""
        last = self.units[end - 1]
        made = [n for n in bad if self.graph.makers.get(n) in last] or bad
        order = self._nearest(end, made or [n for i in sorted(last) for n in self.graph.nodes[i].output if n])
        chosen = self._enough(order, made)
        if chosen is None and self.full.crash:  # what comes beside the last node may be needed, too
            order = [self.units[i] for i in range(end - 1, -1, -1)]
            chosen = self._enough(order, made)
        if chosen is None:
            self.notes.append("the fault needs all that comes before it: alone, no part shows it")
        else:
            self._without_each(chosen, made)

    def _without_each(self, chosen: Sequence[Nodes], bad: list[str]) -> None:
        kept = list(chosen)
        for unit in reversed(chosen[1:]):
            if len(kept) > REMOVED_SINGLY:
                break
            less = [u for u in kept if u != unit]
            if self._try(less, bad):
                kept = less

    def _look_inside(self) -> None:
        """Find an earlier wrong tensor within the smallest part: what follows it may have hidden its error."""
        best = self._best
        units = [unit for unit in self.units if unit <= best.nodes]
        if len(units) < 2 or best.answer.crash:
            return
        made = [n for unit in units[:-1] for i in sorted(unit) for n in self.graph.nodes[i].output if n in self.values]
        inner = [n for n in made if n not in best.outputs]
        answer = self._probe(best.nodes, [*inner[:: math.ceil(len(inner) / MOST_MARKS) or 1], *best.outputs])
        first = next((n for n in inner if n in self._bad(answer)), None)
        if first is None or answer.crash:
            return
        before = [unit for unit in self._nearest(len(self.units), [first]) if unit <= best.nodes]
        chosen = self._enough(before, [first])
        if chosen is not None:
            self._without_each(chosen, [first])

    def _nearest(self, end: int, names: Sequence[str]) -> list[Nodes]:
        """The units that these tensors depend on, the nearest first."""
        unit_of = {i: unit for unit in self.units[:end] for i in unit}
        found = (unit_of[i] for i in self.graph.ancestors(names) if i in unit_of)
        return list(dict.fromkeys(found))

    def _enough(self, order: Sequence[Nodes], bad: list[str]) -> list[Nodes] | None:
        """The fewest of the first units that show the fault: 1, 2, 4, 8, then halving; None if all do not."""
        too_few, enough, size = 0, None, 1
        while enough is None:
            size = min(size, len(order))
            if self._try(order[:size], bad):
                enough = size
            elif size == len(order):
                return None
            else:
                too_few, size = size, (size * 2 if size < 8 else len(order))
        fewest = bisect_left(range(enough), True, too_few + 1, key=lambda count: self._try(order[:count], bad))
        return list(order[:fewest])

    def _try(self, units: Sequence[Nodes], bad: list[str]) -> bool:
        nodes = frozenset(i for unit in units for i in unit)
        outputs = [n for n in bad if self.graph.makers.get(n) in nodes] or self._ends(nodes)
        answer = self._probe(nodes, outputs)
        if self._shows(answer):
            self._keep(nodes, self._bad(answer) or outputs, answer)
            return True
        return False

    def _keep(self, nodes: Nodes, outputs: Sequence[str], answer: Answer) -> None:
        self._best = Found(
            self.graph, nodes, tuple(outputs), self.values, answer, self.budget.builds, self.inside, other=self.other
        )

    def _prefix(self, count: int) -> Nodes:
        return frozenset(i for unit in self.units[:count] for i in unit)

    def _ends(self, nodes: Collection[int]) -> list[str]:
        """What these nodes give to others, as far as the reference has it."""
        return [n for n in self.graph.frontier(nodes) if n in self.values] or [
            n for i in sorted(nodes) for n in self.graph.nodes[i].output if n in self.values
        ]

    def _probe(self, nodes: Nodes, outputs: Collection[str]) -> Answer:
        """Build these nodes. Outputs without a value of the reference are left out."""
        named = [n for n in outputs if n in self.values]
        model = self.graph.extract(nodes, named, self.values, self.other)
        feeds = {n: self.values[n] for n in self.graph.fed(nodes, self.values, self.other)}
        shapes = {} if self.other is None else {n: self.other[n].shape for n in feeds}
        return self.budget.probe(model, feeds, {n: self.values[n] for n in named}, shapes)

    def _bad(self, answer: Answer) -> list[str]:
        return [name for name, error in answer.errors.items() if error > self.allowed.get(name, 0.0)]

    def _shows(self, answer: Answer) -> bool:
        if self.like:
            return bool(answer.crash) and same_crash(self.like, answer.crash)
        return not answer.crash and bool(self._bad(answer))


def _between(start: int, end: int, count: int) -> list[int]:
    """Up to `count` whole numbers, evenly spread between two others."""
    count = min(count, end - start - 1)
    return sorted({start + (end - start) * (k + 1) // (count + 1) for k in range(count)})
