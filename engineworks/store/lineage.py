"""What stored artifacts were made from, as their manifests say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from engineworks.store.artifact import Artifact
from engineworks.store.store import Store

ENGINE_STEP = "/build"
"""End of the id of a step that makes an engine."""


def lineage(store: Store, keys: Iterable[str]) -> set[str]:
    """Return the keys, the reports and passports of the engines among them, and all that these were made from.

    Reads every manifest once. Keys that the store lacks are returned too.
    """
    artifacts = {key: found for key in store.keys() if (found := store.peek(key)) is not None}
    made_of = {key: _inputs(artifact) for key, artifact in artifacts.items()}
    users: dict[str, set[str]] = defaultdict(set)
    for key, inputs in made_of.items():
        for made in inputs:
            users[made].add(key)
    used = set(keys)
    engines = {key for key in used if key in artifacts and artifacts[key].step.endswith(ENGINE_STEP)}
    used |= {user for engine in engines for user in users[engine]}
    pending = list(used)
    while pending:
        new = made_of.get(pending.pop(), set()) - used
        used |= new
        pending += new
    return used


def _inputs(artifact: Artifact) -> set[str]:
    inputs = artifact.document.get("inputs")
    return {key for key in inputs.values() if isinstance(key, str)} if isinstance(inputs, Mapping) else set()
