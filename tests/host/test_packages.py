"""Versions of installed distributions."""

from __future__ import annotations

from engineworks.host.packages import installed_version, installed_versions


def test_versions_come_from_metadata_and_none_is_one_that_is_missing() -> None:
    assert installed_version("numpy")
    assert installed_version("no-such-distribution") is None
    assert installed_versions(["no-such-distribution", "numpy"]) == {
        "no-such-distribution": None, "numpy": installed_version("numpy"),
    }  # fmt: skip
