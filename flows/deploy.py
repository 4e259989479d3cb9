"""`engineworks deploy`: creates or updates work pools, deployments and the heartbeat automation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from uuid import UUID

from engineworks.errors import InputError, StepError
from engineworks.recipe.targets import Target
from flows.deployments import CRON, HEARTBEAT_S, Pool, pools, prefect_yaml
from flows.local_prefect import check_answers
from flows.local_prefect_child import NO_TELEMETRY

if TYPE_CHECKING:
    from prefect.events.schemas.automations import AutomationCore

AUTOMATION = "engineworks: runs without a sign of life have crashed"
NOTIFICATION = "engineworks: tell of failed nights"
SUBJECT = "{{ flow_run.name }}: {{ flow_run.state.type.value }}"
BODY = "{{ flow_run.state.message }}\n\n{{ flow_run|ui_url }}"
MISSED_HEARTBEATS = 3
DEPLOY_LIMIT_S = 300.0


def deploy(
    targets: Mapping[str, Target], root: Path, *, cron: str = CRON, pools_only: bool = False, notify: str = ""
) -> list[str]:
    """Create or update everything that `targets` need; returns one sentence each, in order.

    root: the checkout. notify: 'TYPE/NAME' of a notification block that tells of failed nights. Raises `InputError`
    without PREFECT_API_URL or for an unknown block, `StepError` if its server does not answer or its deploy fails.
    """
    os.environ.update(NO_TELEMETRY)
    url = os.environ.get("PREFECT_API_URL", "")
    if not url:
        raise InputError("PREFECT_API_URL is not set", hint="prefect server start, then name its address /api")
    check_answers(url)
    if notify:
        _block_id(notify)  # before anything is made
    lines = [_make_pool(pool) for pool in pools(targets)]
    if pools_only:
        return lines
    lines += _deploy_flows(prefect_yaml(targets, cron=cron), root)
    lines.append(_make_automation())
    return [*lines, *([_make_notification(notify)] if notify else [])]


def _make_pool(pool: Pool) -> str:
    """Create the pool and its queues, or set the limits of existing ones."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(pool.name)
            client.update_work_pool(pool.name, WorkPoolUpdate(concurrency_limit=pool.limit))
        except ObjectNotFound:
            template = ProcessWorker.get_default_base_job_template()
            client.create_work_pool(
                WorkPoolCreate(name=pool.name, type="process", base_job_template=template, concurrency_limit=pool.limit)
            )
        for name, limit in pool.queues.items():
            try:
                queue = client.read_work_queue_by_name(name, work_pool_name=pool.name)
            except ObjectNotFound:
                queue = client.create_work_queue(name, work_pool_name=pool.name)
            client.update_work_queue(queue.id, concurrency_limit=limit)
    limits = ", ".join(f"{name} {limit}" for name, limit in pool.queues.items()) or str(pool.limit)
    return f"work pool {pool.name}: runs at once: {limits}"


def _deploy_flows(document: Mapping[str, object], root: Path) -> list[str]:
    """Run `prefect deploy --all` with the document, which equals prefect.yaml for the shipped targets."""
    with TemporaryDirectory(prefix="engineworks-") as folder:
        file = Path(folder) / "prefect.yaml"
        file.write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
        try:
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=DEPLOY_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise StepError(f"prefect deploy did not end within {DEPLOY_LIMIT_S:.0f} s") from None
    if done.returncode != 0:
        raise StepError("prefect deploy failed", hint="see what it printed", log=done.stdout + done.stderr)
    entries: Sequence[Mapping[str, object]] = document["deployments"]  # type: ignore[assignment]
    return [f"deployment {tags[1]}/{e['name']}" for e in entries if isinstance(tags := e["tags"], list)]


def _make_automation() -> str:
    """Mark a run crashed after three missed heartbeats, because dead processes and workers send nothing."""
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    beat = "prefect.flow-run.heartbeat"
    automation = AutomationCore(
        name=AUTOMATION,
        trigger=EventTrigger(
            after={beat},
            expect={beat, *ends},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=MISSED_HEARTBEATS * HEARTBEAT_S),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="no sign of life: its host or process died")],
    )
    _save(automation)
    return f"automation '{AUTOMATION}': {MISSED_HEARTBEATS} × {HEARTBEAT_S} s"


def _make_notification(block: str) -> str:
    """Send the message of a failed or crashed night, which names the causes first, to a webhook, e-mail or Slack."""
    from prefect.events.actions import SendNotification
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

    automation = AutomationCore(
        name=NOTIFICATION,
        trigger=EventTrigger(
            expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
            match_related={"prefect.resource.name": "nightly", "prefect.resource.role": "flow"},
            threshold=1,
            within=timedelta(0),
        ),
        actions=[SendNotification(block_document_id=_block_id(block), subject=SUBJECT, body=BODY)],
    )
    _save(automation)
    return f"automation '{NOTIFICATION}': by {block}"


def _block_id(block: str) -> UUID:
    """Return the id of the notification block 'TYPE/NAME'. Raises `InputError` where there is none."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    kind, _, name = block.partition("/")
    hint = "prefect block ls shows TYPE/NAME, e.g. slack-webhook/team"
    if not kind or not name:
        raise InputError(f"--notify: '{block}' is no TYPE/NAME of a block", hint=hint)
    with get_client(sync_client=True) as client:
        try:
            return client.read_block_document_by_name(name, kind).id
        except ObjectNotFound:
            raise InputError(f"--notify: this Prefect server has no block '{block}'", hint=hint) from None


def _save(automation: AutomationCore) -> None:
    """Create the automation, or update the one of this name."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        known = client.read_automations_by_name(automation.name)
        if known:
            client.update_automation(known[0].id, automation)
        else:
            client.create_automation(automation)
