"""Results of a plan's `prepare` and `lower` steps: samples in the store, and notes about them."""

from __future__ import annotations

from dataclasses import replace

from engineworks.fingerprint import digest_of
from engineworks.host.file_digests import FileDigests
from engineworks.model.lower.report import Lowering
from engineworks.plan.decoder_documents import documents_of
from engineworks.plan.kinds import StepName
from engineworks.plan.plan import Plan
from engineworks.recipe.datasets.preparation import REPORT_FILE, find_made
from engineworks.recipe.load import LoadedRecipe
from engineworks.recipe.samples import SampleFile
from engineworks.settings import read_settings
from engineworks.store.artifact import Artifact
from engineworks.store.shared import open_store
from engineworks.store.store import Store


def stored_evaluation(loaded: LoadedRecipe, store: Store | None = None) -> SampleFile:
    """Return the recipe's evaluation data, ready to be read. store: that of the settings if None, opened only if
    needed.

    Raises `StoreError` where the data was not prepared yet.
    """
    data = loaded.files.evaluation
    if data.preparation is None:
        return data
    key = digest_of(documents_of(loaded, FileDigests(None)).prepare(data)[0])
    made = find_made((store or open_store(read_settings())).require(key).path)
    return replace(data, path=made, preparation=None)


def notes_of_data(plan: Plan, store: Store) -> tuple[str, ...]:
    """Return notes, such as how many texts were cut, on all prepared data in the store."""
    reports = [made.read_json(REPORT_FILE) for made in _made(plan, store, "prepare")]
    return tuple(dict.fromkeys(note for report in reports for note in report["notes"]))


def notes_of_lowering(plan: Plan, store: Store) -> tuple[str, ...]:
    """Return notes, such as which nodes a precision's recipe names in vain, on every lowered model in the store."""
    reports = [made.read(Lowering) for made in _made(plan, store, "lower")]
    return tuple(dict.fromkeys(f"{report.precision}: {note}" for report in reports for note in report.notes))


def _made(plan: Plan, store: Store, kind: StepName) -> list[Artifact]:
    """Return what the store has of the plan's steps of this kind."""
    return [made for step in plan.steps.values() if step.kind == kind and (made := store.get(step.key))]
