"""Digests: of values whatever their order, of files whatever is remembered of them."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from engineworks.fingerprint import canonical_json, digest_of
from engineworks.host.file_digests import FileDigests


def test_equal_values_have_equal_digests_whatever_their_order() -> None:
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    assert digest_of({"a": [1, 2]}) != digest_of({"a": [2, 1]})
    assert len(digest_of({})) == 64


def test_what_is_not_json_has_no_digest() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})


def old(path: Path) -> None:
    """Make the file old enough for its digest to be remembered."""
    then = time.time() - 100
    os.utime(path, (then, then))


def test_a_remembered_digest_is_used_and_a_changed_file_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, memory = tmp_path / "file", tmp_path / "memory.db"
    path.write_bytes(b"one")
    old(path)
    monkeypatch.setattr("engineworks.host.file_digests.RACY_SECONDS", 0.0)
    first = FileDigests(memory)
    assert first.digest(path) == hashlib.sha256(b"one").hexdigest()
    first.save()

    def never(path: Path) -> str:
        raise AssertionError(f"{path} was read again")

    with monkeypatch.context() as patch:
        patch.setattr("engineworks.host.file_digests.digest_file", never)
        assert FileDigests(memory).digest(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"two")
    assert FileDigests(memory).digest(path) == hashlib.sha256(b"two").hexdigest()


def test_same_size_and_same_times_in_another_file_are_not_mistaken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engineworks.host.file_digests.RACY_SECONDS", 0.0)
    path, memory = tmp_path / "file", tmp_path / "memory.db"
    path.write_bytes(b"one")
    old(path)
    digests = FileDigests(memory)
    digests.digest(path)
    digests.save()
    other = tmp_path / "other"
    other.write_bytes(b"two")
    old(other)
    other.replace(path)  # size, name and mtime as before
    assert FileDigests(memory).digest(path) == hashlib.sha256(b"two").hexdigest()


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path) -> None:
    path, memory = tmp_path / "file", tmp_path / "memory.db"
    path.write_bytes(b"one")
    digests = FileDigests(memory)
    digests.digest(path)
    digests.save()
    assert not memory.exists()


def test_a_memory_that_is_no_database_is_done_without(tmp_path: Path) -> None:
    path, memory = tmp_path / "file", tmp_path / "memory.db"
    path.write_bytes(b"one")
    old(path)
    memory.write_text("nonsense")
    digests = FileDigests(memory)
    assert digests.digest(path) == hashlib.sha256(b"one").hexdigest()
    digests.save()
