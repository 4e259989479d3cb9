"""The champions of a recipe, their engines and earlier measurements, from MLflow and the store.

Opens neither for a recipe without comparisons, nor where nothing was recorded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from engineworks.engines.engine_files import PASSPORT_FILE
from engineworks.engines.sidecar import Sidecar
from engineworks.engines.signing import read_trust
from engineworks.errors import RunError, StoreError, TrackingError, TrustError
from engineworks.host.file_digests import digest_file
from engineworks.measure.accuracy_report import Accuracy
from engineworks.measure.champion import NONE, Champion, Champions
from engineworks.settings import Settings
from engineworks.store.shared import open_store
from engineworks.tracking.aliases import Slot, registered_name
from engineworks.tracking.records import CONDITIONS, ENGINE_DIGEST, ENGINE_RUN, RegisteredVersion, document_file
from engineworks.tracking.runs import Tracking, open_tracking

if TYPE_CHECKING:
    from engineworks.recipe.load import LoadedRecipe


class ChampionError(RunError):
    """A fault of the champion, not the candidate: its engine is missing, or cannot be loaded or run here."""


def find_champions(loaded: LoadedRecipe, settings: Settings) -> Champions:
    """Find the champions of the recipe's engines; unknown if MLflow does not answer, which fails no build."""
    if loaded.recipe.performance.regression is None:
        return NONE
    try:
        return _find_champions(loaded, settings)
    except TrackingError as error:
        return Champions({}, str(settings.artifacts), settings.store, settings.tracking_uri, error.message)


def _find_champions(loaded: LoadedRecipe, settings: Settings) -> Champions:
    tracking = open_tracking(settings.artifacts, settings.tracking_uri)
    by_engine, lost = {}, {}
    if tracking.exists():
        model = registered_name(loaded.recipe.release.model, loaded.name)
        slots = {
            Slot(model, target.name, precision): f"{loaded.name}/{precision}/{target.name}"
            for precision in loaded.recipe.precisions
            for target in loaded.targets
        }
        standings = tracking.standings(slots)
        lost = {slots[slot]: standing.lost for slot, standing in standings.items() if standing.lost}
        aliases = {slot.alias("champion"): engine for slot, engine in slots.items() if engine not in lost}
        versions = tracking.versions_behind(model, aliases)
        by_engine = {aliases[alias]: _champion(tracking, aliases[alias], v) for alias, v in versions.items()}
    return Champions(by_engine, str(settings.artifacts), settings.store, settings.tracking_uri, lost=lost)


def which_engine(engine: str, digest: str, settings: Settings) -> str:
    """Say in one sentence whether the latest build of this id, with this sha256, is also the champion."""
    tracking = open_tracking(settings.artifacts, settings.tracking_uri)
    try:
        listed = tracking.champions(engine.partition("/")[0]) if tracking.exists() else []
    except TrackingError as error:
        return f"the latest build; whether it is the champion is not known: {error.message}"
    reasons = []
    for listing in (c for c in listed if c.engine == engine):
        version = f"version {listing.version} of {listing.model}"
        if listing.lost:
            reasons.append(f"the champion of {listing.model} is missing: {listing.lost}")
        elif listing.digest == digest:
            reasons.append(f"it is the champion too, {version}")
        else:
            reasons.append(f"the champion is another engine: {version}, sha256 {listing.digest[:12]}")
    return "; ".join(["the latest build", *(reasons or ["it has no champion"])])


def _champion(tracking: Tracking, engine: str, version: RegisteredVersion) -> Champion:
    built = _read_json(tracking, version.run, document_file("build")) or {}
    return Champion(
        engine=version.engine or engine,
        model=version.model,
        version=version.version,
        digest=version.engine_digest,
        build_key=version.build_key or str(built.get("key", "")),
        run=version.run,
        accuracy=_accuracy(tracking, version.run),
        compare=_read_json(tracking, version.run, document_file("compare")),
    )


def _accuracy(tracking: Tracking, run: str) -> Accuracy | None:
    """Return the champion's report; None if its run has none that this version can read."""
    try:
        return Accuracy.parse(tracking.read_text(run, Accuracy.FILE), run)
    except (TrackingError, StoreError):
        return None


def _read_json(tracking: Tracking, run: str, path: str) -> Any:
    try:
        return json.loads(tracking.read_text(run, path))
    except (TrackingError, ValueError):
        return None


@contextmanager
def engine_of(champion: Champion, places: Mapping[str, str | None]) -> Iterator[Path]:
    """Yield a folder with the champion's engine and sidecar: from the store, else fetched from its run into a temporary
    one.

    The engine file has the champion's digest. Raises `ChampionError` if neither place has it.
    """
    if not champion.digest or not champion.run:
        raise ChampionError(f"version {champion.version} of {champion.model} is no engine that Engineworks registered")
    settings = settings_of(places)
    stored = open_store(settings).get(champion.build_key) if champion.build_key else None
    if stored is not None and _digest(stored.path) == champion.digest:
        yield stored.path
        return
    with TemporaryDirectory(prefix="engineworks-champion-") as name:
        yield _fetch(champion, open_tracking(settings.artifacts, settings.tracking_uri), Path(name))


def settings_of(places: Mapping[str, str | None]) -> Settings:
    return Settings(Path(places["artifacts"] or ""), places["store"] or "", tracking_uri=places["tracking_uri"])


def _fetch(champion: Champion, tracking: Tracking, folder: Path) -> Path:
    try:
        holder = tracking.get_run(champion.run).tags.get(ENGINE_RUN, champion.run)
        files = tracking.download(holder, "engine", folder)
    except TrackingError as error:
        raise ChampionError(f"its engine is neither in the store nor in MLflow: {error.message}") from None
    if read_trust().required:
        _check_signature(champion, tracking, files, folder)
    if (digest := _digest(files)) != champion.digest:
        was = f"sha256 {digest[:12]}" if digest else "no engine"
        raise ChampionError(f"run {holder} holds {was} in place of its engine, sha256 {champion.digest[:12]}")
    return files


def _check_signature(champion: Champion, tracking: Tracking, files: Path, folder: Path) -> None:
    """Raises `ChampionError` unless a trusted key signed the passport of these files: loading them runs their code."""
    from engineworks.engines.passport import read_passport, verify_files

    try:
        passport = read_passport(tracking.download(champion.run, PASSPORT_FILE, folder), read_trust())
        verify_files(files, passport)
    except (TrackingError, TrustError) as error:
        raise ChampionError(f"its engine in MLflow is not loaded: {error.message}") from None


def _digest(folder: Path) -> str | None:
    """Return the sha256 of the engine file that the folder's sidecar names; None if there is none."""
    try:
        return digest_file(folder / Sidecar.read(folder).engine)
    except (OSError, StoreError):
        return None


def history_of(
    champion: Champion, places: Mapping[str, str | None], conditions: str, limit: int = 100
) -> dict[str, list[tuple[str, float]]]:
    """Return digest and median latency in ms, by shape and oldest first, of earlier measurements of this engine's
    predecessors.

    All had the same conditions (hardware, driver, shapes, options). A measurement that several runs report counts once.
    """
    settings = settings_of(places)
    tracking = open_tracking(settings.artifacts, settings.tracking_uri)
    runs = tracking.find_runs(engine=champion.engine, kind="engine", conditions=conditions, limit=limit)
    history: dict[str, dict[tuple[str, float], None]] = {}
    for run in sorted(runs, key=lambda r: r.started_at):
        digest = run.tags.get(ENGINE_DIGEST)
        for name, value in run.metrics.items():
            field, _, shape = name.partition("/")
            if field == "latency_ms_p50" and digest and value > 0 and run.tags.get(CONDITIONS) == conditions:
                history.setdefault(shape, {})[digest, value] = None
    return {shape: list(values) for shape, values in history.items()}
