"""Plans the serving of an engine's package: on which server, and again where the last load did not decide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engineworks.fingerprint import digest_of
from engineworks.host.file_digests import FileDigests
from engineworks.host.triton import NO_SERVER, InstalledServer, find_server, version_of
from engineworks.measure.gates.serving import load_verdict
from engineworks.measure.serving_report import ServingReport
from engineworks.recipe.recipe import Recipe
from engineworks.recipe.release import is_served
from engineworks.store.store import Store

Document = Mapping[str, Any]


def server_of(recipe: Recipe, digests: FileDigests) -> tuple[Document | None, str]:
    """Return what identifies the server that was found, None where the recipe's packages are not served here; and why.

    A running server is asked for its version: a package counts on the version that served it.
    """
    if not is_served(recipe):
        return None, ""
    if recipe.model.decoder is not None:
        return None, "a decoder has no Triton package yet"
    server = find_server()
    if server is None:
        return None, NO_SERVER
    if isinstance(server, InstalledServer):
        return {"sha256": digests.digest(server.binary), "backends": list(server.available)}, ""
    version = version_of(server)
    if not version:
        return None, f"the Triton server at {server.http} does not answer"
    return {"http": server.http, "grpc": server.grpc, "version": version}, ""


def served_again(document: dict[str, Any], store: Store) -> dict[str, Any]:
    """Return the document, numbered after the loads in the store that did not decide."""
    attempt, now = 0, document
    while document["params"]["load"] and _undecided(store, digest_of(now), document["params"]["load"]):
        attempt += 1
        now = {**document, "params": {**document["params"], "attempt": attempt}}
    return now


def _undecided(store: Store, key: str, limits: Document) -> bool:
    if not store.has(key) or (artifact := store.get(key)) is None:
        return False
    return load_verdict(artifact.read(ServingReport).load, limits)[0] == "inconclusive"
