"""A build whose recipe's code runs below bubblewrap, where it is installed (Debian: apt install bubblewrap)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]

PROGRAM = Path(sys.executable).parent / "engineworks"

METRIC = """
import os, socket, subprocess

def score(outputs, labels, inputs):
    subprocess.Popen(["sleep", "6661"], start_new_session=True)
    others = [name for name in os.listdir("/proc") if name.isdigit() and int(name) > 100]
    networks = [name for _, name in socket.if_nameindex() if name != "lo"]
    for place in (os.path.dirname(__file__), "/dev/shm", os.path.expanduser("~")):
        try:
            open(os.path.join(place, "left-by-a-metric"), "w").close()
        except OSError:
            pass
    return float((outputs["logits"].argmax(axis=1) == labels).mean()) - len(others) - len(networks)
"""


def test_a_metric_below_bubblewrap_sees_and_leaves_nothing(repository: Path) -> None:
    recipe = repository / "recipes/tiny.yaml"
    recipe.write_text(recipe.read_text("utf-8").replace("metric: top1", "metric: {python: 'own:score'}"), "utf-8")
    (repository / "recipes/own.py").write_text(METRIC, encoding="utf-8")
    environment = os.environ | {"ENGINEWORKS_SANDBOX": "bwrap"}
    built = subprocess.run(
        [str(PROGRAM), "build", "recipes/tiny.yaml", "--json"],
        env=environment, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert [engine["verdict"] for engine in json.loads(built.stdout)["engines"]] == ["pass", "pass"]
    places = (repository / "recipes", Path("/dev/shm"), Path.home())
    assert [path for place in places for path in place.glob("left-by-a-metric")] == []
    assert subprocess.run(["pgrep", "-f", "^sleep 6661"], check=False).returncode == 1
