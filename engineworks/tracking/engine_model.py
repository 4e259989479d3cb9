"""An engine as an MLflow model: its contents, and the module that MLflow loads it with (`_load_pyfunc`).

    models:/<name>@champion-<target>-<precision>
        MLmodel, requirements.txt, input_example.json
        data/files/   the engine's files, engine.json (its sidecar), passport.json, statements.json once it is champion

MLflow's own loader loads it (`loader_module`), without a pickled class. Passport, statements and digests are checked
before the backend reads any byte; `tracking.loader` checks before MLflow runs what `MLmodel` names.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from engineworks.engines.backends.base import Session
from engineworks.host.lazy import Array, Arrays, np
from engineworks.tensors import TensorSpec
from engineworks.tracking.aliases import Slot
from engineworks.tracking.roles import (
    FOLDER,
    LOADER,
    check_role,
    check_shipped_statements,
    read_shipped_passport,
    version_in,
)

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature
    from mlflow.tracking import MlflowClient

    from engineworks.engines.decoder.generation import Generator


MODEL_TYPE = "engine"


@dataclass(frozen=True)
class EngineModel:
    """An engine to register. files: name → file, including the sidecar and the passport. example: feeds of one run, one
    array per input. requirements: pip requirements for loading it. tags: of the version; those in `optional_tags` are
    removed where not given."""

    slot: Slot
    recipe: str
    engine: str
    digest: str
    run_id: str
    files: Mapping[str, Path]
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    example: Arrays
    requirements: Sequence[str]
    tags: Mapping[str, str] = field(default_factory=dict)
    optional_tags: frozenset[str] = frozenset()
    prompts: tuple[str, ...] = ()
    """Of a decoder: prompts as its example. Its inputs and outputs are texts then, not tensors."""


def log_engine_model(client: MlflowClient, experiment_id: str, model: EngineModel) -> LoggedModel:
    """Write the MLflow model under the engine's run."""
    logged = client.create_logged_model(
        experiment_id,
        name=model.engine.replace("/", "-").replace(".", "_"),  # MLflow allows neither
        source_run_id=model.run_id,
        tags={"engineworks.engine": model.engine, "engineworks.engine_digest": model.digest},
        params={"precision": model.slot.precision, "target": model.slot.target},
        model_type=MODEL_TYPE,
    )
    done = False
    try:
        with TemporaryDirectory(prefix="engineworks-") as folder:
            place = Path(folder, "model")
            _save(place, logged.model_id, model)
            client.log_model_artifacts(logged.model_id, str(place))
        done = True
    finally:
        client.finalize_logged_model(logged.model_id, "READY" if done else "FAILED")
    return logged


def _save(place: Path, model_id: str, model: EngineModel) -> None:
    """Write the folder of an MLflow model, with links to the engine's files, which may be large."""
    import mlflow.pyfunc
    from mlflow.models import Model

    data = place.parent / FOLDER
    data.mkdir()
    mlflow.pyfunc.save_model(
        str(place),
        loader_module=LOADER,
        data_path=str(data),
        mlflow_model=Model(run_id=model.run_id, model_id=model_id),
        signature=text_signature() if model.prompts else signature_of(model.inputs, model.outputs),
        input_example=list(model.prompts) or dict(model.example),
        pip_requirements=list(model.requirements),
    )
    target = place / "data" / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    for name, file in model.files.items():
        (target / name).symlink_to(file.resolve(strict=True))


def signature_of(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> ModelSignature:
    """Return names, dtypes and shapes, -1 for dynamic lengths; no outputs if NumPy lacks the dtype of one
    (bfloat16)."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema
    from mlflow.types import TensorSpec as Tensor

    def schema(specs: Sequence[TensorSpec]) -> Schema:
        return Schema(
            [Tensor(np.dtype(s.dtype), tuple(-1 if isinstance(d, str) else d for d in s.shape), s.name) for s in specs]
        )

    try:
        return ModelSignature(inputs=schema(inputs), outputs=schema(outputs))
    except TypeError:
        return ModelSignature(inputs=schema(inputs))


def text_signature() -> ModelSignature:
    """Return a decoder's: prompts in, continuations out, and how many tokens at most."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    text = Schema([ColSpec("string")])
    return ModelSignature(text, text, ParamSchema([ParamSpec("max_new_tokens", "long", 64)]))


class LoadedDecoder:
    """As `LoadedEngine`, of a decoder. Threads may share it: runs exclude each other."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._lock = threading.Lock()

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[str]:
        """Continue each prompt, greedily. model_input: prompts, as a list or a frame of one column. params:
        max_new_tokens. Raises `RunError` for a prompt that is empty or too long."""
        prompts = [str(row) for row in _column(model_input)]
        with self._lock:
            return self._generator.generate(prompts, int((params or {}).get("max_new_tokens", 64)))


def _column(value: Any) -> Any:
    """Return the rows of the first column of a frame; a list as it is; one text as a list."""
    if isinstance(value, str):
        return [value]
    return value.iloc[:, 0] if hasattr(value, "iloc") and value.ndim == 2 else value


class LoadedEngine:
    """A loaded engine, the result of `engineworks.load` and of MLflow's loader. Threads may share it: runs exclude each
    other."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """Names, dtypes and shapes of the inputs."""
        return self._session.inputs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """Names, dtypes and shapes of the outputs."""
        return self._session.outputs

    def run(self, feeds: Arrays) -> dict[str, Array]:
        """Run once. feeds: one array per input name, with its dtype and shape. Returns all outputs by name. Raises
        `RunError` for invalid feeds."""
        with self._lock:
            return self._session.run(feeds)

    def predict(self, model_input: Arrays, params: Mapping[str, Any] | None = None) -> dict[str, Array]:
        """Run once, by MLflow's name and signature of it. params: none are known."""
        del params
        return self.run(model_input)

    def close(self) -> None:
        """Free the engine's memory."""
        with self._lock:
            self._session.close()


def _load_pyfunc(path: str) -> LoadedEngine | LoadedDecoder:
    """Load the engine's folder for MLflow. Raises `TrustError`, or `RunError` where this host cannot run it."""
    from engineworks.engines.decoder.generation import is_decoder, open_shipped_decoder
    from engineworks.engines.engine_session import open_engine
    from engineworks.engines.signing import read_trust

    folder, trust = Path(path), read_trust()
    passport = read_shipped_passport(folder, trust)
    named = version_in(folder) if trust.required else None
    if named is None:
        check_shipped_statements(folder, passport, trust)
    else:
        registered, version = named
        check_role(registered, version, passport, trust)
    if is_decoder(folder):
        return LoadedDecoder(open_shipped_decoder(folder, passport))
    return LoadedEngine(open_engine(folder, passport))
