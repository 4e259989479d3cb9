"""`engineworks serve`: packages on a Triton server, by hand."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from engineworks.commands.options import LARGEST_NUMBER, Json, OneRecipe, Only, any_of, finite, finite_if_given
from engineworks.report import terminal
from engineworks.settings import read_settings


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
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Serve the candidate beside the champion, and compare them.")
    ] = False,
    requests: Annotated[
        Path | None, typer.Option("--requests", help="Recorded requests for --shadow, one a line (docs/serving.md).")
    ] = None,
    qps: Annotated[
        float | None,
        typer.Option("--qps", callback=finite_if_given, help="Queries a second, instead of the recipe's load."),
    ] = None,
    p99_ms: Annotated[
        float, typer.Option("--p99-ms", callback=finite, help="Its largest 99% latency, and the sweep's.")
    ] = 15.0,
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", callback=finite_if_given, help="Seconds of that load (30), or of --shadow's timing."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Serve the recipe's packages on a Triton server and check them.

    The server is the one that 'make triton' installs or ENGINEWORKS_TRITON names; nothing of it is left afterwards.
    Exits 1 if a check failed, 3 if one did not decide.

    Examples:
        engineworks serve recipes/digits.yaml --only '*/cpu'
        engineworks serve recipes/digits.yaml --only '*/int8/cpu' --reloads 100 --swaps 50
        engineworks serve recipes/digits.yaml --only '*/int8/cpu' --shadow --requests recorded.jsonl
    """
    from engineworks.builds.results import most_severe
    from engineworks.commands.plans import read_plans
    from engineworks.commands.serve_jobs import Server
    from engineworks.errors import InputError
    from engineworks.host.child import ChildPool
    from engineworks.host.triton import NO_SERVER, RunningServer, find_server
    from engineworks.release.sources import LeftOut, built_engines, champion_engines, require_some
    from engineworks.serving.recorded import read_requests
    from engineworks.store.open import open_store
    from engineworks.tracking.runs import open_tracking

    if shadow and champions:
        raise InputError("--shadow compares what is built here with the champions", hint="leave --champions out")
    if requests is not None and not shadow:
        raise InputError("--requests names traffic for --shadow", hint="add --shadow")
    if requests is not None:
        read_requests(requests)
    server = find_server()
    if server is None:
        raise InputError(NO_SERVER)
    if shadow and isinstance(server, RunningServer):
        raise InputError("--shadow starts two servers; ENGINEWORKS_TRITON names a running one", hint="name a binary")
    settings = read_settings()
    store = open_store(settings)
    (plan,) = read_plans(settings, [recipe], any_of(only))
    asked = plan.loaded.recipe.performance.serving.load
    load = {"qps": qps, "find_qps": False, "p99_ms": p99_ms, "seconds": seconds or 30.0} if qps or sweep else None
    limits = load if qps else asked.model_dump(mode="json") if asked else None
    more = {"reloads": reloads, "swaps": swaps, "sweep": sweep, "cold": cold, "load": limits or load}
    with TemporaryDirectory(prefix="engineworks-") as folder, ChildPool() as pool:
        champion_of, left = {}, list[LeftOut]()
        if champions or shadow:
            registry = open_tracking(settings.artifacts, settings.tracking_uri).registry()
            engines, left = champion_engines(plan.loaded, registry, any_of(only), Path(folder))
            champion_of = {engine.passport.id: engine for engine in engines}
        if not champions:
            engines, more_left = built_engines(plan, store, unmeasured=False)
            without = {engine.id for engine in left}
            engines = [engine for engine in engines if engine.passport.id not in without]
            left = [*more_left, *left]
        require_some(engines, left, lambda engine: f"{engine.id} {engine.message}")
        jobs = Server(plan, store, Path(folder), pool, quiet=as_json)
        pairs = [(engine, champion_of[engine.passport.id]) for engine in engines] if shadow else []
        served = []
        for judged in jobs.shadow(pairs, requests, seconds) if shadow else jobs.serve(engines, more, limits):
            served.append(judged)
            if not as_json:
                judged.say()
    for engine in () if as_json else left:
        terminal.say(f"{engine.id}: {engine.message}")
    if as_json:
        left_out = [{"id": e.id, "sentence": e.message} for e in left]
        terminal.print_json({"engines": [judged.to_json() for judged in served], "left_out": left_out})
    raise typer.Exit(most_severe([*(j.exit_code for j in served), *(e.exit_code for e in left)]))
