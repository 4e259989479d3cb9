"""One night in this process, measured: `python benchmarks/nightly_night.py measure|build|deliver`, in a repository.

The Prefect server is the one that PREFECT_API_URL names. build: the first night, in one process; prints what it took.
deliver: let the store have what a worker of each GPU type without its GPU delivers, as it is after a night on several
hosts. measure: a night as the deployment runs it; prints one line of JSON with the processor time of this process and
its children (user + system, imports and all), the same of a second such night (without imports), wall time, and the
peak of its memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from engineworks.builds.delivery import delivery_of, is_unfinished, note_delivery, order_of, publish_body
from engineworks.builds.state import Build
from engineworks.host.file_digests import FileDigests
from engineworks.plan.plan import plan_recipe
from engineworks.recipe.load import find_recipes, load_recipe
from engineworks.settings import read_settings
from engineworks.store.shared import open_store
from flows.local_prefect import drain
from flows.nightly import nightly


def processor_s() -> float:
    """User and system time of this process and the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def peak_mib() -> float:
    """Peak resident memory of this process. Its only children are `git`, a few MiB; their rusage tells of the memory
    that they share with this process before they become git."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def build() -> None:
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):  # a flow waits a second for its last heartbeat
        state = nightly(return_state=True)
    drain()
    print(str(state.message).splitlines()[0])
    print(json.dumps({"processor_s": processor_s(), "peak_mib": peak_mib()}))
    if not state.is_completed():
        sys.exit(str(state.message))


def deliver() -> None:
    settings = read_settings()
    store, digests = open_store(settings), FileDigests(settings.artifacts / "digests.db")
    delivered = 0
    for path in find_recipes(Path("recipes")):
        plan = plan_recipe(load_recipe(path), store, digests)
        for engine in plan.engines:
            if is_unfinished(plan, engine):
                own = plan_recipe(load_recipe(path), store, digests, only=engine.id)
                key = publish_body(store, "delivery", engine.id, delivery_of(Build(own, settings)).to_json())
                note_delivery(store, engine.id, order_of(plan, engine), key, ["worker"])
                delivered += 1
    print(f"{delivered} deliveries")


def measure() -> None:
    begin = time.monotonic()
    first = run_ordered()
    wall_s, whole_s, whole_mib = time.monotonic() - begin, processor_s(), peak_mib()
    again = run_ordered()
    alone_s = processor_s() - whole_s
    drain()
    if first != again:
        sys.exit(f"two nights differ: {first}; {again}")
    values = {"processor_s": whole_s, "without_imports_s": alone_s, "wall_s": wall_s, "peak_mib": whole_mib}
    print(json.dumps({**values, "message": first}))


def run_ordered() -> str:
    """A run of a deployment, carried out in this process as a worker's child does it; its last words."""
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(nightly), name="measured")
        run = client.create_flow_run_from_deployment(deployment, parameters={"distributed": True})
        run_flow(nightly, flow_run=run, parameters={"distributed": True})
        state = client.read_flow_run(run.id).state
    return str(state.message if state else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("build", "deliver", "measure"))
    {"build": build, "deliver": deliver, "measure": measure}[parser.parse_args().what]()


if __name__ == "__main__":
    main()
