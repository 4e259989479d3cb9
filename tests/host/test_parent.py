from __future__ import annotations

import subprocess
import sys
import threading

from engineworks.host.child.supervise import may_fork

ALONE = """
from engineworks.host.collector import collect_apart
from engineworks.host.child.supervise import may_fork
collect_apart()
print(may_fork())
"""


def test_a_process_with_threads_is_not_forked_but_for_the_collector() -> None:
    assert subprocess.check_output([sys.executable, "-c", ALONE], text=True) == f"{sys.platform == 'linux'}\n"
    end = threading.Event()
    other = threading.Thread(target=end.wait)
    other.start()
    assert not may_fork()
    end.set()
    other.join()
