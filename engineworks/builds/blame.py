"""A planned engine → what is to blame for its failure: the lowered model or the engine alone, by node.

The steps that the search reads (lowering, data) come from the store, or are run. State lies under
`artifacts/blame/<engine>/`: a search that was killed goes on from its last build.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engineworks.builds.blame_result import BLAME_FILE, Blame, Culprit
from engineworks.builds.step import run_step
from engineworks.errors import EngineworksError, StepError
from engineworks.fingerprint import digest_of
from engineworks.host.child import ChildPool
from engineworks.host.file_digests import digest_file
from engineworks.host.lock import locked
from engineworks.measure.accuracy_report import Accuracy
from engineworks.model.onnx_files import MODEL_FILE, graph_outputs, load_model, model_files
from engineworks.plan.plan import Plan, PlannedEngine
from engineworks.recipe.npz import read_arrays
from engineworks.recipe.samples import SampleFile, samples_from_json
from engineworks.settings import Settings
from engineworks.steps.blame.bundle import write_bundle, write_script
from engineworks.steps.blame.graph import Graph, read_graph
from engineworks.steps.blame.lowered import SHOWN
from engineworks.steps.blame.probe import SCRATCH, Budget, EngineProber, OutOfBuilds, array_digests
from engineworks.steps.blame.search import Found, blame_engine, most_builds
from engineworks.steps.blame.trials import Trial, Trials, worst_visit
from engineworks.steps.blame.values import WORST, allowed, error_of, save_part, tolerance
from engineworks.store.store import Store

VALUES, LOWERED = "engineworks.steps.blame.values:main", "engineworks.steps.blame.lowered:main"

PROBES, WEIGHTS = "probes", "weights"

Say = Callable[[str], None]


def find_blame(
    plan: Plan, engine: PlannedEngine, store: Store, settings: Settings, pool: ChildPool, echo: Say
) -> Blame:
    """Search. Raises the errors of the steps before the build."""
    job = _Search(plan, engine, store, pool, echo, settings.artifacts / "blame" / engine.id.replace("/", "-"))
    job.folder.mkdir(parents=True, exist_ok=True)
    with locked(job.folder / "lock"):
        for left in job.folder.glob(f"**/{SCRATCH}*"):  # of a search that was killed
            shutil.rmtree(left, ignore_errors=True)
        try:
            blame = job.run()
        finally:
            (job.folder / WEIGHTS).unlink(missing_ok=True)
        (job.folder / BLAME_FILE).write_text(json.dumps(blame.to_json(), indent=1) + "\n", encoding="utf-8")
    return blame


@dataclass
class _Search:
    plan: Plan
    engine: PlannedEngine
    store: Store
    pool: ChildPool
    echo: Say
    folder: Path

    def run(self) -> Blame:
        """Search the engine with every trial, then the lowered model."""
        lowered, folded = self._model("lower"), self._model("fold")
        trials, suspect = self._trials()
        graph = read_graph(lowered, self.folder / WEIGHTS)
        budget = Budget(self._prober(lowered), most_builds(graph.count))
        for trial in trials:
            try:
                found = self._on(graph, lowered, trial, budget, suspect=suspect)
            except OutOfBuilds:
                break
            if found is not None:
                return found
        blame = Blame(self.engine.id, "unknown", f"{self.engine.id}: no sample to try")
        for trial in trials:
            blame = self._lowered(lowered, folded, trial, budget.builds)
            if blame.culprit == "lowered":
                break
        return blame

    def _model(self, kind: str) -> Path:
        build = self.plan.steps[self.engine.steps["build"]]
        needed = {step.kind: step for step in self.plan.needed([build.inputs["lower"]])}
        for step in needed.values():
            run_step(step, self.store, self.pool, echo=self.echo)
        return self.store.require(needed[kind].key).path / MODEL_FILE  # type: ignore[index]

    def _trials(self) -> tuple[list[Trial], bool]:
        """The feeds to try, and whether the engine is suspected: nothing says that it is as its lowered model."""
        reference = next(s for s in self.plan.steps.values() if s.kind == "reference")
        for key in reference.inputs.values():
            if self.plan.steps[key].kind == "prepare":
                run_step(self.plan.steps[key], self.store, self.pool, echo=self.echo)
        report = self._comparison()
        served = report.served if report else None
        trials = Trials(
            self._samples(reference), reference.params["shapes"], served, report.worst_row if report else 0,
            reference.params["batches"],
        )  # fmt: skip
        return list(trials), served is None or worst_visit(served) is not None

    def _samples(self, reference: Any) -> SampleFile:
        from engineworks.recipe.datasets.preparation import find_made

        if "evaluation" in reference.inputs:
            paths: Any = find_made(self.store.require(reference.inputs["evaluation"]).path)
        else:
            paths = reference.unkeyed["evaluation"]
        return samples_from_json(paths, reference.params["samples"])

    def _comparison(self) -> Accuracy | None:
        """The engine's comparison, which tells at which shape and sample it is wrong; None where it cannot be made."""
        key = self.engine.steps.get("compare")
        if key is None or self.engine.unmeasured_because:
            return None
        try:
            for step in self.plan.needed([key]):
                run_step(step, self.store, self.pool, echo=self.echo)
            return self.store.require(key).read(Accuracy)
        except StepError as error:
            self.echo(f"it cannot be compared: {error.message}")
            return None

    def _prober(self, lowered: Path) -> EngineProber:
        target = self.plan.steps[self.engine.steps["build"]].params["target"]
        return EngineProber(
            target,
            self.engine.precision,
            self.engine.computes,
            _digest_model(lowered),
            self.folder / PROBES,
            self.pool,
            self.echo,
        )

    def _on(self, graph: Graph, lowered: Path, trial: Trial, budget: Budget, *, suspect: bool) -> Blame | None:
        """What the engine alone gets wrong with these feeds; None for nothing. suspect: search dynamic shapes, too."""
        try:
            values, moved = self._values(lowered, trial.feeds, "lowered")
        except EngineworksError as error:
            message = f"{self.engine.id}: ONNX Runtime cannot run the lowered model as written: {error.message}"
            return Blame(self.engine.id, "unknown", message, details=("Nothing says what its tensors should be.",))

        def other() -> Mapping[str, Any] | None:
            feeds = trial.other() if suspect else {}
            return self._values(lowered, feeds, "other")[0] if feeds else None

        limits = allowed(dict.fromkeys(values, 0.0) | dict(moved), self.engine.precision)
        found = blame_engine(graph, values, limits, budget, self._reference, other)
        return None if found is None else self._engine_blame(found, graph.count, limits, trial)

    def _values(self, model: Path, feeds: Mapping[str, Any], name: str) -> tuple[dict[str, Any], dict[str, float]]:
        """Every inner tensor of a model, and how far one rounding moves each; those of a killed search are kept."""
        folder = self.folder / "values" / name
        asked, out = digest_of({"model": _digest_model(model), "feeds": array_digests(feeds)}), folder / "values.npz"
        done = folder / "done.json"
        known = json.loads(done.read_text(encoding="utf-8")) if done.is_file() else {}
        if known.get("asked") != asked:
            done.unlink(missing_ok=True)
            folder.mkdir(parents=True, exist_ok=True)
            np.savez(folder / "feeds.npz", **feeds)
            payload = {"model": str(model), "feeds": str(folder / "feeds.npz"), "out": str(out)}
            answer = self.pool.run(VALUES, payload, what=f"{self.engine.id}: inner values")
            known = {"asked": asked, "moved": answer["moved"]}
            partial = done.with_suffix(".partial")
            partial.write_text(json.dumps(known), encoding="utf-8")
            partial.replace(done)
        return read_arrays(out), known["moved"]

    def _reference(self, model: Any, feeds: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
        file, _ = save_part(model, feeds, self.folder / "values" / "inner")
        values, moved = self._values(file, feeds, "inner")
        return values, allowed(dict.fromkeys(values, 0.0) | moved, self.engine.precision)

    def _engine_blame(self, found: Found, total: int, limits: Mapping[str, float], trial: Trial) -> Blame:
        nodes = tuple(found.labels)
        error = max((found.answer.errors.get(n, 0.0) for n in found.outputs), default=None)
        crash = found.answer.crash
        how = "crashes" if crash else _how_wrong(error)
        where = f" in {' in '.join(reversed(found.inside))}" if found.inside else ""
        message = f"{self.engine.id}: the engine alone is wrong: it {how} at {_listed(nodes)}{where}"
        target = self.plan.steps[self.engine.steps["build"]].params["target"]
        right = max((limits.get(n, 0.0) for n in found.outputs), default=tolerance(self.engine.precision))
        bundle = write_bundle(found, target, message, right, self.folder / "bundle")
        details = (
            f"{len(nodes)} of {total} nodes, found in {found.builds} builds {trial.what}; "
            "ONNX Runtime runs the lowered model as expected.",
            *(["It shows in engines for several shapes only."] if found.other is not None else []),
            *([f"It {crash.partition(' after ')[0].removeprefix('a part ')}."] if crash else []), *found.notes,
        )  # fmt: skip
        error = None if crash else error
        return Blame(
            self.engine.id, "engine", message, nodes, found.inside, error, found.builds, total, str(bundle), details
        )

    def _lowered(self, lowered: Path, folded: Path, trial: Trial, builds: int) -> Blame:
        values, wanted = (self._values(m, trial.feeds, n)[0] for m, n in ((lowered, "lowered"), (folded, "folded")))
        outputs = [
            n.name for n in graph_outputs(load_model(folded, weights=False)) if n.name in wanted and n.name in values
        ]
        error = max((error_of(values[n], wanted[n]) for n in outputs), default=0.0)
        right = self._right_of_lowered()
        ran = not self.engine.unmeasured_because
        if error <= right:
            culprit: Culprit = "nothing" if ran else "unknown"
            end = "" if ran else "; this host cannot run the engine, so only its build was tried"
            message = (
                f"{self.engine.id}: no fault was found on this sample: the lowered model is within {error:.2g} of fp32"
                f"{', and the engine is as the lowered model' if ran else ''}{end}"
            )
            return Blame(self.engine.id, culprit, message, builds=builds)
        payload = {
            "folded": str(folded), "lowered": str(lowered), "allowed": right,
            "folded_values": str(self.folder / "values/folded/values.npz"),
            "lowered_values": str(self.folder / "values/lowered/values.npz"), "out": str(self.folder / "bundle"),
        }  # fmt: skip
        answer = self.pool.run(LOWERED, payload, what=f"{self.engine.id}: pieces of the lowered model")
        return self._lowered_blame(answer, builds)

    def _right_of_lowered(self) -> float:
        """The error that the precision's limits allow the lowered model: √(2(1 − c)) of a cosine c, at most 3 ρ."""
        limits = {str(name): given for name, given in self.plan.loaded.recipe.accuracy.limits.items()}
        cosine = getattr(limits.get(self.engine.precision), "cosine", None)
        usual = tolerance(self.engine.precision)
        return usual if cosine is None else min(usual, math.sqrt(2 * (1 - cosine)))

    def _lowered_blame(self, answer: Mapping[str, Any], builds: int) -> Blame:
        blamed: Sequence[Mapping[str, Any]] = answer["blamed"]
        nodes = tuple(piece["node"] for piece in blamed)
        wrong = _how_wrong(answer["error"])
        begin = f"{self.engine.id}: the lowered ONNX is already wrong in ONNX Runtime: its output {wrong}"
        if not blamed:
            message = f"{begin}; no node alone explains it: every piece loses a little"
        else:
            message = (
                f"{begin} against fp32, and {_how_wrong(answer['left'])} with "
                f"{'this node' if len(nodes) == 1 else f'these {len(nodes)} nodes'} in fp32: {_listed(nodes)}"
            )
        worst = answer["pieces"][0] if answer["pieces"] else None
        details = []
        bundle = self.folder / "bundle"
        if worst is not None:
            details.append(
                f"{worst['node']} alone {_how_wrong(worst['error'])} on fp32's values (median of the others that lose: "
                f"{answer['typical']:.2g}), and the fp32 model's output {_how_wrong(worst['effect'])} with it."
            )
            write_script(bundle, {"backend": "onnxruntime"}, message, answer["right"], as_written=True)
        if len(answer["cured"]) > len(blamed):
            names = _listed([piece["node"] for piece in answer["cured"]], SHOWN)
            right = self._right_of_lowered()
            details.append(
                f"Its error is right ({right:.2g} or less) with these {len(answer['cured'])} in fp32: {names}."
            )
        return Blame(
            self.engine.id, "lowered", message, nodes, (), worst["error"] if worst else None, builds, answer["count"],
            str(bundle) if worst else "", tuple(details), tuple(answer["pieces"]),
        )  # fmt: skip


def _digest_model(path: Path) -> str:
    """Of the ONNX file and its external data."""
    return digest_of([digest_file(file) for file in model_files(path)])


def _how_wrong(error: float | None) -> str:
    if error is None or error >= WORST:
        return "has NaN, infinity or another shape"
    return f"has an error of {error:.2g}"


def _listed(nodes: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(nodes[:most])
    return f"{shown} and {len(nodes) - most} more" if len(nodes) > most else shown
