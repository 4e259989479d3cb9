"""`engineworks serve`: packages on a Triton server, by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engineworks.commands.options import (
    LARGEST_NUMBER,
    Champions,
    Json,
    OneOrMore,
    Only,
    any_of,
    finite,
    finite_if_given,
)
from engineworks.report import terminal
from engineworks.settings import read_settings

if TYPE_CHECKING:
    from engineworks.commands.serve_jobs import Selected, Served, Server
    from engineworks.recipe.recipe import Recipe
    from engineworks.release.sources import LeftOut

Reloads = Annotated[
    int, typer.Option("--reloads", min=1, max=LARGEST_NUMBER, help="Loads and unloads; from 30 on, growth counts.")
]
Swaps = Annotated[int, typer.Option("--swaps", min=0, max=LARGEST_NUMBER, help="Exchanges of the model under traffic.")]
Sweep = Annotated[bool, typer.Option("--sweep", help="Measure settings of the dynamic batcher.")]
Cold = Annotated[bool, typer.Option("--cold", help="Measure cold starts.")]
Shadow = Annotated[bool, typer.Option("--shadow", help="Serve the candidate beside the champion, and compare them.")]
Requests = Annotated[
    Path | None, typer.Option("--requests", help="Recorded requests for --shadow, one a line (docs/serving.md).")
]
Together = Annotated[
    bool, typer.Option("--together", help="All engines on one server at once: memory, and p99 beside each other.")
]
MemoryMib = Annotated[
    float | None,
    typer.Option("--memory-mib", callback=finite_if_given, help="Most memory of all models of --together."),
]
Qps = Annotated[
    float | None,
    typer.Option("--qps", callback=finite_if_given, help="Queries a second, instead of the recipe's load."),
]
P99Ms = Annotated[float, typer.Option("--p99-ms", callback=finite, help="Its largest 99% latency, and the sweep's.")]
Seconds = Annotated[
    float | None,
    typer.Option("--seconds", callback=finite_if_given, help="Seconds of a load (30, --together 10) or a timing."),
]


@dataclass(frozen=True)
class Options:
    """What is asked of the server, as the command's options name it."""

    champions: bool
    reloads: int
    swaps: int
    sweep: bool
    cold: bool
    shadow: bool
    requests: Path | None
    together: bool
    memory_mib: float | None
    qps: float | None
    p99_ms: float
    seconds: float | None

    def check(self) -> None:
        """Raises `InputError` for options that exclude or need each other."""
        from engineworks.errors import InputError

        if self.shadow and self.champions:
            raise InputError("--shadow compares what is built here with the champions", hint="leave --champions out")
        if self.requests is not None and not self.shadow:
            raise InputError("--requests names traffic for --shadow", hint="add --shadow")
        if self.together and self.shadow:
            raise InputError("--together and --shadow are two different runs", hint="leave one out")
        if self.memory_mib is not None and not self.together:
            raise InputError("--memory-mib is the budget of --together", hint="add --together")

    def limits(self, recipe: Recipe) -> dict[str, Any] | None:
        """Return the load that is evaluated: the command's, else the recipe's, else None."""
        asked = recipe.performance.serving.load
        return self._given() if self.qps else asked.model_dump(mode="json") if asked else None

    def parameters(self, recipe: Recipe) -> dict[str, Any]:
        """Return the parameters of the step `serve` that replace the recipe's."""
        load = self.limits(recipe) or (self._given() if self.sweep else None)  # a sweep needs a p99 limit
        return {"reloads": self.reloads, "swaps": self.swaps, "sweep": self.sweep, "cold": self.cold, "load": load}

    def _given(self) -> dict[str, Any]:
        return {"qps": self.qps, "find_qps": False, "p99_ms": self.p99_ms, "seconds": self.seconds or 30.0}


def serve(
    recipes: OneOrMore,
    only: Only = None,
    champions: Champions = False,
    reloads: Reloads = 3,
    swaps: Swaps = 0,
    sweep: Sweep = False,
    cold: Cold = False,
    shadow: Shadow = False,
    requests: Requests = None,
    together: Together = False,
    memory_mib: MemoryMib = None,
    qps: Qps = None,
    p99_ms: P99Ms = 15.0,
    seconds: Seconds = None,
    as_json: Json = False,
) -> None:
    """Serve the recipe's packages on a Triton server and check them.

    The server is the one that 'make triton' installs or ENGINEWORKS_TRITON names; it is stopped afterwards.
    Exits 1 if a check failed, 3 if one did not decide.

    Examples:
        engineworks serve recipes/digits.yaml --only '*/cpu'
        engineworks serve recipes/digits.yaml --only '*/int8/cpu' --reloads 100 --swaps 50
        engineworks serve recipes/digits.yaml --only '*/int8/cpu' --shadow --requests recorded.jsonl
        engineworks serve recipes/digits.yaml recipes/fashion.yaml --only '*/int8/cpu' --together --memory-mib 2000
    """
    from engineworks.builds.results import most_severe

    options = Options(
        champions, reloads, swaps, sweep, cold, shadow, requests, together, memory_mib, qps, p99_ms, seconds
    )
    options.check()
    _require_server(options)
    served, left = _serve(recipes, any_of(only), options, quiet=as_json)
    if as_json:
        left_out = [{"id": e.id, "message": e.message} for e in left]
        terminal.print_json({"engines": [engine.to_json() for engine in served], "left_out": left_out})
    else:
        for engine in left:
            terminal.echo(f"{engine.id}: {engine.message}")
    raise typer.Exit(most_severe([*(j.exit_code for j in served), *(e.exit_code for e in left)]))


def _require_server(options: Options) -> None:
    """Raises `InputError` without a server that can do this, or for recorded requests that cannot be read."""
    from engineworks.errors import InputError
    from engineworks.host.triton import NO_SERVER, RunningServer, find_server
    from engineworks.serving.recorded import read_requests

    if options.requests is not None:
        read_requests(options.requests)
    server = find_server()
    if server is None:
        raise InputError(NO_SERVER)
    if (options.shadow or options.together) and isinstance(server, RunningServer):
        option = "--shadow" if options.shadow else "--together"
        raise InputError(f"{option} starts servers; ENGINEWORKS_TRITON names a running one", hint="name a binary")


def _serve(
    recipes: list[Path], only: str | None, options: Options, *, quiet: bool
) -> tuple[list[Served], list[LeftOut]]:
    """Return what was served, each printed as soon as it is evaluated, and the engines that were left out."""
    from engineworks.commands.plans import read_plans
    from engineworks.commands.serve_jobs import Server
    from engineworks.host.child import ChildPool
    from engineworks.release.sources import require_some
    from engineworks.store.shared import open_store

    settings, served = read_settings(), list[Any]()
    with TemporaryDirectory(prefix="engineworks-") as folder, ChildPool() as pool:
        jobs = Server(settings, open_store(settings), Path(folder), pool, quiet=quiet)
        plans = read_plans(settings, recipes, only)
        several = [jobs.select(plan, only, champions=options.champions, shadow=options.shadow) for plan in plans]
        left = [engine for selected in several for engine in selected.left]
        require_some([e for s in several for e in s.engines], left, lambda engine: f"{engine.id} {engine.message}")
        for engine in _run(jobs, several, options):
            served.append(engine)
            if not quiet:
                engine.echo()
    return served, left


def _run(jobs: Server, several: list[Selected], options: Options) -> Iterator[Served]:
    if options.together:
        yield from jobs.together(several, options.memory_mib, options.seconds)
        return
    for selected in several:
        if options.shadow:
            yield from jobs.shadow(selected, options.requests, options.seconds)
        else:
            recipe = selected.plan.loaded.recipe
            yield from jobs.serve(selected, options.parameters(recipe), options.limits(recipe))
