"""The store: written once, whole or not at all, checked on every read."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from engineworks.errors import StoreError
from engineworks.fingerprint import digest_of
from engineworks.settings import Settings
from engineworks.store.shared import open_store
from engineworks.store.store import Store

DOCUMENT = {"step": "fold", "params": {"a": 1}}
KEY = digest_of(DOCUMENT)


def write(store: Store, text: str = "hello") -> None:
    with store.writing(KEY, DOCUMENT, "tiny/fold") as writing:
        if writing.hit is None:
            (writing.folder / "file.txt").write_text(text, encoding="utf-8")


def test_what_was_written_is_read_back_with_its_document(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.get(KEY) is None
    write(store)
    artifact = store.get(KEY)
    assert artifact is not None
    assert artifact.file("file.txt").read_text() == "hello"
    assert artifact.document == DOCUMENT
    assert not os.access(artifact.file("file.txt"), os.W_OK) or os.geteuid() == 0
    assert artifact.file("file.txt").stat().st_mode & 0o222 == 0


def test_a_second_writer_finds_a_hit_and_changes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write(store)
    write(store, "other")
    artifact = store.get(KEY)
    assert artifact is not None
    assert artifact.file("file.txt").read_text() == "hello"


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(RuntimeError), store.writing(KEY, DOCUMENT, "tiny/fold") as writing:
        (writing.folder / "half").write_text("half")
        raise RuntimeError("no")
    assert store.get(KEY) is None
    assert list((tmp_path / "partial").iterdir()) == []


@pytest.mark.parametrize("damage", ["contents", "missing", "size", "manifest", "swapped"])
def test_a_damaged_artifact_is_a_miss_and_says_so(tmp_path: Path, damage: str) -> None:
    write(Store(tmp_path))
    folder = tmp_path / "objects" / KEY[:2] / KEY
    file = folder / "file.txt"
    file.chmod(0o644)
    if damage == "contents":
        file.write_text("hellO")
    elif damage == "missing":
        file.unlink()
    elif damage == "size":
        file.write_text("hello there")
    elif damage == "manifest":
        (folder / "manifest.json").chmod(0o644)
        (folder / "manifest.json").write_text("{")
    else:
        manifest = folder / "manifest.json"
        manifest.chmod(0o644)
        manifest.write_text(manifest.read_text().replace('"a": 1', '"a": 2'))
    said: list[str] = []
    store = Store(tmp_path)
    assert store.get(KEY, echo=said.append) is None
    assert damage == "manifest" or "is damaged" in said[0]
    write(store, "again")
    artifact = store.get(KEY)
    assert artifact is not None
    assert artifact.file("file.txt").read_text() == "again"


def build_slowly(root: Path, log: Path) -> None:
    with Store(root).writing(KEY, DOCUMENT, "tiny/fold") as writing:
        if writing.hit is None:
            with log.open("a") as file:
                file.write("built\n")
            time.sleep(0.3)
            (writing.folder / "file.txt").write_text("hello")


def test_four_processes_build_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=build_slowly, args=(tmp_path / "store", log)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert log.read_text() == "built\n"


def test_kill_9_of_the_builder_frees_the_lock_and_leaves_no_half(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from engineworks.store.store import Store
        with Store(Path({str(tmp_path)!r})).writing({KEY!r}, {DOCUMENT!r}, "tiny/fold") as writing:
            (writing.folder / "half").write_text("half")
            print("ready", flush=True)
            time.sleep(60)
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    store = Store(tmp_path)
    assert store.get(KEY) is None
    (left,) = (store.root / "partial").iterdir()
    other = store.root / "partial" / left.name.replace(KEY, "0" * 64)
    other.mkdir()
    write(store)
    assert store.get(KEY) is not None
    assert list((store.root / "partial").iterdir()) == [other], "the next builder of a key clears what the last left"
    assert store.sweep(older_than_s=0.0) == 1


def test_removing_frees_the_bytes_and_the_key(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write(store)
    assert list(store.keys()) == [KEY]
    assert store.remove(KEY) >= 5
    assert list(store.keys()) == []
    assert store.remove(KEY) == 0


def test_a_store_that_can_not_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        write(Store(tmp_path / "file"))


def store_at(where: str, artifacts: Path) -> Store:
    return open_store(Settings(artifacts, where))


def test_urls(tmp_path: Path) -> None:
    assert store_at(f"file://{tmp_path}/s", tmp_path).root == tmp_path / "s"
    assert store_at(str(tmp_path / "t"), tmp_path).root == tmp_path / "t"
    with pytest.raises(StoreError, match="ENGINEWORKS_STORE=nonsense://x"):
        store_at("nonsense://x", tmp_path)


def test_two_hosts_that_share_nothing_but_a_url_share_what_is_built(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}"
    first, second = store_at(url, tmp_path / "host1"), store_at(url, tmp_path / "host2")
    assert not second.has(KEY)
    write(first)
    assert second.has(KEY)
    assert second.size_of(KEY) == len("hello")
    assert second.size_of(digest_of("another")) == 0
    assert not (second.root / "objects").exists()
    write(second, "built again")
    artifact = second.get(KEY)
    assert artifact is not None
    assert artifact.file("file.txt").read_text() == "hello"
    assert artifact.path.is_relative_to(tmp_path / "host2")


def test_a_torn_upload_is_a_miss_and_a_damaged_one_is_found(tmp_path: Path) -> None:
    import fsspec

    url = f"memory://{tmp_path.name}"
    write(store_at(url, tmp_path / "host1"))
    files = fsspec.filesystem("memory")
    place = f"/{tmp_path.name}/objects/{KEY[:2]}/{KEY}"
    upload = json.loads(files.cat_file(f"{place}/manifest.json"))["upload"]
    files.pipe_file(f"{place}/{upload}/file.txt", b"hellO")
    said: list[str] = []
    assert store_at(url, tmp_path / "host2").get(KEY, echo=said.append) is None
    assert "has other contents" in said[0]
    write(store_at(url, tmp_path / "host2"), "again")
    artifact = store_at(url, tmp_path / "host4").get(KEY)
    assert artifact is not None
    assert artifact.file("file.txt").read_text() == "again"
    files.rm_file(f"{place}/manifest.json")
    assert not store_at(url, tmp_path / "host3").has(KEY)


def test_a_devices_cache_is_one_for_each_device_driver_and_version(tmp_path: Path) -> None:
    store = Store(tmp_path)
    h100 = {"hardware": {"gpu": "H100", "driver": "580.1"}, "libraries": {"tensorrt-rtx": "1.6"}, "engine": "a"}
    folder = store.device_cache(h100)
    (folder / "runtime.cache").write_bytes(b"kernels")
    assert (store.device_cache(h100) / "runtime.cache").read_bytes() == b"kernels"
    others = [
        h100 | {"hardware": {"gpu": "H200", "driver": "580.1"}}, h100 | {"hardware": {"gpu": "H100", "driver": "581"}},
        h100 | {"libraries": {"tensorrt-rtx": "1.7"}}, h100 | {"engine": "b"},
    ]  # fmt: skip
    assert len({folder, *(store.device_cache(other) for other in others)}) == 5


def test_a_devices_cache_goes_only_after_a_month_without_use(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept, gone = store.device_cache({"n": 1}), store.device_cache({"n": 2})
    os.utime(kept, (time.time() - 29 * 86400,) * 2)
    os.utime(gone, (time.time() - 31 * 86400,) * 2)
    store.sweep(0)
    assert (kept.is_dir(), gone.is_dir()) == (True, False)
