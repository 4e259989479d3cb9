"""A real server: it starts on loopback, says why it cannot, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engineworks.errors import RunError
from engineworks.host.triton import InstalledServer
from engineworks.measure.gates.serving import serving_checks
from engineworks.measure.slopes import slopes
from engineworks.serving import server as servers
from engineworks.serving.answers import Question
from engineworks.serving.client import PROTOCOLS, Client
from engineworks.serving.server import SHARED_MEMORY, StartedServer, started
from engineworks.serving.soak import reload_model
from engineworks.serving.together import serve_together
from tests.typed_reports import serving

pytestmark = [pytest.mark.triton, pytest.mark.timeout(120)]

IDENTITY = """
class TritonPythonModel:
    def execute(self, requests):
        import triton_python_backend_utils as triton
        tensors = [triton.get_input_tensor_by_name(r, "x") for r in requests]
        return [triton.InferenceResponse([triton.Tensor.from_dlpack("y", t.to_dlpack())]) for t in tensors]
"""
CONFIG = """name: "net" backend: "python" max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: [3] } output { name: "y" data_type: TYPE_FP32 dims: [3] }
instance_group { kind: KIND_CPU }
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one model, which returns its input."""
    (tmp_path / "models" / "net" / "1").mkdir(parents=True)
    (tmp_path / "models" / "net" / "config.pbtxt").write_text(CONFIG)
    (tmp_path / "models" / "net" / "1" / "model.py").write_text(IDENTITY)
    return tmp_path / "models"


def gone(tree: list[int]) -> bool:
    """Whether every process of the server's tree has ended (a zombie has)."""
    return all(map(ended, tree))


def ended(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def wait_for(condition: Callable[[], bool]) -> bool:
    """Wait for processes that the kernel ends; the test's time limit ends this."""
    while not condition():
        os.sched_yield()
    return True


def test_it_serves_by_both_protocols_and_its_tree_is_gone_afterwards(triton: InstalledServer, repository: Path) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    with started(triton, repository) as server:
        for protocol in PROTOCOLS:
            with Client(getattr(server.addresses, protocol), protocol) as client:
                client.load("net")
                np.testing.assert_array_equal(client.infer("net", {"x": x})["y"], x)
                assert client.statistics("net")["name"] == "net"
                client.unload("net")
                assert not client.ready("net")
                client.load("net")
        tree = server.tree
        assert len(tree) > 1
    assert gone(tree)
    assert not list(SHARED_MEMORY.glob(f"engineworks-{os.getpid()}-*"))


def test_a_server_that_is_killed_is_told_by_its_signal_and_its_models_end(
    triton: InstalledServer, repository: Path
) -> None:
    with started(triton, repository) as server:
        with Client(server.addresses.grpc, "grpc") as client:
            client.load("net")
            tree = server.tree
            os.kill(server.pid, signal.SIGKILL)
            assert wait_for(lambda: not server.alive())
            with pytest.raises(RunError, match="'net' does not become ready: "):
                client.load("net")
        assert server.why_ended() == "the Triton server was ended by SIGKILL"
    assert wait_for(lambda: gone(tree))
    assert not list(SHARED_MEMORY.glob(f"engineworks-{os.getpid()}-*"))


KILLED = """
import sys, time
from pathlib import Path
from engineworks.serving.client import Client
from engineworks.host.triton import find_server
from engineworks.serving.server import started
with started(find_server(), Path(sys.argv[1])) as server:
    with Client(server.addresses.grpc, "grpc") as client:
        client.load("net")
    print(*server.tree, flush=True)
    time.sleep(100)
"""


def test_it_ends_with_whoever_started_it(triton: InstalledServer, repository: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, str(repository)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        tree = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(tree) > 1
    assert wait_for(lambda: gone(tree))


PLANTED = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
pid_t fork(void) {
    memset(malloc(128 * 1024), 1, 128 * 1024);
    return ((pid_t (*)(void))dlsym(RTLD_NEXT, "fork"))();
}
"""
"""Every start of a Python model's process leaks 128 KiB of the server's memory."""


def test_a_planted_leak_of_128_kib_a_reload_fails_the_check(
    triton: InstalledServer, repository: Path, tmp_path: Path
) -> None:
    question = Question({"x": np.ones((1, 3), np.float32)}, {"y": np.ones((1, 3), np.float32)})
    library = tmp_path / "planted.so"
    compiler = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-ldl"]
    subprocess.run(compiler, input=PLANTED, text=True, check=True)
    env = {**os.environ, "LD_PRELOAD": str(library)}
    with started(triton, repository, env=env) as server, Client(server.addresses.grpc, "grpc") as client:
        found = reload_model(client, server, "net", question, 30, lambda _: None)
    assert found["answers"]["equal"] == 30
    found |= {"slopes": {name: one.to_json() for name, one in slopes(found["readings"]).items()}}
    assert found["slopes"]["rss_kib"]["low"] > 64
    report = serving(reload=found)
    checks = {check.name: check.verdict for check in serving_checks(report, None, "")}
    assert checks["served.reload[rss_kib]"] == "fail"
    assert checks["served.reload[shared_kib]"] == "pass"


FULL = """
from pathlib import Path

MARK = Path(__file__).parents[2] / "in-use"


class TritonPythonModel:
    def initialize(self, args):
        self.more = bytearray(1 << 46) if MARK.exists() else b""
        MARK.touch()

    def finalize(self):
        MARK.unlink()
"""
"""A model that takes 64 TiB where another one is loaded already."""


def test_a_model_that_does_not_fit_beside_another_is_one_sentence(triton: InstalledServer, repository: Path) -> None:
    model = FULL + IDENTITY.partition("class TritonPythonModel:\n")[2]
    (repository / "net" / "1" / "model.py").write_text(model)
    other = shutil.copytree(repository / "net", repository / "other")
    (other / "config.pbtxt").write_text(CONFIG.replace('"net"', '"other"'))
    asked = [Question({"x": np.ones((1, 3), np.float32)}, {})]
    with (
        started(triton, repository) as server,
        Client(server.addresses.grpc, "grpc") as client,
        pytest.raises(RunError) as error,
    ):
        serve_together(client, server.addresses.grpc, {"net": asked, "other": asked}, lambda: 0.0, 0.1)
    assert error.value.message == "'other' does not fit into the memory beside 'net': MemoryError"


def test_a_taken_port_leads_to_another(
    triton: InstalledServer, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, tries = servers._free_ports, list[list[int]]()
    with started(triton, repository) as first:
        taken = [int(a.rpartition(":")[2]) for a in (first.addresses.http, first.addresses.grpc)]

        def ports(count: int) -> list[int]:
            tries.append([*taken, *free(1)] if not tries else free(count))
            return tries[-1]

        monkeypatch.setattr(servers, "_free_ports", ports)
        with started(triton, repository) as second:
            assert isinstance(second, StartedServer)
    assert len(tries) == 2


def test_a_server_that_cannot_start_says_why(triton: InstalledServer, tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match=r"the Triton server ended with exit code 1: .*nowhere"),
        started(triton, tmp_path / "nowhere"),
    ):
        pass
