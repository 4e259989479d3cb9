"""The models of `precision.py`: the shipped recipes, folded by their own steps, and a ResNet-50 with random weights."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engineworks.recipe.metric import PythonMetric

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "recipes"), str(ROOT / "benchmarks")]

Arrays = dict[str, NDArray[Any]]

RECIPES = ("digits", "fashion", "minilm", "ocr-recognition")
LARGEST_EVALUATION = 2000
RESNET_CALIBRATION, RESNET_EVALUATION = 32, 32


@dataclass(frozen=True)
class Case:
    """A folded fp32 model with its samples. metric: task metric of all outputs, or None. keep: the recipe's."""

    name: str
    model: Path
    calibration: Callable[[], Iterator[Arrays]]
    samples: int
    evaluation: Callable[[], Iterator[Arrays]]
    metric: Callable[[Arrays], float] | None
    metric_name: str
    keep: tuple[str, ...] = ()


def load_case(name: str, folder: Path, largest: int = LARGEST_EVALUATION) -> Case:
    """The case of that name; its folded model is made in `folder` unless it is there. largest: samples judged."""
    return _resnet50(folder) if name == "resnet50" else _of_recipe(name, folder, largest)


def _of_recipe(name: str, folder: Path, largest: int) -> Case:
    from engineworks.host.file_digests import FileDigests
    from engineworks.plan.plan import plan_recipe
    from engineworks.recipe.load import load_recipe
    from engineworks.store.store import Store

    loaded = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    store = Store(folder / "store")
    plan = plan_recipe(loaded, store, FileDigests(None), only="*/fp32/cpu")
    model = folded(plan, store) / "model.onnx"
    calibration, evaluation = loaded.files.calibration, loaded.files.evaluation
    assert calibration is not None
    batch = loaded.recipe.calibration.batch
    rows = min(evaluation.count, largest)
    labels = evaluation.read_labels()
    inputs = _stacked(_first(evaluation.batches([batch]), rows))
    metric = loaded.recipe.accuracy.metric
    function = metric.python.partition(":")[2] if isinstance(metric, PythonMetric) else ""

    def judge(outputs: Arrays) -> float:
        assert labels is not None
        if not function:
            return float((next(iter(outputs.values())).argmax(axis=1) == labels[:rows]).mean())
        module = importlib.import_module("metrics")
        return float(getattr(module, function)(outputs, labels[:rows], inputs))

    return Case(
        name,
        model,
        lambda: calibration.batches([batch]),
        calibration.count,
        lambda: _first(evaluation.batches([batch]), rows),
        judge,
        function or "top1",
        loaded.recipe.calibration.keep,
    )


def folded(plan: Any, store: Any) -> Path:
    """Export and fold as a build does, each in a child."""
    from engineworks.builds.step import run_step
    from engineworks.host.child import ChildPool

    with ChildPool() as pool:
        for step in plan.steps.values():
            if step.kind in ("export", "fold"):
                run_step(step, store, pool, echo=lambda _: None)
    fold = next(step for step in plan.steps.values() if step.kind == "fold")
    return Path(store.require(fold.key).path)


def _first(batches: Iterator[Mapping[str, Any]], rows: int) -> Iterator[Arrays]:
    """Batches until that many samples came, the last one cut."""
    done = 0
    for batch in batches:
        taken = {name: np.asarray(array)[: rows - done] for name, array in batch.items()}
        yield taken
        done += len(next(iter(taken.values())))
        if done >= rows:
            return


def _stacked(batches: Iterator[Arrays]) -> Arrays:
    parts = list(batches)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _resnet50(folder: Path) -> Case:
    """Random weights have no task: top1 is agreement with fp32 there."""
    import onnx
    from calibration import ResNet50, images

    path = folder / "resnet50.onnx"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        onnx.save(ResNet50().build(), str(path))
    total = RESNET_CALIBRATION + RESNET_EVALUATION

    def evaluation() -> Iterator[Arrays]:
        return islice(images(total, 4), RESNET_CALIBRATION // 4, None)

    return Case(
        "resnet50",
        path,
        lambda: images(RESNET_CALIBRATION, 4),
        RESNET_CALIBRATION,
        evaluation,
        None,
        "top1 against fp32",
    )
