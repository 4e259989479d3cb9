"""Feeds of a session in messages."""

from __future__ import annotations

import numpy as np

from engineworks.engines.backends._feeds import shapes_of


def test_messages_name_the_first_few_inputs() -> None:
    feeds = {f"past_{index}": np.zeros((1, 0), np.float32) for index in range(8)}
    assert shapes_of({"x": np.zeros((2, 3))}) == "x [2, 3]"
    assert shapes_of(feeds).endswith("past_5 [1, 0], and 2 more")
