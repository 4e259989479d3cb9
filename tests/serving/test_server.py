"""A real server: it starts on loopback, says why it cannot, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engineworks.errors import RunError
from engineworks.host.triton import InstalledServer
from engineworks.measure.slopes import slopes
from engineworks.serving import server as servers
from engineworks.serving.answers import Question
from engineworks.serving.client import PROTOCOLS, Client
from engineworks.serving.server import SHARED_MEMORY, StartedServer, started
from engineworks.serving.soak import reload_model

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
    stats = [Path(f"/proc/{pid}/stat") for pid in tree]
    return all(not s.exists() or s.read_text().rpartition(")")[2].split()[0] == "Z" for s in stats)


def wait_for(condition: Callable[[], bool]) -> bool:
    """Wait for processes that the kernel ends; the test's time limit ends this."""
    while not condition():
        os.sched_yield()
    return True


def test_it_serves_by_both_protocols_and_its_tree_is_gone_afterwards(triton: InstalledServer, repository: Path) -> None:
    import numpy as np

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
import os, pathlib

class TritonPythonModel:
    def initialize(self, args):
        pathlib.Path("/dev/shm", f"FOLDER-planted-{os.getpid()}").write_bytes(bytes(128 * 1024))
"""


def test_a_planted_leak_of_128_kib_a_reload_is_found(triton: InstalledServer, repository: Path) -> None:
    import numpy as np

    question = Question({"x": np.ones((1, 3), np.float32)}, {"y": np.ones((1, 3), np.float32)})
    with started(triton, repository) as server, Client(server.addresses.grpc, "grpc") as client:
        planted = PLANTED.replace("FOLDER", server.name) + IDENTITY.partition("class TritonPythonModel:\n")[2]
        (repository / "net" / "1" / "model.py").write_text(planted)
        found = reload_model(client, server, "net", question, 12, lambda _: None)
    assert found["answers"]["equal"] == 12
    slope = slopes(found["readings"])["shared_kib"]
    assert slope.low > 64
    assert slope.per_step == pytest.approx(128, rel=0.1)


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
