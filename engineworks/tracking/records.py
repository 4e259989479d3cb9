"""The record of a build and of an engine, and how it fits MLflow's limits; does not import MLflow."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Literal

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

PARENT = "mlflow.parentRunId"
KIND = "engineworks.kind"
"""Tag: `build` for a parent run, `engine` for a child run."""
RECIPE = "engineworks.recipe"
BUILD_KEY = "engineworks.build_key"
VERDICT, WHY = "engineworks.verdict", "engineworks.why"
ENGINE = "engineworks.engine"
"""Tag: the engine's identity, recipe/precision/target."""
ENGINE_DIGEST = "engineworks.engine_digest"
ENGINE_RUN = "engineworks.engine_run"
"""Tag: id of the run that holds the engine's files; the run itself if it was the first to record this digest."""
STORE_KEYS = "engineworks.store_keys"
"""Tag: JSON list of the store keys that the run refers to; continues in `engineworks.store_keys.1`, `.2` and so on."""
CONDITIONS = "engineworks.conditions"
"""Tag: digest of a measurement's conditions besides the engine: hardware, driver, shapes, options."""
HARDWARE = "engineworks.hardware"
"""Tag: JSON object of the hardware that measured the engine."""
ENGINE_BUILD_KEY = BUILD_KEY
"""Tag of a model version: store key of the build artifact that holds its engine."""
RUN = "engineworks.run"
"""Tag of a model version: id of the run that recorded its engine."""
LADDER = "engineworks.ladder"
"""Tag: of an engine `chosen` or `dropped: reason`; of a build one sentence per target."""
NOTE = "mlflow.note.content"
"""Tag: a run's or an experiment's description, Markdown on MLflow's page."""
MODEL = "engineworks.model"
"""Tag: digest of the engine's source before any precision: the model with its weights, and its exporter."""
FLOW_PAGE = "prefect.page"
"""Tag: address of the flow run's page in Prefect."""
NOT_SELECTED = "engineworks.not_selected"
"""Tag of a build: number of the recipe's engines that `--only` left out."""
DATASETS = "engineworks.datasets"
"""Tag of a build: its data as JSON, which `Connection.log` records as MLflow's dataset inputs, too."""
OWNER = "engineworks.owner"
RESUMES = "engineworks.resumes"
RECORD = "engineworks.record"
"""Tag: id of a build's record, which finds it again when it is sent in parts."""
RECORD_ID = "engineworks.record_id"
"""Tag of the experiment: identifies the whole record for all time. Stores note it, see `store.record_notes`."""
ERROR = "engineworks.error"
NONFINITE = "nonfinite_metrics"
"""Tag: JSON list of the metrics that were NaN or infinite; MLflow does not get them."""
CHANGED_PARAMS = "engineworks.changed_params"
"""Tag: JSON object of params recorded again with another value: MLflow keeps the first."""
LONG_VALUES = "long_values.json"
"""Artifact: the full text of params and tags too long for MLflow, by kind and name."""

PLAN_FILE = "plan.json"
CALIBRATION_FILE = "calibration.json"
COMPARISON_FILE = "comparison.json"
LADDER_FILE = "ladder.json"
STEPS_FILE = "steps.json"
"""Artifacts of a build's run."""
VERDICT_FILE = "verdict.json"
BUILD_LOG_FILE = "build.log"
ERROR_FILE, ERROR_LOG_FILE = "error.txt", "error.log"
STEP_DOCUMENTS_FILE = "fingerprints/steps.json"
"""Artifacts of an engine's run, besides its reports and its passport. STEP_DOCUMENTS_FILE: every step's document, by
kind."""

NAME_CHARS = 250
PARAM_CHARS = 6000
TAG_CHARS = 5000
"""MLflow takes 8000 since 2.17; older servers take 5000."""


@dataclass(frozen=True)
class EngineRecord:
    """Everything known of one engine, recorded in one step as a child run.

    id: recipe/precision/target. params, metrics, tags: any length, any float; artifacts and tags hold values that
    MLflow cannot. texts: artifact path → text (sidecar, verdict, logs). files: artifact path → the engine's files; not
    copied if another run holds the files of `engine_digest`. store_keys: keys that gc must keep for it.
    series: metrics with a value per step, such as throughput by batch; finite numbers only.
    status: FINISHED (whatever the verdict) or FAILED, where a step broke. started_at: seconds since the epoch.
    """

    id: str
    status: Literal["FINISHED", "FAILED"] = "FINISHED"
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    engine_digest: str | None = None
    store_keys: tuple[str, ...] = ()
    started_at: float | None = None
    series: Mapping[str, Mapping[int, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class RunSummary:
    """A run in MLflow. Times: seconds since the epoch; a child has a `parent_run_id` and an `engine`."""

    run_id: str
    parent_run_id: str | None
    name: str
    status: str
    recipe: str
    engine: str | None
    build_key: str | None
    started_at: float
    ended_at: float | None
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]

    @property
    def is_complete(self) -> bool:
        """Whether every step of the build has a result; a failed gate is one."""
        return self.status == "FINISHED" or (self.status == "FAILED" and self.tags.get(VERDICT) == "fail")


def summarized(
    run_id: str, name: str, status: str, started_ms: int | None, ended_ms: int | None,
    params: Mapping[str, str], metrics: Mapping[str, float], tags: Mapping[str, str],
) -> RunSummary:  # fmt: skip
    """Make a summary of what MLflow holds of a run."""
    return RunSummary(
        run_id=run_id,
        parent_run_id=tags.get(PARENT),
        name=name,
        status=status,
        recipe=tags.get(RECIPE, ""),
        engine=tags.get(ENGINE),
        build_key=tags.get(BUILD_KEY),
        started_at=(started_ms or 0) / 1000,
        ended_at=ended_ms / 1000 if ended_ms else None,
        params=params,
        metrics=metrics,
        tags=tags,
    )


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model, from its tags. engine: recipe/precision/target."""

    model: str
    version: str
    engine: str
    engine_digest: str
    build_key: str
    run: str


@dataclass(frozen=True)
class Batch:
    """Params, metrics and tags that MLflow accepts unchanged, and texts with the values that it does not accept."""

    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    texts: Mapping[str, str]
    series: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    def points(self) -> Iterator[tuple[str, int, float]]:
        """Yield every metric as (name, step, value)."""
        yield from ((name, 0, value) for name, value in self.metrics.items())
        yield from ((name, step, value) for name, values in self.series.items() for step, value in values.items())


def pack_batch(
    params: Mapping[str, str],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    *,
    store_keys: Iterable[str] = (),
    known_params: Mapping[str, str] | None = None,
    series: Mapping[str, Mapping[int, float]] | None = None,
) -> Batch:
    """Fit values to MLflow: legal names, no NaN or infinity, no long values, no changed params.

    known_params: those that the run already has.
    """
    long: dict[str, dict[str, str]] = {}
    legal = legal_names(params)
    packed_params = {legal[n]: _shorten(v, PARAM_CHARS, long, "params", n) for n, v in params.items()}
    known = known_params or {}
    changed = {n: v for n, v in packed_params.items() if known.get(n, v) != v}
    nonfinite = sorted(n for n, v in metrics.items() if not math.isfinite(v))
    notes = dict(tags) | _store_key_tags(store_keys)
    if nonfinite:
        notes[NONFINITE] = json.dumps(nonfinite)
    if changed:
        notes[CHANGED_PARAMS] = json.dumps(changed, ensure_ascii=False)
    legal = legal_names(notes)
    packed_tags = {legal[n]: _shorten(v, TAG_CHARS, long, "tags", n) for n, v in notes.items()}
    legal = legal_names([*metrics, *(series or {})])
    return Batch(
        params={n: v for n, v in packed_params.items() if n not in known},
        metrics={legal[n]: float(v) for n, v in metrics.items() if math.isfinite(v)},
        tags=packed_tags,
        texts={LONG_VALUES: json.dumps(long, indent=1, ensure_ascii=False)} if long else {},
        series={legal[n]: dict(values) for n, values in (series or {}).items()},
    )


def legal_name(name: str) -> str:
    """Return `name` as MLflow allows it: letters, digits and `/_.-: `, no empty or dotted path part, 250 characters."""
    cleaned = re.sub(r"[^/\w.\-: ]", "_", name)[:NAME_CHARS]
    return "/".join(part for part in cleaned.split("/") if part not in ("", ".", "..")) or "_"


def legal_names(names: Iterable[str]) -> dict[str, str]:
    """Return legal names by name. Where several names would become one, those that change get a part of their digest:
    the slices '<18' and '>18' are two metrics."""
    legal = {name: legal_name(name) for name in names}
    count = Counter(legal.values())
    return {name: made if made == name or count[made] == 1 else _marked(name, made) for name, made in legal.items()}


def _marked(name: str, legal: str) -> str:
    mark = f"_{sha256(name.encode()).hexdigest()[:8]}"
    return legal[: NAME_CHARS - len(mark)] + mark


def store_keys_of(tags: Mapping[str, str]) -> set[str]:
    """Return the store keys that a run's tags refer to."""
    return {
        key for name, text in tags.items() if name == STORE_KEYS or name.startswith(STORE_KEYS + ".")
        for key in json.loads(text)
    }  # fmt: skip


def _store_key_tags(keys: Iterable[str]) -> dict[str, str]:
    chunks: list[list[str]] = []
    length = TAG_CHARS
    for key in sorted(set(keys)):
        cost = len(json.dumps(key)) + len(", ")
        if length + cost > TAG_CHARS - len("[]"):
            chunks.append([])
            length = 0
        chunks[-1].append(key)
        length += cost
    return {STORE_KEYS + (f".{i}" if i else ""): json.dumps(chunk) for i, chunk in enumerate(chunks)}


def _shorten(text: str, limit: int, long: dict[str, dict[str, str]], kind: str, name: str) -> str:
    if len(text) <= limit:
        return text
    long.setdefault(kind, {})[name] = text
    note = f"… (all {len(text)} characters are in {LONG_VALUES})"
    return text[: limit - len(note)] + note


def document_file(kind: str) -> str:
    """Return the path of an engine run's artifact with the document of its last step of a kind."""
    return f"fingerprints/{kind}.json"
