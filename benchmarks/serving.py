"""Packages on a real Triton server: answers, costs, load, dynamic batching, soak, and whose a known leak is.

    python benchmarks/serving.py --only 'digits/*/cpu,minilm/fp32/cpu' [--out FILE] [--part answers --part load …]
    python benchmarks/serving.py --only 'digits/fp16/h100' --target h100

Builds the engines with `engineworks build` (what the store has is not built again) and needs a server: `make triton`,
ENGINEWORKS_TRITON, or NVIDIA's wheel in `--wheels FOLDER`, which is installed into `.triton`. One part's failure stops
no other. Writes results/serving-DATE.json; the limits come last, exit 1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Literal

import mlflow.pyfunc
import numpy as np
from leak_ways import RTX_WAYS, WAYS
from serving_cost import NAME, identity_config, serving_cost, write_identity

from engineworks.engines.backends.base import Serving
from engineworks.engines.engine_files import PASSPORT_FILE
from engineworks.engines.engine_session import load_engine
from engineworks.host.file_digests import FileDigests
from engineworks.host.gpu import first_gpu
from engineworks.host.packages import installed_version
from engineworks.host.triton import InstalledServer, find_server
from engineworks.measure.slopes import slopes
from engineworks.package.package import PackagedEngine, write_models
from engineworks.package.python_model import padded_sizes
from engineworks.package.triton_engines import KERNELS
from engineworks.plan.plan import Plan, plan_recipe
from engineworks.plan.prepared import stored_evaluation
from engineworks.recipe.load import load_recipes
from engineworks.recipe.package_settings import package_settings
from engineworks.recipe.release import largest_batch
from engineworks.release.sources import built_engines
from engineworks.serving.answers import ask, ask_at_once, questions, refusals, spread
from engineworks.serving.batching import largest_rate, settings, sweep
from engineworks.serving.client import PROTOCOLS, Client
from engineworks.serving.load import Offer, offer_load
from engineworks.serving.server import StartedServer, started
from engineworks.serving.soak import cold_starts, reload_model
from engineworks.settings import read_settings
from engineworks.store.shared import open_store
from engineworks.tracking.roles import FOLDER, LOADER

ROOT = Path(__file__).parents[1]
PARTS = ("answers", "costs", "load", "batching", "soak", "cold", "first_runs", "kernels", "leak")
VERSIONS = ("tensorrt-rtx", "onnxruntime", "onnxruntime-gpu", "tritonclient", "mlcommons-loadgen")
MOST_COST, READY_S, MOST_SLOPE_KIB = 1.3, 3.0, 64.0


class Served:
    """One engine: its session here, its questions, its package and the server that runs it."""

    def __init__(self, plan: Plan, engine: PackagedEngine, server: StartedServer, repository: Path, model: str) -> None:
        self.plan, self.engine, self.server, self.repository, self.model = plan, engine, server, repository, model
        target = {**engine.passport.body["engine"]["target"]}
        self.session = load_engine(engine.folder, target, serving=engine.passport.serving)
        samples = plan.loaded.files.evaluation
        compare = plan.steps[next(e.steps["compare"] for e in plan.engines if e.id == engine.passport.id)]
        self.batches: list[int] = compare.params["batches"]
        self.asked = questions(self.session, list(samples.batches(self.batches)))
        self.single = questions(self.session, _first(samples.batches([max(1, min(self.batches))]), 64))
        self.most = largest_batch(plan.loaded.recipe)

    def client(self, protocol: str = "grpc") -> Client:
        return Client(getattr(self.server.addresses, protocol), "http" if protocol == "http" else "grpc")


def _first(batches: Any, count: int) -> list[Any]:
    return [batch for _, batch in zip(range(count), batches, strict=False)]


def answers(served: Served, echo: Callable[[str], None]) -> dict[str, Any]:
    """The whole evaluation set by both protocols, then several clients at once, then requests that must be refused."""
    result: dict[str, Any] = {"spread": spread(served.session, served.asked) if served.most else 0.0}
    for protocol in protocols():
        with served.client(protocol) as client:
            result[protocol] = ask(client, served.model, served.asked).to_json()
            result[f"{protocol} refusals"] = refusals(
                client, served.model, served.single[0], served.session.inputs, served.most
            )
    at_once = ask_at_once(served.server.addresses.grpc, "grpc", served.model, served.asked, 4)
    result["4 clients"] = at_once.to_json()
    echo(f"answers: {result['grpc']}")
    return result


def protocols() -> list[str]:
    from importlib.util import find_spec

    return [p for p in PROTOCOLS if p == "grpc" or find_spec("geventhttpclient")]


def costs(served: Served, echo: Callable[[str], None]) -> dict[str, Any]:
    with served.client() as client:
        config = client.config(served.model)
        write_identity(served.repository, config, served.single[0])
        client.load(NAME, identity_config(config))
        result = serving_cost(client, served.model, NAME, served.session, served.single[0])
        client.unload(NAME)
    echo(f"costs: {result}")
    return result


def load(served: Served, echo: Callable[[str], None], *, p99_ms: float, seconds: float) -> dict[str, Any]:
    address = served.server.addresses.grpc
    offline = offer_load(address, served.model, served.single, Offer(100.0, p99_ms, seconds, "offline"))
    found = largest_rate(address, served.model, served.single, Offer(50.0, p99_ms, seconds))
    echo(f"load: offline {offline['completed_per_s']:.0f}/s, {found['rate']:.0f} queries/s within {p99_ms:g} ms")
    return {"offline": offline, "server": found}


def batching(served: Served, echo: Callable[[str], None], *, p99_ms: float, seconds: float) -> dict[str, Any]:
    tried = settings(served.most, delays_us=(0, 1000), instances=(1,))
    with served.client() as client:
        points = sweep(
            client,
            served.server.addresses.grpc,
            served.model,
            served.single,
            Offer(100.0, p99_ms, seconds),
            tried,
            echo,
        )
    none = max(p["rate"] for p in points if p["preferred"] is None)
    best = max(points, key=lambda p: p["rate"])
    return {"points": points, "best": best, "gain": best["rate"] / none if none else None}


def soak(served: Served, echo: Callable[[str], None], *, reloads: int) -> dict[str, Any]:
    with served.client() as client:
        client.unload(served.model)
        result = reload_model(client, served.server, served.model, served.single[0], reloads, echo)
        client.load(served.model)
    found = {name: one.to_json() for name, one in slopes(result["readings"]).items()}
    echo(f"soak: {found}")
    return {**result, "slopes": found}


def cold(served: Served, echo: Callable[[str], None]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as cache, served.client() as client:
        result = cold_starts(client, served.model, served.single[0], client.config(served.model), cache)
    echo(f"cold: {result}")
    return result


def first_runs(served: Served, echo: Callable[[str], None]) -> dict[str, Any]:
    """Milliseconds of the first and the second run of every batch size by a new session, by way of making kernels."""
    target, result = {**served.engine.passport.body["engine"]["target"]}, dict[str, Any]()
    row, sizes = served.single[0].feeds, padded_sizes(max(1, served.most))
    ways: tuple[Literal["lazy", "eager", "none"], ...] = ("lazy", "eager", "none")
    for way in ways if served.engine.passport.target.backend == "tensorrt_rtx" else ways[:1]:
        session = load_engine(served.engine.folder, target, serving=Serving(kernels=way))
        times: dict[int, list[float]] = {size: [] for size in sizes}
        for _, size in product(range(2), sizes):
            feeds = {name: np.repeat(a[:1], size, axis=0) if served.most else a for name, a in row.items()}
            start = time.perf_counter()
            session.run(feeds)
            times[size].append(1000 * (time.perf_counter() - start))
        session.close()
        result[way] = times
        echo(f"first runs, {way}: " + ", ".join(f"{size}: {t[0]:.1f} then {t[1]:.1f} ms" for size, t in times.items()))
    return result


def kernels(served: Served, echo: Callable[[str], None]) -> dict[str, Any]:
    """Seconds to load and to answer first, and ms of a run after 5 s of runs: compiled anew, and with the package's."""
    packaged = served.repository / served.model / KERNELS / served.engine.passport.target.name
    target, feeds, result = served.engine.passport.body["engine"]["target"], served.single[0].feeds, dict[str, Any]()
    for way in ("anew", "of the package") if packaged.is_dir() else ("anew",):
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(shutil.copytree(packaged, Path(folder, "kernels"))) if way != "anew" else None
            start = time.perf_counter()
            session = load_engine(served.engine.folder, target, serving=served.engine.passport.serving, cache=cache)
            session.run(feeds)
            first = time.perf_counter() - start
            while time.perf_counter() - start < first + 5:
                session.run(feeds)
            times = session.time_runs(feeds, 300)
            result[way] = {
                "first_answer_s": first, "host_ms": median(times.host_ms), "device_ms": median(times.device_ms or [0]),
                "facts": dict(session.facts), "notes": list(session.notes),
            }  # fmt: skip
            session.close()
    echo(f"kernels: {result}")
    return result


def leak(served: Served, echo: Callable[[str], None]) -> dict[str, Any]:
    """Load and drop the engine 40 times in a process of its own: by TensorRT-RTX alone, our loader and MLflow's."""
    passport = served.engine.passport
    ways = (*RTX_WAYS, *WAYS) if passport.target.backend == "tensorrt_rtx" else WAYS
    target = json.dumps(passport.body["engine"]["target"])
    result: dict[str, Any] = {}
    folder = served.repository.parent / FOLDER  # as MLflow keeps an engine: its files and its passport
    folder.mkdir()
    for name in passport.files:
        shutil.copyfile(served.engine.folder / name, folder / name)
    shutil.copyfile(passport.source, folder / PASSPORT_FILE)
    logged = served.repository.parent / "pyfunc"
    mlflow.pyfunc.save_model(str(logged), loader_module=LOADER, data_path=str(folder), pip_requirements=["numpy"])
    for way in ways:
        command = [sys.executable, str(ROOT / "benchmarks" / "leak_ways.py"), way, str(folder), target, "40"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=_env())
        if ran.returncode:
            result[way] = {"error": ran.stderr[-500:]}
            continue
        readings = json.loads(ran.stdout.splitlines()[-1])
        result[way] = {n: s.to_json() for n, s in slopes(readings).items()} | {"readings": readings}
        echo(f"leak, {way}: " + ", ".join(f"{n} {s.per_step:.0f} a load" for n, s in slopes(readings).items()))
    return result


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}


def build(only: str) -> list[Plan]:
    """Build the engines by the command that users give; returns the plans of their recipes."""
    store = open_store(read_settings())
    digests = FileDigests(read_settings().artifacts / "digests.db")
    plans = []
    for recipe in dict.fromkeys(part.strip().partition("/")[0] for part in only.split(",")):
        chosen = ",".join(part.strip() for part in only.split(",") if part.strip().startswith(f"{recipe}/"))
        command = [sys.executable, "-c", "from engineworks.cli import main; main()", "build", f"recipes/{recipe}.yaml"]
        done = subprocess.run([*command, "--only", chosen], cwd=ROOT, check=False, env=_env())
        if done.returncode not in (0, 1, 3):
            print(f"{recipe}: the build ended with exit code {done.returncode}", flush=True)
            continue
        (loaded,) = load_recipes([ROOT / f"recipes/{recipe}.yaml"], data_roots=read_settings().data_roots)
        plans.append(plan_recipe(loaded, store, digests, only=chosen))
    return plans


def install(wheels: Path) -> None:
    """Install NVIDIA's wheel into `.triton`, where `make triton` puts it."""
    (wheel,) = wheels.glob("nvidia_pytriton-*.whl")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target"]
    subprocess.run([*command, str(ROOT / ".triton"), str(wheel)], check=True)


def measure(
    plan: Plan, server: InstalledServer, arguments: argparse.Namespace, found: dict[str, Any], save: Callable[[], None]
) -> None:
    """All parts for every engine of a plan that passed, on one server each, into `found`; saved after each part."""
    engines, left = built_engines(plan, open_store(read_settings()), unmeasured=True)
    parts = arguments.part or PARTS
    found |= {engine.id: {"left out": engine.message} for engine in left}
    limits = {"p99_ms": arguments.p99_ms, "seconds": arguments.seconds}
    work: dict[str, Callable[..., dict[str, Any]]] = {
        "answers": answers, "costs": costs, "load": partial(load, **limits), "batching": partial(batching, **limits),
        "cold": cold, "first_runs": first_runs, "kernels": kernels, "soak": partial(soak, reloads=arguments.reloads),
        "leak": leak,
    }  # fmt: skip
    for engine in engines:
        name = engine.passport.id
        print(f"== {name}", flush=True)
        result = found[name] = dict[str, Any]()
        repository = Path(tempfile.mkdtemp(prefix="engineworks-serving-"))
        try:
            settings = package_settings(plan.loaded)
            package = settings.swept() if "batching" in parts else settings
            samples = stored_evaluation(plan.loaded)
            (folder,) = write_models(package, samples, [engine], repository / "models", server.available, print)
            with started(server, repository / "models") as process:
                result["start_s"] = process.start_s
                with Client(process.addresses.grpc, "grpc") as client:
                    result["ready_s"] = client.load(folder.name)
                served = Served(plan, engine, process, repository / "models", folder.name)
                for part in parts:
                    begin = time.monotonic()
                    try:
                        result[part] = work[part](served, partial(print, "  ", flush=True))
                    except Exception as error:  # noqa: BLE001 - no other part stops for it
                        result[part] = {
                            "error": f"{type(error).__name__}: {error}",
                            "trace": traceback.format_exc()[-2000:],
                        }
                        print(f"   {part}: {error}", flush=True)
                    print(f"   {part}: {time.monotonic() - begin:.1f} s", flush=True)
                    save()
                served.session.close()
                tree = process.tree
            result["gone"] = not any(Path(f"/proc/{pid}").exists() for pid in tree)
        except Exception as error:  # noqa: BLE001 - no other engine stops for it
            result["error"] = f"{type(error).__name__}: {error}"
            print(f"   {error}", flush=True)
        finally:
            shutil.rmtree(repository, ignore_errors=True)
            save()


def checks(engines: dict[str, Any]) -> list[tuple[str, bool]]:
    """The issue's limits, each with whether it holds."""
    return [check for name, result in engines.items() for check in _checks(name, result)]


def _checks(name: str, result: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    if "ready_s" in result:
        yield f"{name}: ready in {result['ready_s']:.2f} s (limit {READY_S:g})", result["ready_s"] <= READY_S
    answered = result.get("answers", {})
    for way in ("grpc", "http", "4 clients"):
        if way in answered:
            one, allowed = answered[way], max(1e-3, 4 * answered["spread"])
            worst = max((float("inf") if e is None else e for e in one["worst"].values()), default=float("inf"))
            text = f"{name}: {way}: {one['equal']} of {one['requests']} answers equal, worst row {worst:.2g}"
            yield text, worst <= allowed and not one["errors"]
    if (ratio := result.get("costs", {}).get("ratio")) is not None:
        between = "{low:.2f} to {high:.2f}".format(**result["costs"])
        yield f"{name}: costs {ratio:.2f} x the identity model ({between}, limit {MOST_COST})", ratio <= MOST_COST
    for quantity, one in result.get("soak", {}).get("slopes", {}).items():
        if quantity.endswith("_kib"):
            text = f"{name}: {quantity} {one['per_step']:.1f} a reload, at most {one['high']:.1f}"
            yield f"{text} (limit {MOST_SLOPE_KIB:g})", one["high"] <= MOST_SLOPE_KIB
    if (gain := result.get("batching", {}).get("gain")) is not None:
        yield f"{name}: dynamic batching {gain:.2f} x the rate without", True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="digits/*/cpu", help="globs over engine ids, each with its recipe's name")
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--wheels", type=Path, help="folder with NVIDIA's wheel, installed into .triton")
    parser.add_argument("--p99-ms", type=float, default=15.0)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one load")
    parser.add_argument("--reloads", type=int, default=40)
    arguments = parser.parse_args()
    if arguments.wheels and not (ROOT / ".triton").exists():
        install(arguments.wheels)
    server = find_server(start=ROOT)
    if not isinstance(server, InstalledServer):
        raise SystemExit("no Triton server: run 'make triton', or give --wheels")
    gpu = first_gpu()
    report: dict[str, Any] = {
        "date": date.today().isoformat(), "host": platform.machine(), "gpu": gpu.name if gpu else None,
        "cores": os.cpu_count(), "python": platform.python_version(), "numpy": np.__version__,
        "versions": {n: installed_version(n) for n in VERSIONS},
        "triton": "nvidia-pytriton 0.7.0 (24.10)", "backends": list(server.available), "engines": {},
    }  # fmt: skip
    out = arguments.out or ROOT / "benchmarks" / "results" / f"serving-{date.today().isoformat()}.json"

    def save() -> None:
        out.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")

    for plan in build(arguments.only):
        measure(plan, server, arguments, report["engines"], save)
    lines = checks(report["engines"])
    report["checks"] = [{"check": text, "holds": good} for text, good in lines]
    save()
    for text, good in lines:
        print(f"{'ok  ' if good else 'MISS'} {text}")
    print(f"{out}")
    return int(not all(good for _, good in lines))


if __name__ == "__main__":
    sys.exit(main())
