"""`engineworks serve`: packages on a Triton server, by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engineworks.commands.options import LARGEST_NUMBER, Json, OneRecipe, Only, any_of, finite, finite_if_given
from engineworks.report import terminal
from engineworks.settings import read_settings

if TYPE_CHECKING:
    from engineworks.package.package import PackagedEngine
    from engineworks.plan.plan import Plan
    from engineworks.store.store import Store


def serve(
    recipe: OneRecipe,
    only: Only = None,
    champions: Annotated[bool, typer.Option("--champions", help="MLflow's champions, not what is built here.")] = False,
    reloads: Annotated[
        int, typer.Option("--reloads", min=1, max=LARGEST_NUMBER, help="Loads and unloads; from 30 on, growth counts.")
    ] = 3,
    swaps: Annotated[
        int, typer.Option("--swaps", min=0, max=LARGEST_NUMBER, help="Exchanges of the model under traffic.")
    ] = 0,
    sweep: Annotated[bool, typer.Option("--sweep", help="Measure settings of the dynamic batcher.")] = False,
    cold: Annotated[bool, typer.Option("--cold", help="Measure cold starts.")] = False,
    qps: Annotated[
        float | None,
        typer.Option("--qps", callback=finite_if_given, help="Queries a second, instead of the recipe's load."),
    ] = None,
    p99_ms: Annotated[
        float, typer.Option("--p99-ms", callback=finite, help="Its largest 99 % latency, and the sweep's.")
    ] = 15.0,
    seconds: Annotated[float, typer.Option("--seconds", callback=finite, help="Seconds of that load.")] = 30.0,
    as_json: Json = False,
) -> None:
    """Serve the recipe's packages on a Triton server and check them.

    The server is the one that 'make triton' installs or ENGINEWORKS_TRITON names; nothing of it is left afterwards.
    Exits 1 if a check failed, 3 if one did not decide.

    Examples:
        engineworks serve recipes/digits.yaml --only '*/cpu'
        engineworks serve recipes/digits.yaml --only '*/int8/cpu' --reloads 100 --swaps 50
    """
    from engineworks.builds.results import most_severe
    from engineworks.builds.step import STEP_FUNCTION, alone_on_this_host
    from engineworks.commands.plans import read_plans
    from engineworks.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_PASSED, InputError, RunError
    from engineworks.host.child import ChildPool
    from engineworks.host.triton import NO_SERVER, find_server
    from engineworks.measure.gates.gates import worst
    from engineworks.measure.gates.serving import serving_checks
    from engineworks.plan.kinds import SERVING_FILE
    from engineworks.release.sources import built_engines, champion_engines, require_some
    from engineworks.store.json_files import read_json_file
    from engineworks.store.open import open_store
    from engineworks.tracking.runs import open_tracking

    if find_server() is None:
        raise InputError(NO_SERVER)
    settings = read_settings()
    store = open_store(settings)
    (plan,) = read_plans(settings, [recipe], any_of(only))
    asked = plan.loaded.recipe.performance.serving.load
    load = {"qps": qps, "find_qps": False, "p99_ms": p99_ms, "seconds": seconds} if qps or sweep else None
    limits = load if qps else asked.model_dump(mode="json") if asked else None
    more = {"reloads": reloads, "swaps": swaps, "sweep": sweep, "cold": cold, "load": limits or load}
    codes, results = list[int](), list[dict[str, Any]]()
    with TemporaryDirectory(prefix="engineworks-") as folder, ChildPool() as pool:
        if champions:
            registry = open_tracking(settings.artifacts, settings.tracking_uri).registry()
            engines, left = champion_engines(plan.loaded, registry, any_of(only), Path(folder))
        else:
            engines, left = built_engines(plan, store, unmeasured=False)
        require_some(engines, left, lambda engine: f"{engine.id} {engine.message}")
        for number, payload in enumerate(_payloads(plan, engines, store, more)):
            out = Path(folder) / f"served{number}"
            out.mkdir()
            with alone_on_this_host():
                pool.run(
                    STEP_FUNCTION, {**payload, "out": str(out)}, fresh=True, what=payload["id"], error=RunError,
                    on_line=None if as_json else terminal.say,
                )  # fmt: skip
            report = read_json_file(out / SERVING_FILE)
            checks = serving_checks(report, limits, "")
            verdict = worst(checks)
            codes.append({"pass": EXIT_PASSED, "fail": EXIT_GATE_FAILED}.get(verdict, EXIT_INCONCLUSIVE))
            name = payload["id"].rpartition("/")[0]
            results.append({"id": name, "verdict": verdict, "checks": [c.to_json() for c in checks], "report": report})
            if not as_json:
                terminal.say(
                    f"{name}: {verdict}, ready in {report['ready_s']:.2f} s by Triton's backend {report['backend']}"
                )
                for check in checks:
                    terminal.say(f"  {check.verdict:<12} {check.name}: {check.message}")
    if as_json:
        terminal.print_json({"engines": results, "left_out": [{"id": e.id, "sentence": e.message} for e in left]})
    raise typer.Exit(most_severe([*codes, *(engine.exit_code for engine in left)]))


def _payloads(
    plan: Plan, engines: list[PackagedEngine], store: Store, more: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield the job of the step `serve` for every engine. more: parameters that replace the recipe's."""
    from engineworks.fingerprint import FileDigests
    from engineworks.plan.documents import Documents

    documents = Documents(plan.loaded, FileDigests(None))
    for engine in engines:
        planned = next(e for e in plan.engines if e.id == engine.passport.id)
        compare = plan.steps[planned.steps["compare"]]
        compared = (compare.key, dict(compare.document))
        document, unkeyed = documents.serve(planned.target, planned.steps["build"], compared, {})
        stored = {role: store.get(key) for role, key in document["inputs"].items() if role != "build"}
        inputs = {role: str(artifact.path) for role, artifact in stored.items() if artifact is not None}
        yield {
            "kind": "serve", "id": f"{engine.passport.id}/serve", "params": {**document["params"], **more},
            "inputs": {**inputs, "build": str(engine.folder)},
            "unkeyed": {**_texts(unkeyed), "passport": str(engine.passport.source)},
        }  # fmt: skip


def _texts(unkeyed: Mapping[str, Any]) -> dict[str, Any]:
    """Return paths as text."""
    return {k: [str(p) for p in v] if isinstance(v, list | tuple) else str(v) for k, v in unkeyed.items()}
