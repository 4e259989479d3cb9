"""A planned engine → what is to blame for its failure: the lowered model or the engine alone, by node.

The steps that the search reads (lowering, data) come from the store, or are run. State lies under
`artifacts/blame/<engine>/`: a search that was killed goes on from its last build.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engineworks.builds.blame_result import BLAME_FILE, Blame, Culprit
from engineworks.builds.step import run_step
from engineworks.errors import EngineworksError, InputError
from engineworks.host.child import ChildPool
from engineworks.measure.accuracy_report import Accuracy
from engineworks.model.onnx_files import MODEL_FILE, load_model, weight_bytes
from engineworks.plan.plan import Plan, PlannedEngine
from engineworks.recipe.batch import fixed_batch
from engineworks.recipe.npz import read_arrays
from engineworks.recipe.samples import SampleFile, samples_from_json
from engineworks.settings import Settings
from engineworks.steps.blame.bundle import write_bundle, write_script
from engineworks.steps.blame.graph import Graph
from engineworks.steps.blame.probe import EngineProber
from engineworks.steps.blame.search import Found, blame_engine
from engineworks.steps.blame.values import WORST, allowed, error_of, save_part, tolerance
from engineworks.store.store import Store

VALUES, LOWERED = "engineworks.steps.blame.values:main", "engineworks.steps.blame.lowered:main"

LARGEST_BYTES = 1 << 30
"""Weights above this do not fit into the messages that parts are cut from."""

Say = Callable[[str], None]


def find_blame(plan: Plan, engine: PlannedEngine, store: Store, settings: Settings, pool: ChildPool, say: Say) -> Blame:
    """Search. Raises the errors of the steps before the build, and `InputError` for a model that is too large."""
    job = _Search(plan, engine, store, pool, say, settings.artifacts / "blame" / engine.id.replace("/", "-"))
    blame = job.run()
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / BLAME_FILE).write_text(json.dumps(blame.to_json(), indent=1) + "\n", encoding="utf-8")
    return blame


@dataclass
class _Search:
    plan: Plan
    engine: PlannedEngine
    store: Store
    pool: ChildPool
    say: Say
    folder: Path

    def run(self) -> Blame:
        """Try one sample, then a whole batch: some faults need several rows."""
        lowered, folded = self._model("lower"), self._model("fold")
        if weight_bytes(load_model(lowered, weights=False)) > LARGEST_BYTES:
            raise InputError(f"{self.engine.id}: its model is larger than 1 GiB, which blame cannot cut into parts")
        blame = Blame(self.engine.id, "unknown", f"{self.engine.id}: no sample to try")
        for feeds in self._feeds():
            blame = self._on(lowered, folded, feeds)
            if blame.word in ("engine", "lowered"):
                break
        return blame

    def _model(self, kind: str) -> Path:
        build = self.plan.steps[self.engine.steps["build"]]
        needed = {step.kind: step for step in self.plan.needed([build.inputs["lower"]])}
        for step in needed.values():
            run_step(step, self.store, self.pool, say=self.say)
        return self.store.require(needed[kind].key).path / MODEL_FILE  # type: ignore[index]

    def _feeds(self) -> list[dict[str, Any]]:
        """The worst sample of the last comparison alone, and the largest batch that evaluation uses."""
        reference = next(s for s in self.plan.steps.values() if s.kind == "reference")
        for key in reference.inputs.values():
            if self.plan.steps[key].kind == "prepare":
                run_step(self.plan.steps[key], self.store, self.pool, say=self.say)
        samples = self._samples(reference)
        sizes = sorted({min(size, samples.count) for size in reference.params["batches"]})
        first = fixed_batch(samples.specs) or sizes[0]
        worst = self._worst_row() % max(1, samples.count)
        feeds = []
        if first == 1:
            feeds += [batch for at, batch in enumerate(samples.batches([1])) if at == worst][:1]
        elif first:
            feeds.append(next(samples.batches([first])))
        if sizes[-1] > first:
            feeds.append(next(samples.batches([sizes[-1]])))
        return feeds

    def _samples(self, reference: Any) -> SampleFile:
        from engineworks.recipe.datasets.preparation import find_made

        if "evaluation" in reference.inputs:
            paths: Any = find_made(self.store.require(reference.inputs["evaluation"]).path)
        else:
            paths = reference.unkeyed["evaluation"]
        return samples_from_json(paths, reference.params["samples"])

    def _worst_row(self) -> int:
        """The sample that is furthest off in the engine's last comparison; 0 without one."""
        key = self.engine.steps.get("compare")
        stored = self.store.get(key) if key else None
        return stored.read(Accuracy).worst_row if stored else 0

    def _on(self, lowered: Path, folded: Path, feeds: Mapping[str, Any]) -> Blame:
        scratch = self.folder / "values"
        try:
            values, moved = self._values(lowered, feeds, scratch / "lowered")
        except EngineworksError as error:
            message = f"{self.engine.id}: ONNX Runtime cannot run the lowered model as written: {error.message}"
            return Blame(self.engine.id, "unknown", message, details=("Nothing says what its tensors should be.",))
        found = self._engine(Graph(load_model(lowered)), values, moved)
        if isinstance(found, Blame):
            return found
        wanted, _ = self._values(folded, feeds, scratch / "folded")
        return self._lowered(lowered, folded, wanted, values, found)

    def _values(self, model: Path, feeds: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "feeds.npz", **feeds)
        out = folder / "values.npz"
        payload = {"model": str(model), "feeds": str(folder / "feeds.npz"), "out": str(out)}
        answer = self.pool.run(VALUES, payload, what=f"{self.engine.id}: inner values")
        return read_arrays(out), answer["moved"]

    def _engine(self, graph: Graph, values: Mapping[str, Any], moved: Mapping[str, float]) -> Blame | int:
        """What the engine alone gets wrong; the number of builds where it gets nothing wrong."""
        build = self.plan.steps[self.engine.steps["build"]]
        precision = self.engine.precision
        prober = EngineProber(
            build.params["target"], precision, self.engine.computes, self.folder / "probes", self.pool, self.say
        )
        limits = allowed(dict.fromkeys(values, 0.0) | dict(moved), precision)
        found = blame_engine(graph, values, limits, prober, self._reference)
        return prober.builds if found is None else self._engine_blame(found, graph.count, limits)

    def _reference(self, model: Any, feeds: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
        file, _ = save_part(model, feeds, self.folder / "values" / "inner")
        values, moved = self._values(file, feeds, self.folder / "values" / "inner")
        return values, allowed(dict.fromkeys(values, 0.0) | moved, self.engine.precision)

    def _engine_blame(self, found: Found, total: int, limits: Mapping[str, float]) -> Blame:
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
            f"{len(nodes)} of {total} nodes, found in {found.builds} builds; "
            "ONNX Runtime runs the lowered model as expected.",
            *([f"It {crash.partition(' after ')[0].removeprefix('a part ')}."] if crash else []), *found.notes,
        )  # fmt: skip
        error = None if crash else error
        return Blame(
            self.engine.id, "engine", message, nodes, found.inside, error, found.builds, total, str(bundle), details
        )

    def _lowered(
        self, lowered: Path, folded: Path, wanted: Mapping[str, Any], values: Mapping[str, Any], builds: int
    ) -> Blame:
        outputs = [n for n in Graph(load_model(folded)).outputs if n in wanted and n in values]
        error = max((error_of(values[n], wanted[n]) for n in outputs), default=0.0)
        right = self._right_of_lowered()
        ran = self._ran()
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

    def _ran(self) -> bool:
        return not self.engine.unmeasured_because

    def _lowered_blame(self, answer: Mapping[str, Any], builds: int) -> Blame:
        blamed: Sequence[Mapping[str, Any]] = answer["blamed"]
        nodes = tuple(piece["node"] for piece in blamed)
        wrong = _how_wrong(answer["whole"])
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
            details.append(f"Alone on fp32's values, {worst['node']} {_how_wrong(worst['error'])}; "
                           f"the median of {answer['count']} pieces: {answer['typical']:.2g}.")  # fmt: skip
            write_script(bundle, {"backend": "onnxruntime"}, message, answer["typical"] * 3, as_written=True)
        return Blame(
            self.engine.id, "lowered", message, nodes, (), worst["error"] if worst else None, builds, answer["count"],
            str(bundle) if worst else "", tuple(details), tuple(answer["pieces"]),
        )  # fmt: skip


def _how_wrong(error: float | None) -> str:
    if error is None or error >= WORST:
        return "has NaN, infinity or another shape"
    return f"has an error of {error:.2g}"


def _listed(nodes: Sequence[str]) -> str:
    shown = ", ".join(nodes[:6])
    return f"{shown} and {len(nodes) - 6} more" if len(nodes) > 6 else shown
