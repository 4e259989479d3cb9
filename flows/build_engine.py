"""One engine on the work pool of its GPU type: build, compare, measure. Its parent evaluates and records."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from engineworks.builds.delivery import delivery_of, publish_body, unprepared
from engineworks.builds.progress import listener
from engineworks.builds.state import Build
from engineworks.errors import StepError
from engineworks.recipe.smoke import Mode
from engineworks.settings import read_settings
from flows.local_steps import RUNNER, run_steps
from tasks.plan_build import plan_build


@flow(
    name="build-engine",
    flow_run_name="{engine}",
    task_runner=RUNNER,  # type: ignore[arg-type]  # TaskRunner is invariant in its kind of future
)
def build_engine(recipe: str, engine: str, mode: Mode = "full") -> State[str]:
    """Do what is left of one engine (its whole id, such as digits/fp16/h100) once its recipe is prepared.

    The delivery goes to the store; the final message of the run names its digest.
    """
    build = plan_build(Path(recipe), read_settings(), engine, None, mode)
    require_prepared(build)
    listener().planned(build.plan)
    run_steps(build)
    delivery = delivery_of(build)
    key = publish_body(build.store, "delivery", engine, delivery.to_json())
    counts = build.counts()
    done = f"{engine}: {counts.run} steps run, {counts.reused} reused"
    if delivery.failures:
        why = "; ".join(f.message for f in delivery.failures.values())
        return Failed(message=f"{done}, {why}; delivery {key}")
    unmeasured = f", unmeasured ({delivery.unmeasured_because})" if delivery.unmeasured_because else ""
    return Completed(message=f"{done}{unmeasured}; delivery {key}", data=key)


def require_prepared(build: Build) -> None:
    """Check that the CPU pool ran its steps. Raises `StepError` if one is missing.

    Running it here would repeat it on every GPU host, and other versions would give another engine than the parent
    expects.
    """
    step = unprepared(build.plan)
    if step is not None:
        raise StepError(
            f"{step.id} is not in the store of this worker ({step.reason})",
            hint="the CPU pool prepares it: do the workers share ENGINEWORKS_STORE, the recipes and the versions?",
        )
