"""How much memory each step of a decoder's build takes, in fp32 weights. Each runs in a fresh process: the larger of
that one's peak (VmHWM) and of what it and its children had together (Pss, ten times a second). What the store has is
not run again, so name an empty one.

    ENGINEWORKS_ARTIFACTS=EMPTY python benchmarks/decoder_memory.py recipes/smollm2.yaml '*/cpu' RESULT.json
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from threading import Event, Thread
from typing import Any

from engineworks.builds.step import run_step
from engineworks.errors import EngineworksError
from engineworks.host.child import ChildPool
from engineworks.host.file_digests import FileDigests
from engineworks.host.memory import proportional_kib
from engineworks.plan.plan import plan_recipe
from engineworks.recipe.load import load_recipe
from engineworks.settings import read_settings
from engineworks.store.shared import open_store
from engineworks.store.store import Store

MIB = 1 << 20


class Recorder(ChildPool):
    """A pool whose every job has a process of its own; `peak` is the last one's, MiB."""

    peak = 0.0

    def run(self, *args: Any, **more: Any) -> dict[str, Any]:
        self.peak, ended = 0.0, Event()
        peaks: list[float] = []
        watch = Thread(target=self._watch, args=(ended,))
        watch.start()
        try:
            answer = super().run(*args, **(more | {"fresh": True, "on_peak": peaks.append}))
        finally:
            ended.set()
            watch.join()
        self.peak = max(self.peak, *peaks)
        return answer

    def _watch(self, ended: Event) -> None:
        while not ended.wait(0.1):
            self.peak = max(self.peak, sum(map(proportional_kib, descendants(os.getpid()))) / 1024)


def descendants(pid: int) -> Iterator[int]:
    """Yield the ids of the processes below a process, whichever of its threads started them (proc(5), children)."""
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it has ended
            for child in map(int, thread.read_text(encoding="ascii").split()):
                yield child
                yield from descendants(child)


def weights_mib(store: Store, export: str) -> float:
    """Size of the exported model, whose weights are fp32."""
    return sum(file.stat().st_size for file in store.require(export).path.glob("model.onnx*")) / MIB


def reported(recipe: str, weights: float, rows: list[dict[str, Any]]) -> dict[str, Any]:
    for row in rows:
        row["of_weights"] = round(row.get("peak_mib", 0) / weights, 2)
    versions = {name: version(name) for name in ("onnx", "onnxruntime", "torch", "transformers")}
    return {"recipe": recipe, "weights_mib": round(weights), "versions": versions, "steps": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("only")
    parser.add_argument("result", type=Path)
    given = parser.parse_args()
    store, rows = open_store(read_settings()), list[dict[str, Any]]()
    plan = plan_recipe(load_recipe(given.recipe), store, FileDigests(None), only=given.only)
    export = next(key for key, step in plan.steps.items() if step.kind == "export")
    with Recorder() as pool:
        for step in plan.to_do:
            try:
                outcome = run_step(step, store, pool, echo=lambda _: None)
            except EngineworksError as error:
                rows.append({"step": step.id, "error": str(error)})
                print(f"{step.id}: {error}", flush=True)
                continue
            rows.append({"step": step.id, "peak_mib": round(pool.peak), "seconds": round(outcome.seconds, 1)})
            print(f"{step.id}: {pool.peak:.0f} MiB, {outcome.seconds:.0f} s", flush=True)
            report = reported(plan.recipe, weights_mib(store, export), rows)
            given.result.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    weights = weights_mib(store, export)
    print(f"weights {weights:.0f} MiB; the most: {max(row['of_weights'] for row in rows):.2f} times")


if __name__ == "__main__":
    main()
