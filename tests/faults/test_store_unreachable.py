"""The store that hosts share is gone, hangs, or is slow, during a whole build."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from faults.plant import HOOKS, STEPS, Site, free_port, kill_all, wait

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("plant"), pytest.mark.timeout(600)]
LAST = "tiny/int8/cpu/build"


class Remote:
    """The other place, with its server."""

    def __init__(self, root: Path) -> None:
        self.root, self.port = root, free_port()
        root.mkdir()
        self.start()

    def start(self) -> None:
        words = [sys.executable, str(HOOKS / "remote_files.py"), str(self.root), str(self.port)]
        self.server = subprocess.Popen(words, start_new_session=True)

    def slow(self, seconds: float) -> None:
        self.root.with_name(f"{self.root.name}.slow").write_text(str(seconds), encoding="ascii")

    def fast(self) -> None:
        self.root.with_name(f"{self.root.name}.slow").unlink()

    def manifests(self) -> set[str]:
        """Keys of what is published there."""
        return {file.parent.name for file in self.root.glob("store/objects/??/*/manifest.json")}


@pytest.fixture
def remote(site: Site) -> Iterator[Remote]:
    remote = Remote(site.root / "needs another GPU")
    site.environment["ENGINEWORKS_STORE"] = f"httpfiles://127.0.0.1:{remote.port}/store"
    try:
        yield remote
    finally:
        kill_all(remote.server)


def built(site: Site) -> dict[str, object]:
    done = site.command("build", "recipes/tiny.yaml", "--json")
    assert done.returncode == 0, done.stderr
    value: dict[str, object] = json.loads(done.stdout)
    return value


@pytest.mark.parametrize("how", ["killed", "hangs"])
def test_a_store_that_goes_away_in_the_middle_costs_no_finished_step(
    site: Site, remote: Remote, undisturbed: Mapping[str, str], how: str
) -> None:
    site.hold(LAST)
    build = site.start("build", "recipes/tiny.yaml", "--json")
    site.held(LAST)
    wait("the rest", lambda: site.counts()["tiny/fp32/cpu/compare"])
    os.kill(remote.server.pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    site.release(LAST)
    out, said = build.communicate(timeout=300)
    assert "Traceback" not in said
    assert build.returncode == 4, said
    errors = {e["id"]: e["error"] for e in json.loads(out)["engines"]}
    assert errors.keys() == {"tiny/fp32/cpu", "tiny/int8/cpu"}
    assert any("does not answer" in error for error in errors.values() if error), errors
    before = site.counts()
    if how == "killed":
        remote.server.wait()
        remote.start()
    else:
        os.kill(remote.server.pid, signal.SIGCONT)
    built(site)
    site.assert_as_undisturbed(undisturbed, failed=1)
    repeated = {step: n for step, n in site.counts().items() if n > 1 and before[step]}
    assert not repeated
    assert set(undisturbed) <= remote.manifests(), "what was built meanwhile was sent"
    assert list((site.artifacts / "store" / "pending").glob("*")) == []


def test_a_store_that_is_away_from_the_beginning_is_one_sentence(site: Site, remote: Remote) -> None:
    kill_all(remote.server)
    done = site.command("build", "recipes/tiny.yaml")
    assert done.returncode == 4
    assert "does not answer" in done.stderr
    assert "Traceback" not in done.stderr
    assert site.counts("started").total() == 0


def test_a_slow_store_slows_a_build_and_no_more(site: Site, remote: Remote, undisturbed: Mapping[str, str]) -> None:
    remote.slow(0.3)
    built(site)
    site.assert_as_undisturbed(undisturbed)
    assert site.counts().total() == STEPS
    assert set(undisturbed) <= remote.manifests()
