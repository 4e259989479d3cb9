"""Renamed keys of recipes: an old key is refused with a message that gives the new one."""

from __future__ import annotations

from collections.abc import Mapping

from engineworks.errors import Keys

RENAMED: Mapping[Keys, str] = {
    ("calibration", "around"): "unquantized",
    ("performance", "regression", "most_s"): "max_s",
    ("time_limits", "duel"): "compare_champion",
}
"""Path of the old key → the new key, in the same mapping."""
