"""MLflow's web pages: addresses of a run, a comparison and a saved view, and the saved views themselves.

MLflow keeps the columns of its table of runs in the browser; a server can hold *saved views*. These are experiment tags
`mlflow.sharedViewState.KEY`, each with columns, search and order. The page lists them in its menu of views, and
`…/runs?viewStateShareKey=KEY` opens one. The format is MLflow's (3.17): an envelope of name, createdAt, updatedAt and
state; the state is JSON text with the page's own field names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from engineworks.tracking.records import KIND, RECIPE, VERDICT, WHY

VIEW_TAG = "mlflow.sharedViewState."
"""Tag of an experiment: a saved view. The rest of the name is its key."""

EXPERIMENT_KIND, TRAINING = "mlflow.experimentKind", "custom_model_development"
"""Tag of an experiment: MLflow's page shows runs and their comparison first, not traces and prompts."""

HEADLINE = ("p50_ms", "p99_ms", "samples_per_s", "worst_cosine", "metric", "engine_mib", "memory_mib")
"""Metrics of every measured engine, at the recipe's first named shape."""

ALL_ENGINES = "engines"
"""Key of the view with the engines of all recipes."""

LOCAL = "http://127.0.0.1:5000"
"""Address where `mlflow ui` serves a store that is a file."""

LOCAL_PREFECT = "http://127.0.0.1:4200"
"""Address where `prefect server start` shows the runs of builds without a server."""

_TAGS = (f"tags.`{VERDICT}`", f"tags.`{WHY}`")
_PARAMS = ("params.`precision`", "params.`target`")

BY_NAME = "tags.`mlflow.runName`"
"""This order gives every engine a row; in order of time, MLflow folds engines into their builds."""

_VIEW_CHARS = 4900
"""Maximum length of a view; an experiment's tag takes 5000 characters."""


@dataclass(frozen=True)
class Pages:
    """Addresses of one experiment's pages."""

    server: str
    experiment: str

    def run(self, run_id: str) -> str:
        return f"{self.server}/#/experiments/{self.experiment}/runs/{run_id}"

    def artifact(self, run_id: str, path: str) -> str:
        """Return the page of a file of the run."""
        return f"{self.run(run_id)}/artifacts/{quote(path)}"

    def compare(self, run_ids: Sequence[str]) -> str:
        """Return MLflow's comparison of these runs, side by side."""
        runs, experiments = (quote(json.dumps(list(x))) for x in (run_ids, [self.experiment]))
        return f"{self.server}/#/compare-runs?runs={runs}&experiments={experiments}"

    def view(self, key: str) -> str:
        return f"{self.server}/#/experiments/{self.experiment}/runs?viewStateShareKey={quote(key)}"


def view_key(recipe: str) -> str:
    """Return the key of a recipe's view, valid in an address and a tag."""
    return "recipe-" + re.sub(r"[^A-Za-z0-9-]+", "-", recipe)


def engines_view() -> str:
    """Return a saved view with all engines of all recipes, by name."""
    columns = [_TAGS[0], *(f"metrics.`{name}`" for name in HEADLINE), _TAGS[1], *_PARAMS]
    return _view("Engines", f"tags.`{KIND}` = 'engine'", columns)


def recipe_view(recipe: str, metrics: Iterable[str]) -> str:
    """Return a saved view with one recipe's engines, by name, with these metrics next to the headline."""
    more = [name for name in metrics if name not in HEADLINE]
    while True:
        names = [*HEADLINE[:3], *more, *HEADLINE[3:]]
        columns = [f"tags.`{VERDICT}`", *(f"metrics.`{name}`" for name in names), *_TAGS[1:], *_PARAMS]
        view = _view(f"Engines of {recipe}", f"tags.`{KIND}` = 'engine' AND tags.`{RECIPE}` = '{recipe}'", columns)
        if len(view) <= _VIEW_CHARS or not more:
            return view
        more.pop()


def _view(name: str, search: str, columns: Sequence[str]) -> str:
    state = {
        "searchFilter": search, "orderByKey": BY_NAME, "orderByAsc": True, "startTime": "ALL",
        "lifecycleFilter": "Active", "modelVersionFilter": "All Runs", "datasetsFilter": [],
        "selectedColumns": list(columns), "columnOrder": list(columns), "columnWidths": {}, "groupBy": None,
        "runListHidden": False, "viewMaximized": False, "runsHiddenMode": "FIRST_20_RUNS",
    }  # fmt: skip
    return json.dumps({"name": name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state, sort_keys=True)})


def experiment_note(pages: Pages, views: Mapping[str, str]) -> str:
    """Return the experiment's description: its runs and its saved views. views: key by name."""
    lines = [
        "Builds of Engineworks: one run per build, and below it one per engine, named RECIPE/PRECISION/TARGET.",
        "",
        "| view | opens |",
        "| --- | --- |",
        *(f"| {name} | [columns and filter set]({pages.view(key)}) |" for name, key in views.items()),
        "",
        "`report.html` among a build's artifacts is its report.",
    ]
    return "\n".join(lines)
