"""Manifests are remembered, and what changed on the disk since is noticed all the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import engineworks.store.artifact as artifacts
from engineworks.fingerprint import digest_of
from engineworks.store.artifact import MANIFEST
from engineworks.store.store import Store

DOCUMENT = {"step": "fold", "params": {"a": 1}}
KEY = digest_of(DOCUMENT)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders whose manifest was parsed; nothing is remembered of other tests."""
    said: list[str] = []
    parse = artifacts._parse

    def watched(folder: str) -> Any:
        said.append(folder)
        return parse(folder)

    artifacts._remembered.cache_clear()
    monkeypatch.setattr(artifacts, "_parse", watched)
    return said


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    with store.writing(KEY, DOCUMENT, "tiny/fold") as writing:
        (writing.folder / "file.txt").write_text("hello", encoding="utf-8")
    return store


@pytest.fixture
def long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every file had been written long before it is read."""
    monkeypatch.setattr(artifacts, "RACY_SECONDS", -1.0)


@pytest.mark.usefixtures("long_ago")
def test_a_manifest_is_parsed_once_however_often_and_by_whom_it_is_asked_for(store: Store, parsed: list[str]) -> None:
    assert all([store.has(KEY), store.get(KEY), store.get(KEY), Store(store.root).get(KEY)])
    assert len(parsed) == 1


def test_one_that_was_written_a_moment_ago_is_parsed_each_time(store: Store, parsed: list[str]) -> None:
    assert all([store.get(KEY), store.get(KEY)])
    assert len(parsed) == 2


@pytest.mark.usefixtures("long_ago")
@pytest.mark.parametrize("how", ["in place", "by another file"])
def test_one_that_was_changed_after_it_was_read_is_a_miss(store: Store, how: str) -> None:
    assert store.has(KEY)
    manifest = store.place(KEY) / MANIFEST
    before = manifest.stat()
    text = manifest.read_text(encoding="utf-8").replace('"a": 1', '"a": 2')
    if how == "in place":
        manifest.chmod(0o644)
        manifest.write_text(text, encoding="utf-8")
        os.utime(manifest, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    else:
        other = manifest.with_name("other")
        other.write_text(text, encoding="utf-8")
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        other.replace(manifest)
    assert manifest.stat().st_size == before.st_size
    assert not store.has(KEY)
    assert store.get(KEY) is None


@pytest.mark.usefixtures("long_ago")
@pytest.mark.parametrize("what", ["manifest", "file", "size"])
def test_files_that_went_or_grew_after_the_manifest_was_read_are_a_miss(store: Store, what: str) -> None:
    assert store.get(KEY)
    place = store.place(KEY)
    if what == "size":
        (place / "file.txt").chmod(0o644)
        (place / "file.txt").write_text("hello there", encoding="utf-8")
    else:
        (place / (MANIFEST if what == "manifest" else "file.txt")).unlink()
    assert not store.has(KEY)
    assert store.get(KEY) is None


@pytest.mark.usefixtures("long_ago")
def test_what_was_removed_and_built_again_is_the_new_one(store: Store) -> None:
    assert store.require(KEY).bytes == 5
    store.remove(KEY)
    with store.writing(KEY, DOCUMENT, "tiny/fold") as writing:
        assert writing.hit is None
        (writing.folder / "file.txt").write_text("hello again", encoding="utf-8")
    assert store.require(KEY).bytes == 11


def test_what_is_there_is_had_without_the_lock_of_its_key(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(key: str) -> None:
        raise AssertionError(f"the lock of {key} is waited for")

    monkeypatch.setattr(store, "_locked", locked)
    with store.writing(KEY, DOCUMENT, "tiny/fold") as writing:
        assert writing.hit is not None
    with pytest.raises(AssertionError, match="is waited for"), store.writing("0" * 64, DOCUMENT, "tiny/fold"):
        pass
