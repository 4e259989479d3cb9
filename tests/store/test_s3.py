"""The store behind a real S3 API over HTTP: hosts that share nothing but it, races, kills, and a service that is gone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engineworks.cli import run_command
from engineworks.errors import EXIT_STEP_FAILED, StoreError
from engineworks.fingerprint import digest_of
from engineworks.store import remote
from engineworks.store.remote import RemoteStore, Service
from engineworks.store.shared import SharedStore
from engineworks.store.store import Store

pytestmark = [pytest.mark.s3, pytest.mark.xdist_group("s3")]
for library in ("moto", "s3fs", "boto3"):
    pytest.importorskip(library)

DOCUMENT = {"step": "build", "params": {"a": 1}}
KEY = digest_of(DOCUMENT)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    words = [sys.executable, str(ROOT / "tests" / "s3_server.py")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.kill()


def use_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Filesystems that were opened before are not used again: s3fs keeps them by their options."""
    from s3fs import S3FileSystem

    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def url(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A bucket of its own."""
    import boto3

    use_endpoint(monkeypatch, endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"b{digest_of({'test': request.node.name})[:12]}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/store"


def host(url: str, folder: Path) -> SharedStore:
    return SharedStore(folder, RemoteStore(url))


def write(store: Store, text: str = "hello") -> str:
    """Write the artifact unless it is there; returns what it says in the end."""
    with store.writing(KEY, DOCUMENT, "tiny/build") as writing:
        if writing.hit is None:
            (writing.folder / "engine").write_text(text, encoding="utf-8")
            (writing.folder / "engine.json").write_text("{}", encoding="utf-8")
    artifact = store.get(KEY)
    assert artifact is not None
    return artifact.file("engine").read_text()


def objects(url: str) -> list[str]:
    """Every object in the bucket, by its path below the artifact's key."""
    import boto3

    bucket = url.split("/")[2]
    found = boto3.client("s3").list_objects_v2(Bucket=bucket).get("Contents", [])
    return [entry["Key"].split(KEY + "/")[-1] for entry in found]


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "store")])}
    words = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(words, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_two_hosts_share_what_is_built(url: str, tmp_path: Path) -> None:
    first, second = host(url, tmp_path / "1"), host(url, tmp_path / "2")
    assert not second.has(KEY)
    assert write(first) == "hello"
    assert second.has(KEY)
    assert write(second, "built again") == "hello"
    assert second.place(KEY).is_relative_to(tmp_path / "2")
    assert len(objects(url)) == 3


def test_what_is_in_the_cache_needs_no_service(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(host(url, tmp_path / "1"))
    use_endpoint(monkeypatch, "http://127.0.0.1:9")
    assert write(host(url, tmp_path / "1"), "other") == "hello"


RACE = """
    import sys
    from pathlib import Path
    from engineworks.fingerprint import digest_of
    from engineworks.store import remote
from engineworks.store.remote import RemoteStore
    from engineworks.store.shared import SharedStore
    url, folder, name = sys.argv[1:]
    store = SharedStore(Path(folder), RemoteStore(url))
    for round in range(12):
        document = {"round": round}
        key = digest_of(document)
        with store.writing(key, document, "tiny/build") as writing:
            assert writing.hit is None
            (writing.folder / "engine").write_text(name * 1000)
            (writing.folder / "engine.json").write_text(name)
            print("built", flush=True)
            sys.stdin.readline()
        artifact = store.require(key)
        text = artifact.file("engine").read_text()
        assert text == artifact.file("engine.json").read_text() * 1000
        print(text[0], flush=True)
"""


def test_hosts_that_race_for_a_key_go_on_with_one_result(url: str, tmp_path: Path) -> None:
    """Both have built, other bytes each, before either sends: the loser takes the winner's, and nothing is left over."""
    racers = [python(RACE, url, tmp_path / name, name) for name in ("a", "b", "c")]
    won: list[str] = []
    for _ in range(12):
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "built\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("\n")
            racer.stdin.flush()
        said = {racer.stdout.readline().strip() for racer in racers if racer.stdout}
        assert len(said) == 1, said
        won += said
    assert [racer.wait() for racer in racers] == [0, 0, 0]
    assert len(objects(url)) == 12 * 3
    late = host(url, tmp_path / "late")
    texts = [late.require(digest_of({"round": n})).file("engine.json").read_text() for n in range(12)]
    assert texts == won


def test_two_processes_of_one_host_do_the_work_once(url: str, tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from test_s3 import DOCUMENT, KEY, host
        store = host(sys.argv[1], Path(sys.argv[2]))
        print("ready", flush=True)
        with store.writing(KEY, DOCUMENT, "tiny/build") as writing:
            if writing.hit is None:
                sys.stdin.readline()
                (writing.folder / "engine").write_text("hello")
                print("built")
    """
    processes = [python(code, url, tmp_path / "1") for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert sorted(p.communicate()[0] for p in processes) == ["", "", "built\n"]


@pytest.mark.parametrize(("method", "call", "uploaded"), [("put_file", 2, 1), ("pipe_file", 1, 2)])
def test_a_kill_9_in_the_middle_of_an_upload_leaves_nothing_visible(
    url: str, tmp_path: Path, method: str, call: int, uploaded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the second of two files, and before the manifest."""
    code = """
        import os, signal, sys
        from pathlib import Path
        from engineworks.store.remote import Service
        from test_s3 import host, write
        method, left, call = sys.argv[3], [int(sys.argv[4])], Service.call
        def dying(self, name, *arguments, **options):
            left[0] -= name == method
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(self, name, *arguments, **options)
        Service.call = dying
        write(host(sys.argv[1], Path(sys.argv[2])))
    """
    process = python(code, url, tmp_path / "1", method, call)
    assert process.wait() == -signal.SIGKILL
    assert len(objects(url)) == uploaded
    second = host(url, tmp_path / "2")
    assert not second.has(KEY)
    assert write(second, "second") == "second"
    assert write(host(url, tmp_path / "1"), "again") == "second"
    assert RemoteStore(url).sweep(older_than_s=0) == 0, "it may belong to a running build"
    monkeypatch.setattr(remote, "UPLOAD_S", -2.0)  # S3 tells the time of a change in whole seconds
    assert RemoteStore(url).sweep(older_than_s=-2.0) == 1
    assert len(objects(url)) == 3
    assert write(host(url, tmp_path / "3"), "third") == "second"


def test_a_damaged_object_is_found_on_read_and_built_again(url: str, tmp_path: Path) -> None:
    import boto3

    write(host(url, tmp_path / "1"))
    bucket = url.split("/")[2]
    entry = next(
        e for e in boto3.client("s3").list_objects_v2(Bucket=bucket)["Contents"] if e["Key"].endswith("engine")
    )
    boto3.client("s3").put_object(Bucket=bucket, Key=entry["Key"], Body=b"hellO")
    said: list[str] = []
    second = host(url, tmp_path / "2")
    assert second.get(KEY, echo=said.append) is None
    assert "other contents" in said[0]
    assert objects(url) == []
    assert write(second, "again") == "again"


def test_a_damaged_copy_in_the_cache_is_fetched_again_and_the_service_keeps_its_own(url: str, tmp_path: Path) -> None:
    write(host(url, tmp_path / "1"))
    file = host(url, tmp_path / "1").place(KEY) / "engine"
    file.chmod(0o644)
    file.write_text("hellO")
    assert write(host(url, tmp_path / "1"), "built again") == "hello"


def test_a_manifest_can_not_write_outside_of_its_folder(url: str, tmp_path: Path) -> None:
    write(host(url, tmp_path / "1"))
    remote = RemoteStore(url)
    manifest = dict(remote.manifest(KEY) or {})
    manifest["files"] = {"../../../../escaped": manifest["files"]["engine"]}
    Service(url).call(
        "pipe_file", f"{remote.root}/objects/{KEY[:2]}/{KEY}/manifest.json", json.dumps(manifest).encode()
    )
    assert host(url, tmp_path / "2").get(KEY) is None
    assert not list(tmp_path.rglob("escaped"))


class LastWriterWins(Service):
    """A service that ignores `If-None-Match`."""

    def call(self, method: str, *arguments: object, size: int = 0, **options: object) -> object:
        options.pop("mode", None)
        return super().call(method, *arguments, size=size, **options)


def test_where_the_service_knows_no_condition_what_is_seen_is_whole(url: str, tmp_path: Path) -> None:
    stores = [SharedStore(tmp_path / str(n), RemoteStore(url, LastWriterWins(url))) for n in range(2)]
    barrier = threading.Barrier(2)

    def build(store: Store, text: str) -> None:
        with store.writing(KEY, DOCUMENT, "tiny/build") as writing:
            (writing.folder / "engine").write_text(text)
            (writing.folder / "engine.json").write_text(text)
            barrier.wait()

    threads = [threading.Thread(target=build, args=(store, f"{n}")) for n, store in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in [*stores, host(url, tmp_path / "late")]:
        artifact = store.require(KEY)
        assert artifact.file("engine").read_text() == artifact.file("engine.json").read_text()


@pytest.fixture
def silent() -> Iterator[str]:
    """An endpoint that takes every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_work_that_could_not_be_sent_is_kept_and_sent_later(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    store = host(url, tmp_path / "1")
    with (
        pytest.raises(StoreError, match="does not answer") as caught,
        store.writing(KEY, DOCUMENT, "t/build") as writing,
    ):
        (writing.folder / "engine").write_text("kept")
        (writing.folder / "engine.json").write_text("{}")
        use_endpoint(monkeypatch, "http://127.0.0.1:9")
        store._remote._service = Service(url)
    assert "sent by the next build" in str(caught.value)
    assert (store.place(KEY) / "engine").read_text() == "kept"
    use_endpoint(monkeypatch, endpoint)
    assert objects(url) == []
    assert write(host(url, tmp_path / "1"), "built again") == "kept"
    assert write(host(url, tmp_path / "2"), "built again") == "kept"


def test_work_that_could_not_be_sent_gives_way_to_what_another_host_sent_meanwhile(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    store = host(url, tmp_path / "1")
    monkeypatch.setattr(store._remote, "publish", lambda *_: (_ for _ in ()).throw(StoreError("gone")))
    with pytest.raises(StoreError, match="gone"):
        write(store, "first")
    assert write(host(url, tmp_path / "2"), "second") == "second"
    assert write(host(url, tmp_path / "1"), "third") == "second"


def test_a_service_that_never_answers_is_given_up_once(url: str, silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_endpoint(monkeypatch, silent)
    remote = RemoteStore(url, Service(url, request_limit_s=2))
    with pytest.raises(StoreError, match="no answer within 2 s"):
        remote.has(KEY)
    with pytest.raises(StoreError, match="no answer within 2 s"):  # at once: it is known to be gone
        remote.has(KEY)


@pytest.mark.parametrize("why", ["refused", "no bucket"])
def test_a_build_ends_with_one_sentence_where_the_store_can_not_be_used(
    url: str, repository: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], why: str
) -> None:
    monkeypatch.setenv("ENGINEWORKS_STORE", "s3://no-such-bucket/store" if why == "no bucket" else url)
    if why == "refused":
        use_endpoint(monkeypatch, "http://127.0.0.1:9")
    assert run_command(["plan", "recipes/tiny.yaml"]) == EXIT_STEP_FAILED
    said = capfd.readouterr().err
    assert ("refuses" if why == "no bucket" else "does not answer") in said
    assert said.count("the store s3://") == 1
    assert "Traceback" not in said


def test_two_workers_that_share_nothing_but_the_store_build_a_recipe_once(
    url: str, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def build(artifacts: Path) -> dict[str, object]:
        environ = os.environ | {
            "ENGINEWORKS_STORE": url, "ENGINEWORKS_ARTIFACTS": str(artifacts), "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        words = [
            sys.executable,
            "-c",
            "from engineworks.cli import main; main()",
            "build",
            "recipes/tiny.yaml",
            "--json",
        ]
        done = subprocess.run(words, env=environ, capture_output=True, text=True, check=False, cwd=repository)
        assert done.returncode in (0, 3), done.stderr
        return dict(json.loads(done.stdout)["steps"])

    first = build(tmp_path_factory.mktemp("host1"))
    second = build(tmp_path_factory.mktemp("host2"))
    assert (first["reused"], first["failed"]) == (0, 0)
    assert (second["run"], second["failed"]) == (0, 0)
