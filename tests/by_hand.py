"""MLflow as a person uses it next to Engineworks: its own client on the same records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineworks.tracking.runs import Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient


def by_hand(tracking: Tracking) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracking.uri, tracking.uri)
