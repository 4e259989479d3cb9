"""One release at a time moves a registered model's aliases: MLflow knows no compare-and-swap on them.

On one host a file lock does it (`host.lock`). Over a server, hosts share no lock: there a tag of the registered model
is claimed as well, by write, wait, read again. Two that write at once see who was last, as
long as no write takes longer than SETTLE_S; `Registry` looks again after it moved an alias, and a claim that was left
by a killed process is void after CLAIM_S.
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
    """Hold the registered model (which exists). shared: whether other hosts may write to it too; then it gives
    the claim."""
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
        if _is_free(_read(client, model)):
            token = json.dumps({"owner": secrets.token_hex(8), "at": time.time()})
            if _write(client, model, token):
                time.sleep(SETTLE_S)
                if _read(client, model) == token:
                    return token
        time.sleep(POLL_S + POLL_S * secrets.randbelow(10) / 10)
    raise TrackingError(f"registered model '{model}' is being changed by another release", hint="try again later")


def _write(client: MlflowClient, model: str, token: str) -> bool:
    """False where another claim came between: of two that insert the same tag at once MLflow's database refuses one."""
    from mlflow.exceptions import MlflowException

    with refusals(f"registered model '{model}' cannot be claimed"):
        try:
            client.set_registered_model_tag(model, CLAIM, token)
        except MlflowException:
            if _is_free(_read(client, model)):  # it is not that
                raise
            return False
    return True


def _read(client: MlflowClient, model: str) -> str | None:
    with refusals(f"registered model '{model}' cannot be read"):
        claim: str | None = client.get_registered_model(model).tags.get(CLAIM)
    return claim


def _is_free(claim: str | None) -> bool:
    if not claim:
        return True
    try:
        return time.time() - float(json.loads(claim)["at"]) > CLAIM_S
    except (ValueError, KeyError, TypeError):
        return True
