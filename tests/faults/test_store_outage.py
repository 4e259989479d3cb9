"""The remote store is killed, or stops answering: local work is kept, told in one sentence, and published later."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from engineworks.fingerprint import digest_of
from engineworks.settings import Settings
from engineworks.store import Store, open_store
from engineworks.store_outage import LastingRemote
from engineworks.store_remote import RemoteStore

pytestmark = pytest.mark.xdist_group("faults")
HERE = Path(__file__).parent


class Server:
    """The remote side: a process that serves a folder."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.folder = folder
        self.start()

    def start(self) -> None:
        program = [sys.executable, str(HERE / "remote_files.py"), str(self.folder), str(self.port)]
        self.process = subprocess.Popen(program)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("the server did not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.syspath_prepend(str(HERE))
    fsspec.register_implementation("httpfiles", "remote_files.Files", clobber=True)
    (tmp_path / "remote").mkdir()
    running = Server(tmp_path / "remote")
    yield running
    running.kill()


def host(server: Server, root: Path) -> Store:
    """A host's store, quick to give up and to try again."""
    remote = RemoteStore(f"httpfiles://127.0.0.1:{server.port}/s")
    return Store(root, LastingRemote(remote, root / "unpublished", answer_s=1.0, retry_s=0.2))


def write(store: Store, number: int) -> str:
    document = {"number": number}
    key = digest_of(document)
    with store.writing(key, document, "tiny/build") as writing:
        if writing.hit is None:
            (writing.folder / "engine").write_bytes(b"plan" * number)
    return key


@pytest.mark.parametrize("how", ["killed", "silent"])
def test_what_is_made_while_the_store_is_away_is_kept_and_published_later(
    server: Server, tmp_path: Path, how: str
) -> None:
    first, second = host(server, tmp_path / "one"), host(server, tmp_path / "two")
    before = write(first, 1)
    assert first.outage == ""
    if how == "killed":
        server.kill()
    else:
        server.process.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    made = [write(first, number) for number in (2, 3)]
    assert time.monotonic() - begin < 20
    assert all(first.get(key) for key in made)
    assert first.outage.startswith(f"the store httpfiles://127.0.0.1:{server.port}/s d")
    assert "2 results are kept here: the next build publishes them, or 'engineworks sync'" in first.outage
    assert first.outage.count("\n") == 0
    assert not second.has(before)  # a miss, no error
    if how == "killed":
        server.start()
    else:
        server.process.send_signal(signal.SIGCONT)
    time.sleep(0.3)
    again = host(server, tmp_path / "one")
    assert again.publish_waiting() == 2
    assert (again.outage, again.publish_waiting()) == ("", 0)
    for key in (before, *made):
        found = second.get(key)
        assert found is not None
        assert found.path.is_relative_to(tmp_path / "two")


def test_a_builder_that_is_killed_before_it_published_leaves_that_to_the_next(server: Server, tmp_path: Path) -> None:
    store = host(server, tmp_path / "one")
    key = write(store, 1)
    (tmp_path / "one/unpublished" / key).touch()
    for file in (tmp_path / "remote").rglob("manifest.json"):
        file.unlink()
    assert host(server, tmp_path / "one").publish_waiting() == 1
    assert host(server, tmp_path / "two").get(key) is not None


def test_what_is_gone_from_here_waits_no_longer(server: Server, tmp_path: Path) -> None:
    server.kill()
    store = host(server, tmp_path / "one")
    key = write(store, 1)
    store.remove(key)
    assert store.publish_waiting() == 0
    assert list((tmp_path / "one/unpublished").iterdir()) == []
    server.start()


def test_a_whole_build_with_the_store_away_passes_and_says_it_in_one_sentence(repository: Path, server: Server) -> None:
    from engineworks.build_state import Build
    from engineworks.child import default_pool
    from engineworks.execute import run_step
    from engineworks.fingerprint import FileDigests
    from engineworks.plan import plan_recipe
    from engineworks.recipe_yaml import load_recipe
    from engineworks.schedule import Schedule

    server.kill()
    settings = Settings(repository / "artifacts", f"httpfiles://127.0.0.1:{server.port}/s")
    store = open_store(settings)
    plan = plan_recipe(load_recipe(Path("recipes/tiny.yaml")), store, FileDigests(None), only="tiny/fp32/cpu")
    build, schedule = Build(plan, settings), Schedule(plan)
    while not schedule.finished:
        for step in schedule.ready(1):
            run_step(step, build.store, default_pool(), say=lambda _: None)
            schedule.done(step.key)
    assert f"{len(plan.to_do)} results are kept here" in build.store.outage
    server.start()
    assert open_store(settings).publish_waiting() == len(plan.to_do)
    other = open_store(Settings(repository / "elsewhere", settings.store))
    assert not plan_recipe(plan.loaded, other, FileDigests(None), only="tiny/fp32/cpu").to_do
