"""Groups of nodes to try together: those whose names begin alike, until no group is large. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

LARGEST_SHARE = 1 / 8
"""Maximum share of all nodes in one group. With single nodes after it, few large groups cost as many trials as many
small ones; this is between them."""

_SEPARATORS = re.compile(r"[/.]+")
_SPECIAL = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Group:
    """Nodes tried together, in the order of the graph. name: their common beginning, or the node's own."""

    name: str
    nodes: tuple[str, ...]


def group_nodes(names: Sequence[str]) -> list[Group]:
    """Group by the parts of the nodes' names between '/' and '.', none with more than an eighth of the nodes.

    Names without parts are cut into runs of the graph's order. Every name is in one group; groups come in the order of
    their first nodes.
    """
    largest = max(1, math.ceil(len(names) * LARGEST_SHARE))
    groups: list[Group] = []
    pending = [tuple(names)] if names else []
    while pending:
        nodes = pending.pop()
        if len(nodes) <= largest:
            groups.append(Group(_common_name(nodes), nodes))
        else:
            pending.extend(_split(nodes, largest))
    order = {name: at for at, name in enumerate(names)}
    return sorted(groups, key=lambda group: order[group.nodes[0]])


def single_nodes(groups: Iterable[Group]) -> list[Group]:
    """Return a group for each of their nodes."""
    return [Group(name, (name,)) for group in groups for name in group.nodes]


def exact_pattern(name: str) -> str:
    """Return a glob that matches only this name."""
    return _SPECIAL.sub(lambda match: f"[{match[0]}]", name)


def keep_patterns(kept: Sequence[Group], all_names: Iterable[str]) -> tuple[str, ...]:
    """Return entries for `keep` that name the groups' nodes and no others of `all_names`: a glob for a group if its
    common beginning allows it, else every node."""
    others = set(all_names).difference(*(group.nodes for group in kept)) if kept else set()
    patterns: list[str] = []
    for group in kept:
        glob = f"{exact_pattern(group.name)}*"
        alone = not any(fnmatchcase(name, glob) for name in others)
        if len(group.nodes) > 1 and alone and all(fnmatchcase(name, glob) for name in group.nodes):
            patterns.append(glob)
        else:
            patterns.extend(exact_pattern(name) for name in group.nodes)
    return tuple(patterns)


def _split(nodes: tuple[str, ...], largest: int) -> list[tuple[str, ...]]:
    """Split by the first part of the names in which they differ, else into runs."""
    depth = len(_common_parts(nodes))
    by_part: dict[str, list[str]] = {}
    for name in nodes:
        by_part.setdefault("/".join(_parts(name)[: depth + 1]), []).append(name)
    if 1 < len(by_part) <= len(nodes) / 2:  # parts of one node each are numbers, not names
        return [tuple(part) for part in by_part.values()]
    runs = math.ceil(len(nodes) / largest)
    size = math.ceil(len(nodes) / runs)
    return [nodes[start : start + size] for start in range(0, len(nodes), size)]


def _parts(name: str) -> list[str]:
    return [part for part in _SEPARATORS.split(name) if part]


def _common_parts(nodes: Sequence[str]) -> list[str]:
    first, *others = [_parts(name) for name in nodes]
    depth = 0
    while depth < len(first) and all(parts[depth : depth + 1] == [first[depth]] for parts in others):
        depth += 1
    return first[:depth]


def _common_name(nodes: tuple[str, ...]) -> str:
    """Return the names' common beginning up to a separator; without one, the first and the last."""
    if len(nodes) == 1:
        return nodes[0]
    end = 0
    for match in _SEPARATORS.finditer(nodes[0]):
        if all(name.startswith(nodes[0][: match.end()]) for name in nodes):
            end = match.end()
    return nodes[0][:end] or f"{nodes[0]} … {nodes[-1]}"
