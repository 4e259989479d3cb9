"""`engineworks serve`: packages on a Triton server, by hand."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from engineworks.commands.options import LARGEST_NUMBER, Json, OneOrMore, Only, any_of, finite, finite_if_given
from engineworks.report import terminal
from engineworks.settings import read_settings


def serve(
    recipes: OneOrMore,
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
    together: Annotated[
        bool, typer.Option("--together", help="All engines on one server at once: memory, and p99 beside each other.")
    ] = False,
    memory_mib: Annotated[
        float | None,
        typer.Option("--memory-mib", callback=finite_if_given, help="Most memory of all models of --together."),
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
        typer.Option("--seconds", callback=finite_if_given, help="Seconds of a load (30, --together 10) or a timing."),
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
        engineworks serve recipes/digits.yaml recipes/fashion.yaml --only '*/int8/cpu' --together --memory-mib 2000
    """
    from engineworks.builds.results import most_severe
    from engineworks.commands.plans import read_plans
    from engineworks.commands.serve_jobs import Judged, Server
    from engineworks.errors import InputError
    from engineworks.host.child import ChildPool
    from engineworks.host.triton import NO_SERVER, RunningServer, find_server
    from engineworks.release.sources import LeftOut, require_some
    from engineworks.serving.recorded import read_requests
    from engineworks.store.open import open_store

    _check_options(shadow=shadow, champions=champions, requests=requests, together=together, memory_mib=memory_mib)
    if requests is not None:
        read_requests(requests)
    server = find_server()
    if server is None:
        raise InputError(NO_SERVER)
    if (shadow or together) and isinstance(server, RunningServer):
        option = "--shadow" if shadow else "--together"
        raise InputError(f"{option} starts servers; ENGINEWORKS_TRITON names a running one", hint="name a binary")
    settings = read_settings()
    served, left = list[Judged](), list[LeftOut]()
    with TemporaryDirectory(prefix="engineworks-") as folder, ChildPool() as pool:
        jobs = Server(settings, open_store(settings), Path(folder), pool, quiet=as_json)
        plans = read_plans(settings, recipes, any_of(only))
        several = [jobs.select(plan, any_of(only), champions=champions, shadow=shadow) for plan in plans]
        left = [engine for selected in several for engine in selected.left]
        require_some([e for s in several for e in s.engines], left, lambda engine: f"{engine.id} {engine.message}")
        results = jobs.together(several, memory_mib, seconds) if together else iter(())
        for selected in () if together else several:
            asked = selected.plan.loaded.recipe.performance.serving.load
            given = {"qps": qps, "find_qps": False, "p99_ms": p99_ms, "seconds": seconds or 30.0}
            load = given if qps or sweep else None
            limits = load if qps else asked.model_dump(mode="json") if asked else None
            more = {"reloads": reloads, "swaps": swaps, "sweep": sweep, "cold": cold, "load": limits or load}
            one = jobs.shadow(selected, requests, seconds) if shadow else jobs.serve(selected, more, limits)
            results = chain(results, one)
        for judged in results:
            served.append(judged)
            if not as_json:
                judged.say()
    if as_json:
        left_out = [{"id": e.id, "sentence": e.message} for e in left]
        terminal.print_json({"engines": [judged.to_json() for judged in served], "left_out": left_out})
    else:
        for engine in left:
            terminal.say(f"{engine.id}: {engine.message}")
    raise typer.Exit(most_severe([*(j.exit_code for j in served), *(e.exit_code for e in left)]))


def _check_options(
    *, shadow: bool, champions: bool, requests: Path | None, together: bool, memory_mib: float | None
) -> None:
    """Raises `InputError` for options that exclude or need each other."""
    from engineworks.errors import InputError

    if shadow and champions:
        raise InputError("--shadow compares what is built here with the champions", hint="leave --champions out")
    if requests is not None and not shadow:
        raise InputError("--requests names traffic for --shadow", hint="add --shadow")
    if together and shadow:
        raise InputError("--together and --shadow are two different runs", hint="leave one out")
    if memory_mib is not None and not together:
        raise InputError("--memory-mib is the budget of --together", hint="add --together")
