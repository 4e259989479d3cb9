"""Lets one release at a time move a registered model's aliases: MLflow has no compare-and-swap for them.

On one host a file lock suffices (`host.lock`). Hosts on one server share no lock, so a release also claims a tag of the
registered model: write, wait, read again. After two concurrent writes, both see which came last, if no write takes
longer than SETTLE_S. `Registry` checks again after it moved an alias. The claim of a killed process expires after
CLAIM_S.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from engineworks.errors import TrackingError
from engineworks.host.lock import locked
from engineworks.tracking.connection import refusals

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

CLAIM = "engineworks.claim"
CLAIM_S = 120.0
SETTLE_S = 1.0
WAIT_S = 180.0
POLL_S = 0.1


@contextlib.contextmanager
def alone(lock: Path, client: MlflowClient, model: str, *, shared: bool) -> Iterator[str | None]:
    """Lock the registered model, which must exist. shared: whether other hosts may write to it too; then yields the
    claim."""
    with locked(lock):
        if not shared:
            yield None
            return
        token = _claim(client, model)
        try:
            yield token
        finally:
            with refusals(f"the claim on '{model}' cannot be given back"):
                if _read(client, model) == token:
                    client.delete_registered_model_tag(model, CLAIM)


def _claim(client: MlflowClient, model: str) -> str:
    """Write, wait, read again. Raises `TrackingError` if others hold the model too long, or MLflow does not answer."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if is_free(_read(client, model)):
            token = json.dumps({"owner": secrets.token_hex(8), "at": time.time()})
            if _write(client, model, token):
                time.sleep(SETTLE_S)
                if _read(client, model) == token:
                    return token
        time.sleep(POLL_S + POLL_S * secrets.randbelow(10) / 10)
    raise TrackingError(f"registered model '{model}' is being changed by another release", hint="try again later")


def _write(client: MlflowClient, model: str, token: str) -> bool:
    """Write the claim. False if another came first: of two concurrent inserts of a tag, MLflow's database refuses
    one."""
    from mlflow.exceptions import MlflowException

    with refusals(f"registered model '{model}' cannot be claimed"):
        try:
            client.set_registered_model_tag(model, CLAIM, token)
        except MlflowException:
            if is_free(_read(client, model)):  # not a conflict: another error
                raise
            return False
    return True


def _read(client: MlflowClient, model: str) -> str | None:
    with refusals(f"registered model '{model}' cannot be read"):
        claim: str | None = client.get_registered_model(model).tags.get(CLAIM)
    return claim


def is_free(claim: str | None) -> bool:
    """Whether the tag holds no claim, or one that has expired."""
    if not claim:
        return True
    try:
        return time.time() - float(json.loads(claim)["at"]) > CLAIM_S
    except (ValueError, KeyError, TypeError):
        return True
