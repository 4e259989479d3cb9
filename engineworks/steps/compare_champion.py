"""Candidate and champion, loaded together and measured interleaved, alone on their device.

The report names its method: `identical` (the same bytes: nothing to measure), `measured` (a second attempt in a fresh
process must confirm that something is slower), or `history` (the champion does not run here: earlier measurements
replace it, and the gate reports that). `earlier`: undecided measurements of earlier builds; `confidence`: of this
build, higher the more there were.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from engineworks.engines.backends.base import Serving, Session
from engineworks.engines.engine_session import load_engine, runner_of
from engineworks.engines.sidecar import Sidecar
from engineworks.errors import RunError, TrustError
from engineworks.fingerprint import digest_of
from engineworks.host.child import ChildPool
from engineworks.host.lazy import Array
from engineworks.measure.champion import Champion
from engineworks.measure.champion_report import Attempt, ChampionComparison
from engineworks.measure.interleave import SIDES, Pace, Side, interleave
from engineworks.measure.regression import Comparison, confirm
from engineworks.plan.champion_lookup import ChampionError, engine_of, history_of
from engineworks.recipe.samples import feeds_at, samples_from_json
from engineworks.steps.job import StepJob
from engineworks.tensors import spec_from_json

ATTEMPT = "engineworks.steps.compare_champion:attempt_in_child"

MOST_REST_S = 0.06

Report = dict[str, Any]
Measure = Callable[[int], Report]
"""Seed → an `Attempt` as JSON."""


def run(job: StepJob) -> None:
    champion = Champion(**job.unkeyed["champion"])
    digest = Sidecar.read(job.inputs["build"]).sha256
    report: Report = {"champion": champion.to_json(), "digest": digest, "limit": job.params["limit"]}
    report |= {"confidence": job.params["confidence"], "earlier": job.unkeyed["earlier"]}
    try:
        _write(job, report | _compare(job, champion, digest))
    except ChampionError as error:
        job.echo(f"{champion} cannot be run here: {error.message}")
        _write(job, report | _history(job, champion, error.message))


def _write(job: StepJob, report: Report) -> None:
    job.write(ChampionComparison.from_json(report, f"{job.id}: {ChampionComparison.FILE}"))


def _compare(job: StepJob, champion: Champion, digest: str) -> Report:
    if digest == champion.digest:
        return {"method": "identical"}
    with engine_of(champion, job.unkeyed["places"]) as folder:
        payload = {
            "folders": {"champion": str(folder), "candidate": str(job.inputs["build"])},
            "params": {**job.params, "max_s": job.unkeyed["max_s"]},
            "evaluation": [str(path) for path in job.paths("evaluation")],
        }
        seed = int(digest_of([digest, champion.digest, job.params["attempt"]])[:8], 16)
        with ChildPool() as pool:
            fresh = partial(_in_fresh_process, pool, payload, job)
            report = compare_engines(lambda s: attempt_in_child(payload | {"seed": s}), fresh, seed, job.echo)
    return {"method": "measured"} | report


def compare_engines(here: Measure, fresh: Measure, seed: int, echo: Callable[[str], None]) -> Report:
    """Make an attempt here; if it finds the candidate slower at any shape, make another by `fresh`. Keeps both."""
    attempts = [here(seed)]
    first = _comparisons(attempts[0])
    second: dict[str, Comparison] = {}
    if any(c.verdict == "fail" for c in first.values()):
        echo("slower than the champion: measured again in a fresh process")
        try:
            attempts.append(fresh(seed + 1))
            second = _comparisons(attempts[1])
        except RunError as error:
            why = f"the second measurement came to nothing: {error.message}"
            second = {shape: Comparison("inconclusive", None, None, 0, why) for shape in first}
    shapes = {shape: confirm(c, second.get(shape)) for shape, c in first.items()}
    for shape, values in shapes.items():
        ratio = "nothing known" if values.ratio is None else f"{values.ratio:.4f} of the champion's time"
        echo(f"{shape}: {values.verdict}: {ratio}, {values.rounds} rounds {values.why}".rstrip())
    return {"shapes": {shape: c.to_json() for shape, c in shapes.items()}, "attempts": attempts}


def _comparisons(attempt: Report) -> dict[str, Comparison]:
    return {shape: Comparison.from_json(c) for shape, c in attempt["shapes"].items()}


def _in_fresh_process(pool: ChildPool, payload: Mapping[str, Any], job: StepJob, seed: int) -> Report:
    return pool.run(ATTEMPT, {**payload, "seed": seed}, on_line=job.echo, fresh=True, what=job.id, error=RunError)


def attempt_in_child(payload: Mapping[str, Any]) -> Report:
    """Run `attempt` as a job of a child."""
    return attempt(payload).to_json()


def attempt(
    payload: Mapping[str, Any], wrap: Callable[[Side, Session], Session] = lambda _, session: session
) -> Attempt:
    """Make one attempt in this process. wrap: gets every session that is loaded.

    Raises `ChampionError` where the champion cannot be loaded or run here, `RunError` where the candidate cannot.
    """
    params = payload["params"]
    specs = tuple(spec_from_json(s) for s in params["inputs"])
    samples = samples_from_json(payload["evaluation"], params["samples"])
    feeds = {name: feeds_at(specs, samples, at["dims"]) for name, at in params["at"].items()}
    run = runner_of(params["target"])
    with tempfile.TemporaryDirectory(prefix="engineworks-compare-champion-") as caches:

        def load(side: Side) -> LoadedEngine:
            session = _load(side, Path(payload["folders"][side]), params, Path(caches, side))
            return LoadedEngine(side, wrap(side, session), feeds)

        return interleave(
            {side: partial(load, side) for side in SIDES}, list(feeds), params["limit"], run.device_watch(),
            seed=payload["seed"], pace=Pace(max_s=params["max_s"]), rest=come_to_rest,
            confidence=params["confidence"],
        )  # fmt: skip


def come_to_rest() -> None:
    """Wait until this process uses hardly any processor time, or `MOST_REST_S` have passed."""
    begin = time.perf_counter()
    while time.perf_counter() - begin < MOST_REST_S:
        wall, busy = time.perf_counter(), time.process_time()
        time.sleep(0.001)
        if time.process_time() - busy < 0.2 * (time.perf_counter() - wall):
            return


def _load(side: Side, folder: Path, params: Mapping[str, Any], cache: Path) -> Session:
    cache.mkdir(exist_ok=True)
    try:
        return load_engine(folder, params["target"], serving=eager_serving(params), cache=cache)
    except RunError as error:
        raise _whose(side, error) from None
    except TrustError as error:  # its bytes were altered: a champion cannot be loaded, a candidate must not be
        if side == "champion":
            raise ChampionError(error.message) from None
        raise


def eager_serving(params: Mapping[str, Any]) -> Serving:
    """Return how the plan serves the engine, with the kernels that it gets after its first seconds. A round ends before
    lazy kernels arrive, and general kernels are not what serving uses."""
    serving = Serving.from_json(params["serving"])
    return replace(serving, kernels="eager") if serving.kernels == "lazy" else serving


class LoadedEngine:
    """Satisfies `interleave.Loaded`: a session and its feeds by shape."""

    def __init__(self, side: Side, session: Session, feeds: Mapping[str, Mapping[str, Array]]) -> None:
        self._side, self._session, self._feeds = side, session, feeds

    def time_runs(self, shape: str, runs: int) -> Sequence[float]:
        try:
            return self._session.time_runs(self._feeds[shape], runs).host_ms
        except RunError as error:
            raise _whose(self._side, error) from None

    def close(self) -> None:
        self._session.close()


def _whose(side: Side, error: RunError) -> RunError:
    return ChampionError(error.message, log=error.log) if side == "champion" else error


def _history(job: StepJob, champion: Champion, why: str) -> Report:
    """Return the replacement for a champion that does not run here. The gate compares the candidate with it."""
    history = history_of(champion, job.unkeyed["places"], job.unkeyed["conditions"])
    shapes = {shape: history.get(shape, []) for shape in job.params["at"]}
    return {"method": "history", "why": why, "history": shapes}
