"""Recipes in, engines out.

`load` gives a released engine to a program; everything else is a command.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

# Since 1.29 ONNX Runtime sends names and digests of the models that it loads to its maker, unless its environment says
# otherwise before its first import. Every process that has us imports us first, children and servers too.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from engineworks.tracking.engine_model import LoadedEngine

__all__ = ["load"]


def load(uri: str) -> LoadedEngine:
    """Load a released engine: `load("models:/digits@champion-cpu-fp16").run({"image": images})["logits"]`.

    uri: a registered model with the alias of a champion, or `models:/NAME/VERSION`. The registry is that of
    MLFLOW_TRACKING_URI, by default the one under the artifacts. The engine is loaded only if its bytes, its passport,
    the version's tags, the alias and `MLmodel` agree. Where ENGINEWORKS_TRUSTED_KEYS is set, one of those keys must
    also have signed the passport and the newest release of this role, and this host must not have seen a newer one.

    Raises `InputError` where there is no such engine, `TrustError` for one that is not what it should be, `RunError`
    where this host cannot run it, `TrackingError` where MLflow does not answer.
    """
    from engineworks.tracking.loader import load as load_released

    return load_released(uri)
