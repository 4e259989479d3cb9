"""kill -9 at random moments, of the flow process or one of its children, and 1,000 processes that race for one key.

After every kill every artifact of the store is read and its digests are checked; none that was finished may be lost,
damaged or made again, and no process may be left. Once a build gets through, it must have what an undisturbed one has,
and the next round begins with an empty store. Run: python benchmarks/kills.py --kills 200 --seed 1 [--race 1000]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from engineworks.fingerprint import digest_of
from engineworks.store.store import Store

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LONGEST_S = 300.0
Inodes = dict[str, int]


class Round:
    """One repository with a store, and the builds in it."""

    def __init__(self, repository: Path, recipe: str, only: str) -> None:
        self.repository, self.artifacts = repository, repository / "artifacts"
        program = str(Path(sys.executable).parent / "engineworks")
        self.command = [program, "build", recipe, "--only", only, "--json"]

    def start(self) -> subprocess.Popen[str]:
        environment = os.environ | {"ENGINEWORKS_ARTIFACTS": str(self.artifacts), "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            self.command, cwd=ROOT, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def check(self) -> Inodes:
        """Every artifact read and verified, by key with its inode. Raises AssertionError for a damaged one."""
        store = Store(self.artifacts / "store")
        for key in list(store.keys()):
            assert store.get(key) is not None, f"artifact {key[:12]} is damaged"
        return {key: (store.place(key) / "manifest.json").stat().st_ino for key in store.keys()}


LEFT_S = 1.0
"""Seconds after which no process of an ended build may be left."""


def members(group: int) -> list[int]:
    """Living processes of the group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def kill_one(process: subprocess.Popen[str], dice: random.Random, longest_s: float) -> tuple[str, float]:
    """Kill the flow process or a child at a random moment. Returns which, and when; 'none' if it was through before."""
    moment = dice.uniform(0.05, 1.0) * longest_s
    end = time.monotonic() + moment
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.01)
    if process.poll() is not None:
        return "none", moment
    children = [pid for pid in members(process.pid) if pid != process.pid]
    if dice.random() < 0.5 and children:
        victim = dice.choice(children)
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            return "none", moment
        return "child", moment
    process.kill()
    return "flow", moment


def end_of(process: subprocess.Popen[str]) -> str:
    """Its standard output; it must end, and leave no process after 1 s.

    The output is read meanwhile: a process that is left would hold it open, and its end would be waited for.
    """
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(process.communicate)
        process.wait(timeout=LONGEST_S)
        deadline = time.monotonic() + LEFT_S
        while left := members(process.pid):
            if time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL)  # or the reader waits for them
                raise AssertionError(f"{len(left)} processes outlived the build by {LEFT_S:g} s")
            time.sleep(0.01)
        out, err = reading.result()
    assert "Traceback" not in err, err
    return out


def run_kills(count: int, seed: int, recipe: str, only: str) -> dict[str, Any]:
    """Builds under kills until `count` were done; a report."""
    dice, folder = random.Random(seed), Path(tempfile.mkdtemp(prefix="engineworks-kills-"))
    report: dict[str, Any] = {"kills": 0, "flow": 0, "child": 0, "whole builds": 0, "lost or damaged": 0}
    try:
        builds = Round(folder, recipe, only)
        begin = time.monotonic()
        total = json.loads(end_of(builds.start()))["steps"]["run"]
        longest = time.monotonic() - begin
        shutil.rmtree(builds.artifacts)
        known: Inodes = {}
        while report["kills"] < count:
            process = builds.start()
            victim, moment = kill_one(process, dice, longest)
            out = end_of(process)
            now = builds.check()
            assert {k: now.get(k) for k in known} == known, "a finished step was lost or made again"
            known = now
            if victim != "none":
                report["kills"] += 1
                report[victim] += 1
                print(
                    f"{report['kills']}: {victim} killed after {moment:.1f} s, {len(now)} artifacts whole", flush=True
                )
            if victim == "none" or process.returncode == 0:
                known = finish(builds, known, total, out if process.returncode == 0 else "")
                report["whole builds"] += 1
        finish(builds, known, total, "")
        report["whole builds"] += 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {**report, "seed": seed, "undisturbed_s": round(longest, 1), "steps": total}


def finish(builds: Round, known: Inodes, total: int, out: str) -> Inodes:
    """Build to the end, unless `out` is the result of that; compare with an undisturbed build; begin anew."""
    result = json.loads(out or end_of(builds.start()))
    steps, now = result["steps"], builds.check()
    assert steps["run"] + steps["reused"] == total, steps
    assert steps["failed"] == 0, steps
    assert all(e["verdict"] == "pass" for e in result["engines"]), [e["verdict"] for e in result["engines"]]
    assert {k: now.get(k) for k in known} == known, "a finished step was lost or made again"
    shutil.rmtree(builds.artifacts)
    return {}


def run_race(count: int) -> dict[str, Any]:
    """`count` processes want one key at once: how many built it, and how many got it whole."""
    document = {"race": count}
    key = digest_of(document)
    with tempfile.TemporaryDirectory(prefix="engineworks-race-") as name:
        root, built = Path(name, "store"), Path(name, "built")
        start_read, start_write = os.pipe()
        begin = time.monotonic()
        children = []
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                os.close(start_write)
                os.read(start_read, 1)  # returns for all at once, when the parent closes its end
                os._exit(0 if _race_one(root, built, key, document) else 1)
            children.append(pid)
        os.close(start_write)
        right = sum(os.waitpid(pid, 0)[1] == 0 for pid in children)
        seconds, builds = time.monotonic() - begin, built.stat().st_size
    return {"processes": count, "builds": builds, "got it whole": right, "seconds": round(seconds, 1)}


def _race_one(root: Path, built: Path, key: str, document: dict[str, int]) -> bool:
    store = Store(root)
    with store.writing(key, document, "race/build") as writing:
        if writing.hit is None:
            (writing.folder / "engine").write_bytes(b"plan" * 1000)
            with built.open("ab") as file:
                file.write(b".")
            time.sleep(0.5)
    found = store.get(key)
    return found is not None and found.file("engine").read_bytes() == b"plan" * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--race", type=int, default=1000)
    parser.add_argument("--recipe", default="recipes/digits.yaml")
    parser.add_argument("--only", default="digits/int8/cpu")
    given = parser.parse_args()
    file = RESULTS / "kills-cpu.json"
    report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if given.race:
        report["race"] = run_race(given.race)
        print(json.dumps(report["race"]), flush=True)
        assert (report["race"]["builds"], report["race"]["got it whole"]) == (1, given.race)
    if given.kills:
        report["kills"] = run_kills(given.kills, given.seed, given.recipe, given.only)
        print(json.dumps(report["kills"]))
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
