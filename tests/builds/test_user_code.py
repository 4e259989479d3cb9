"""A recipe whose metric attacks the others, and itself: every verdict is the true one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engineworks.builds.results import EngineResult, engine_result
from engineworks.builds.step import run_step
from engineworks.host.child import ChildPool
from engineworks.host.file_digests import FileDigests
from engineworks.plan.plan import plan_recipe
from engineworks.recipe.load import load_recipe
from engineworks.store.store import Store

ATTACK = '''
"""Passes itself and all others, by every way that code of a process has, and through every folder that it finds."""
import contextlib, gc, json, os, sys, threading
from pathlib import Path

REPORT = json.loads({report!r})

def everywhere():
    for top in (os.getcwd(), os.path.dirname(__file__), os.environ['TMPDIR']):
        for folder, _, files in os.walk(top):
            yield Path(folder), files

def score(outputs, labels, inputs):
    import numpy, engineworks.measure.accuracy, engineworks.measure.gates.gates as gates, engineworks.steps.job as jobs
    numpy.isfinite = numpy.array_equal = lambda *a, **k: numpy.True_
    engineworks.measure.accuracy.cosine = lambda *a: 1.0
    jobs.StepJob.write_json = lambda self, name, value: (self.out / name).write_text(json.dumps(REPORT))
    for module in list(sys.modules.values()):
        for name in ("judge", "cosine", "digest_file"):
            if hasattr(module, name):
                with contextlib.suppress(Exception):
                    setattr(module, name, lambda *a, **k: 1.0)
    for folder, files in everywhere():
        with contextlib.suppress(OSError):
            (folder / "accuracy.json").chmod(0o666)
        with contextlib.suppress(OSError):
            (folder / "accuracy.json").write_text(json.dumps(REPORT))
    return 1.0
'''

HONEST = "def score(outputs, labels, inputs):\n    return float((outputs['logits'].argmax(axis=1) != labels).mean())\n"


def verdicts(repository: Path, store: Store, pool: ChildPool, recipe: str) -> dict[str, EngineResult]:
    plan = plan_recipe(load_recipe(repository / "recipes" / f"{recipe}.yaml"), store, FileDigests(None))
    for step in plan.to_do:
        run_step(step, store, pool, echo=lambda _: None)
    return {e.id: engine_result(plan, e, store, {}) for e in plan.engines}


def write(recipes: Path, name: str, source: str, limits: str) -> None:
    """A recipe whose metric is this source, with an int8 engine that its limit refuses."""
    (recipes / f"{name}_metric.py").write_text(source, encoding="utf-8")
    text = (recipes / "tiny.yaml").read_text(encoding="utf-8")
    text = text.replace("recipe: tiny", f"recipe: {name}")
    text = text.replace("metric: top1", f'metric: {{python: "{name}_metric:score"}}')
    text = text.replace("fp32: {cosine: 0.9999}", f"fp32: {limits}").partition("performance:")[0]
    strict = text.replace("int8: {cosine: 0.98}", "int8: {cosine: 0.9999999}")
    (recipes / f"{name}.yaml").write_text(strict, encoding="utf-8")


def test_a_metric_that_attacks_changes_no_verdict(repository: Path) -> None:
    recipes = repository / "recipes"
    honest = "{metric: 0.9}"
    write(recipes, "b", HONEST, honest)
    write(recipes, "c", HONEST, honest)
    store = Store(repository / "artifacts" / "store")
    with ChildPool(max_idle=1) as pool:
        truth = verdicts(repository, store, pool, "c")
        assert {i: v.verdict for i, v in truth.items()} == {"c/fp32/cpu": "fail", "c/int8/cpu": "fail"}
        passing = perfect(next((store.root / "objects").glob("*/*/accuracy.json")))
        write(recipes, "a", ATTACK.format(report=json.dumps(passing)), "{cosine: 0.9999}")
        attacker = verdicts(repository, store, pool, "a")
        victim = verdicts(repository, store, pool, "b")
        again = verdicts(repository, store, pool, "c")
    assert {i: v.verdict for i, v in attacker.items()} == {"a/fp32/cpu": "pass", "a/int8/cpu": "fail"}
    assert messages(victim) == messages(again) == messages(truth)


def messages(results: Mapping[str, EngineResult]) -> list[tuple[str, str]]:
    """Verdicts and sentences of all checks, without the metric's own name."""
    checks = [check for result in results.values() for check in result.checks]
    return [(check.verdict, check.message.replace("b_metric", "c_metric")) for check in checks]


def perfect(report: Path) -> dict[str, Any]:
    """The complete report of an engine without a fault."""
    value: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    value["metric"] |= {"engine": 1.0, "reference": 1.0, "ratio": 1.0}
    for output in value["outputs"].values():
        output |= {"cosine": 1.0, "max_abs": 0.0}
    return value
