"""Child processes for real: what they print, how they end, and that none is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from engineworks.errors import (
    BuildError,
    ChildDefect,
    EngineworksError,
    Interrupted,
    ModelError,
    Place,
    Problem,
    RecipeError,
    StepError,
    TimeLimitError,
)
from engineworks.host.child import ChildPool

ROOT = Path(__file__).parents[2]

JOBS = '''
import ctypes, os, sys, threading, time
from engineworks.errors import BuildError, ModelError, Place, Problem, RecipeError

def echo(payload):
    return {"pid": os.getpid(), **payload}

def speak(payload):
    print("from Python", payload["word"])
    os.write(2, b"from a descriptor\\n")
    ctypes.CDLL(None).puts(b"from C")
    print("\\r10 %\\r20%")
    print("\\x1b[31mred\\x1b[m", file=sys.stderr)
    sys.stdout.write("no newline ")
    sys.stdout.flush()
    ctypes.CDLL(None).printf(b"at the end")
    return {}

def mutter_later(payload):
    def mutter():
        open(payload["answered"]).read()  # a named pipe: the answer goes first
        print("late", flush=True)
        open(payload["said"], "w").close()
    threading.Thread(target=mutter, daemon=True).start()
    return {"pid": os.getpid()}

def fill(payload):
    return {"bytes": len(bytearray(payload["mib"] << 20)), "pid": os.getpid()}

def start_another(payload):
    import subprocess
    inner = subprocess.Popen(["sleep", "600"], start_new_session=True)
    print("started", inner.pid, flush=True)
    time.sleep(600)

def leave_daemon(payload):
    """A daemon as servers make it: two forks and a session of its own, which outlives whatever started it."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        daemon = os.fork()
        if daemon:
            os.write(write, str(daemon).encode())
            os._exit(0)
        for fd in range(3):
            os.close(fd)
        time.sleep(600)
    print("started", os.read(read, 20).decode(), flush=True)
    if payload.get("signal"):
        os.kill(os.getpid(), payload["signal"])
    time.sleep(payload.get("seconds", 0))
    return {}

def nap(payload):
    print("napping", os.getpid(), flush=True)
    time.sleep(payload["seconds"])
    return {"pid": os.getpid()}

def hang(payload):
    """A C function that never lets another Python thread run, as a builder may."""
    print("hanging", os.getpid(), flush=True)
    ctypes.PyDLL(None).sleep(600)
    return {}

def crash(payload):
    print("about to crash")
    ctypes.string_at(0)

def leave(payload):
    os._exit(3)

def die(payload):
    os.kill(os.getpid(), payload["signal"])
    time.sleep(60)

def refuse(payload):
    raise BuildError("the builder refused", hint="ask it nicely", log="its words")

def refuse_without_log(payload):
    print("its last words")
    raise BuildError("the builder refused")

def misread(payload):
    raise RecipeError([Problem(Place("b.yaml", 2, 3), "bad", "do better"), Problem(Place("a.yaml"), "worse")])

class OurOwn(ModelError):
    pass

def fail_our_own(payload):
    raise OurOwn("not a model")

def slip(payload):
    return {"share": 1 / 0}

def quit_(payload):
    sys.exit("enough")

def modules(payload):
    return {"pid": os.getpid(), "there": payload["module"] in sys.modules}

def read_input(payload):
    return {"read": sys.stdin.read()}

def environment(payload):
    return {"pid": os.getpid(), "value": os.environ.get(payload["name"]), "cwd": os.getcwd()}
'''


@pytest.fixture(autouse=True)
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "child_jobs.py").write_text(JOBS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def pool() -> Iterator[ChildPool]:
    with ChildPool() as pool:
        yield pool


def alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return False
    return "State:\tZ" not in status


def wait_until(true: Callable[[], object], seconds: float = 10.0) -> bool:
    """Whether it becomes true in this time, which is long: hosts are loaded, and what it waits for is soon there."""
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.02)
    return bool(true())


def wait_gone(pid: int) -> bool:
    return wait_until(lambda: not alive(pid))


def test_a_function_of_a_module_gets_the_payload_and_its_object_comes_back(pool: ChildPool) -> None:
    answer = pool.run("child_jobs:echo", {"text": "größer", "list": [1, None, 2.5]})
    assert answer["text"] == "größer"
    assert answer["list"] == [1, None, 2.5]
    assert answer["pid"] != os.getpid()


def test_payloads_and_answers_of_megabytes_pass(pool: ChildPool) -> None:
    text = "x" * 3_000_000
    assert pool.run("child_jobs:echo", {"text": text})["text"] == text


def test_output_of_python_of_descriptors_and_of_c_arrives_in_order_as_lines(pool: ChildPool) -> None:
    lines: list[str] = []
    pool.run("child_jobs:speak", {"word": "hello"}, on_line=lines.append)
    assert lines == [
        "from Python hello", "from a descriptor", "from C", "20%", "red", "no newline at the end",
    ]  # fmt: skip


def test_what_a_job_prints_after_its_answer_is_not_the_next_jobs(pool: ChildPool, tmp_path: Path) -> None:
    said, answered = tmp_path / "said", tmp_path / "answered"
    os.mkfifo(answered)
    first = pool.run("child_jobs:mutter_later", {"said": str(said), "answered": str(answered)})
    answered.write_text("go")
    assert wait_until(said.exists)
    lines: list[str] = []
    assert pool.run("child_jobs:speak", {"word": "mine"}, on_line=lines.append) == {}
    assert first["pid"] == pool.run("child_jobs:echo", {})["pid"]
    assert "late" not in lines


def test_standard_input_is_empty_for_a_job(pool: ChildPool) -> None:
    assert pool.run("child_jobs:read_input", {})["read"] == ""


def test_a_child_stays_warm_for_the_next_job(pool: ChildPool) -> None:
    pids = {pool.run("child_jobs:echo", {})["pid"] for _ in range(3)}
    assert len(pids) == 1


def test_a_warm_child_outlives_the_thread_that_first_used_it(pool: ChildPool) -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(pool.run("child_jobs:echo", {})["pid"]))
    thread.start()
    thread.join()
    assert wait_until(lambda: not Path(f"/proc/self/task/{thread.native_id}").exists())
    assert pool.run("child_jobs:echo", {})["pid"] == found[0]


def test_a_fresh_child_did_nothing_before_and_does_nothing_after(pool: ChildPool) -> None:
    warm = pool.run("child_jobs:echo", {})["pid"]
    fresh = pool.run("child_jobs:echo", {}, fresh=True)["pid"]
    assert fresh != warm
    assert not alive(fresh)
    assert pool.run("child_jobs:echo", {})["pid"] == warm


def test_another_environment_is_another_child(pool: ChildPool) -> None:
    plain = pool.run("child_jobs:environment", {"name": "ENGINE_TEST"})
    changed = pool.run("child_jobs:environment", {"name": "ENGINE_TEST"}, env={"ENGINE_TEST": "1"})
    assert (plain["value"], changed["value"]) == (None, "1")
    assert plain["pid"] != changed["pid"]


def test_a_job_runs_in_the_folder_that_is_asked_for(pool: ChildPool, tmp_path: Path) -> None:
    assert pool.run("child_jobs:environment", {"name": ""}, cwd=tmp_path)["cwd"] == str(tmp_path)
    assert pool.run("child_jobs:environment", {"name": ""})["cwd"] == str(Path.cwd())


def test_a_child_is_replaced_after_so_many_jobs() -> None:
    with ChildPool(max_jobs=2) as pool:
        pids = [pool.run("child_jobs:echo", {})["pid"] for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


def test_a_child_that_holds_too_much_memory_is_replaced() -> None:
    with ChildPool(max_idle_mib=1) as pool:
        assert pool.run("child_jobs:echo", {})["pid"] != pool.run("child_jobs:echo", {})["pid"]


def test_no_more_idle_children_are_kept_than_asked_for() -> None:
    with ChildPool(max_idle=1) as pool:
        pids = run_together(pool, [("child_jobs:nap", {"seconds": 0.3})] * 3)
        assert sum(alive(pid) for pid in pids) == 1
    assert not any(alive(pid) for pid in pids)


def test_an_idle_child_that_died_is_replaced(pool: ChildPool) -> None:
    pid = pool.run("child_jobs:echo", {})["pid"]
    os.kill(pid, signal.SIGKILL)
    assert wait_gone(pid)
    assert pool.run("child_jobs:echo", {})["pid"] != pid


def test_children_started_early_have_imported_what_was_asked(pool: ChildPool) -> None:
    assert not pool.run("child_jobs:modules", {"module": "colorsys"}, fresh=True)["there"]
    pool.prestart(["colorsys", "no_such_module_here"], ["sndhdr"], count=2)
    for module in ("colorsys", "sndhdr"):
        assert pool.run("child_jobs:modules", {"module": module})["there"]


def test_the_peak_of_memory_is_that_of_the_job(pool: ChildPool) -> None:
    peaks: list[float] = []
    pids = {pool.run("child_jobs:fill", {"mib": mib}, on_peak=peaks.append)["pid"] for mib in (1, 200, 1)}
    small, large, after = peaks
    assert large > 200
    assert len(pids) == 1
    assert 0 < max(small, after) < 100


def test_a_job_that_takes_too_long_is_killed_even_inside_c(pool: ChildPool) -> None:
    lines: list[str] = []
    start = time.monotonic()
    with pytest.raises(TimeLimitError, match="the long build did not end within 1 s and was killed") as caught:
        pool.run("child_jobs:hang", {}, time_limit_s=1, on_line=lines.append, what="the long build")
    assert time.monotonic() - start < 10
    assert not alive(int(lines[0].split()[1]))
    assert caught.value.log == lines[0]


def test_what_a_job_has_started_is_killed_with_it(pool: ChildPool) -> None:
    lines: list[str] = []
    event = threading.Event()

    def stop(line: str) -> None:
        lines.append(line)
        event.set()

    with pytest.raises(Interrupted):
        pool.run("child_jobs:start_another", {}, cancel=event, on_line=stop)
    assert wait_gone(int(lines[0].split()[1]))


@pytest.mark.parametrize(
    ("payload", "raised"),
    [({}, None), ({"seconds": 600}, TimeLimitError), ({"signal": signal.SIGSEGV}, StepError),
     ({"signal": signal.SIGKILL}, StepError)],
)  # fmt: skip
def test_a_daemon_ends_with_the_job_that_left_it(
    pool: ChildPool, payload: dict[str, int], raised: type[StepError] | None
) -> None:
    lines: list[str] = []
    with pytest.raises(raised) if raised else nullcontext():
        pool.run("child_jobs:leave_daemon", payload, fresh=True, on_line=lines.append, time_limit_s=2)
    assert not alive(int(lines[0].split()[1]))


def test_a_crash_is_one_message_with_the_signal_and_the_last_line(pool: ChildPool) -> None:
    with pytest.raises(BuildError) as caught:
        pool.run("child_jobs:crash", {}, what="the build of m.onnx", error=BuildError)
    message = str(caught.value)
    assert message.startswith("the build of m.onnx crashed with SIGSEGV (it touched memory that is not its own)")
    assert message.endswith("its last line: about to crash")
    assert "\n" not in message
    assert "in crash" in caught.value.log  # the fault handler's stack
    assert pool.run("child_jobs:echo", {})["pid"]  # the pool goes on


def test_a_child_that_was_killed_says_that_memory_may_have_run_out(pool: ChildPool) -> None:
    with pytest.raises(StepError, match=r"SIGKILL .*memory ran out"):
        pool.run("child_jobs:die", {"signal": signal.SIGKILL})


def test_a_child_that_ends_without_an_answer_says_its_exit_code(pool: ChildPool) -> None:
    with pytest.raises(StepError, match="ended with exit code 3 and no answer"):
        pool.run("child_jobs:leave", {})


def test_our_errors_come_back_as_what_they_are(pool: ChildPool) -> None:
    with pytest.raises(BuildError) as build:
        pool.run("child_jobs:refuse", {})
    assert (build.value.message, build.value.hint, build.value.log) == (
        "the builder refused", "ask it nicely", "its words",
    )  # fmt: skip
    with pytest.raises(RecipeError) as recipe:
        pool.run("child_jobs:misread", {})
    assert recipe.value.problems == (
        Problem(Place("a.yaml"), "worse"), Problem(Place("b.yaml", 2, 3), "bad", "do better"),
    )  # fmt: skip


def test_a_step_error_without_a_log_gets_the_last_lines(pool: ChildPool) -> None:
    with pytest.raises(BuildError) as caught:
        pool.run("child_jobs:refuse_without_log", {})
    assert caught.value.log == "its last words"


def test_an_error_of_a_class_that_is_not_in_the_tree_comes_back_as_its_nearest_base(pool: ChildPool) -> None:
    with pytest.raises(ModelError, match="not a model") as caught:
        pool.run("child_jobs:fail_our_own", {})
    assert type(caught.value) is ModelError


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ("child_jobs:slip", "raised ZeroDivisionError: division by zero"),
        ("child_jobs:quit_", "raised SystemExit: enough"),
        ("child_jobs:there_is_none", "raised AttributeError"),
        ("no_such_module_here:main", "raised ModuleNotFoundError"),
    ],
)
def test_any_other_exception_is_a_defect_with_its_traceback_aside(pool: ChildPool, job: str, said: str) -> None:
    with pytest.raises(ChildDefect, match=said) as caught:
        pool.run(job, {})
    assert caught.value.exit_code == 70
    assert "Traceback" in caught.value.log
    assert "Traceback" not in str(caught.value)


def run_together(pool: ChildPool, jobs: list[tuple[str, dict[str, Any]]]) -> list[int]:
    """Pids of the children that did these jobs at the same time."""
    pids: list[int] = []
    threads = [threading.Thread(target=lambda j=job: pids.append(pool.run(*j)["pid"])) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return pids


def test_two_threads_have_a_child_each_and_their_own_lines(pool: ChildPool) -> None:
    lines: dict[str, list[str]] = {"a": [], "b": []}

    def work(word: str) -> None:
        for _ in range(20):
            pool.run("child_jobs:speak", {"word": word}, on_line=lines[word].append)

    threads = [threading.Thread(target=work, args=(word,)) for word in lines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for word, said in lines.items():
        assert len(said) == 20 * 6
        assert said.count(f"from Python {word}") == 20


def in_thread_until_it_hangs(pool: ChildPool, **options: Any) -> tuple[threading.Thread, int, list[BaseException]]:
    """A thread that waits for a job that never ends, the job's pid, and what the thread will raise."""
    lines: list[str] = []
    raised: list[BaseException] = []

    def work() -> None:
        try:
            pool.run("child_jobs:hang", {}, on_line=lines.append, **options)
        except EngineworksError as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert wait_until(lambda: lines), raised
    return thread, int(lines[0].split()[1]), raised


def test_an_event_stops_a_job_at_once(pool: ChildPool) -> None:
    event = threading.Event()
    thread, pid, raised = in_thread_until_it_hangs(pool, cancel=event)
    start = time.monotonic()
    event.set()
    thread.join(10)
    assert time.monotonic() - start < 5  # the job would take ten minutes
    assert isinstance(raised[0], Interrupted)
    assert not alive(pid)


def test_cancel_all_from_another_thread_stops_every_job_at_once(pool: ChildPool) -> None:
    hanging = [in_thread_until_it_hangs(pool) for _ in range(2)]
    start = time.monotonic()
    pool.cancel_all()
    for thread, pid, raised in hanging:
        thread.join(10)
        assert isinstance(raised[0], Interrupted)
        assert not alive(pid)
    assert time.monotonic() - start < 5
    assert pool.run("child_jobs:echo", {})["pid"]  # later jobs run


def test_an_exception_in_the_waiting_thread_kills_the_child(pool: ChildPool) -> None:
    seen: list[int] = []

    def interrupt(line: str) -> None:
        seen.append(int(line.split()[1]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.run("child_jobs:hang", {}, on_line=interrupt)
    assert not alive(seen[0])


def test_a_time_out_in_the_callers_own_code_is_not_taken_for_ours(pool: ChildPool) -> None:
    def fail(line: str) -> None:
        raise TimeoutError("the logger's own")

    with pytest.raises(TimeoutError, match="the logger's own"):
        pool.run("child_jobs:nap", {"seconds": 5}, on_line=fail)


def test_a_child_takes_no_notice_of_ctrl_c(pool: ChildPool) -> None:
    def interrupt(line: str) -> None:
        os.kill(int(line.split()[1]), signal.SIGINT)

    assert pool.run("child_jobs:nap", {"seconds": 0.5}, on_line=interrupt)["pid"]


PARENT = """
import sys
from engineworks.host.child import ChildPool
pool = ChildPool()
forked = len(sys.argv) > 2
if forked:
    pool.prestart(count=2)
idle = pool.run("child_jobs:echo", {})["pid"]
print(idle, flush=True)
try:
    pool.run(sys.argv[1], {}, on_line=lambda line: print(line, flush=True), fresh=not forked)
except KeyboardInterrupt:
    sys.exit(130)
"""


def start_parent(jobs: Path, script: str, *arguments: str) -> subprocess.Popen[str]:
    """A process of its own group that runs the script."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{jobs}"}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        stdout=subprocess.PIPE, text=True, env=env, start_new_session=True,
    )  # fmt: skip


def read_pids(parent: subprocess.Popen[str]) -> tuple[int, int]:
    """Pids of the idle child and of the one that hangs."""
    assert parent.stdout is not None
    return int(parent.stdout.readline()), int(parent.stdout.readline().split()[1])


@pytest.mark.parametrize("forked", [(), ("forked",)])
def test_ctrl_c_ends_parent_and_children(jobs: Path, forked: tuple[str, ...]) -> None:
    parent = start_parent(jobs, PARENT, "child_jobs:hang", *forked)
    pids = read_pids(parent)
    os.killpg(parent.pid, signal.SIGINT)
    assert parent.wait(30) == 130
    assert all(wait_gone(pid) for pid in pids)


@pytest.mark.parametrize("forked", [(), ("forked",)])
def test_no_child_outlives_a_parent_that_was_killed(jobs: Path, forked: tuple[str, ...]) -> None:
    parent = start_parent(jobs, PARENT, "child_jobs:hang", *forked)
    pids = read_pids(parent)
    parent.kill()
    parent.wait(30)
    assert all(wait_gone(pid) for pid in pids)


def test_the_first_children_of_a_process_without_threads_are_its_forks(jobs: Path) -> None:
    """One with another environment is a new process: its libraries may read that."""
    script = """
    import os, sys
    from engineworks.errors import StepError
    from engineworks.host.child import ChildPool

    pool = ChildPool()
    pool.prestart(["colorsys", "no_such_module_here"], ["sndhdr"], count=2)
    print(*(module in sys.modules for module in ("colorsys", "sndhdr")))
    for environment in ({}, {"TOLD": "another"}):
        there = (pool.run("child_jobs:modules", {"module": m}, env=environment)["there"] for m in ("colorsys", "sndhdr"))
        print(*there, pool.run("child_jobs:environment", {"name": "TOLD"}, env=environment)["value"])
    pool.run("child_jobs:speak", {"word": "a fork"}, on_line=print)
    try:
        pool.run("child_jobs:crash", {})
    except StepError as error:
        print(error.message.partition(" after ")[0])
    """
    told, _ = start_parent(jobs, script).communicate(timeout=60)
    first, forks, others, *lines, crash = told.splitlines()
    assert (first, forks, others) == ("True False", "True True None", "False False another")
    assert {"from Python a fork", "from C", "no newline at the end"} <= set(lines)
    assert crash == "child_jobs:crash crashed with SIGSEGV (it touched memory that is not its own)"


def test_a_forked_process_has_children_of_its_own(jobs: Path) -> None:
    script = """
    import os
    from engineworks.host.child import run_in_child
    first = run_in_child("child_jobs:echo", {})["pid"]
    if os.fork() == 0:
        os._exit(0 if run_in_child("child_jobs:echo", {})["pid"] != first else 1)
    print(os.waitstatus_to_exitcode(os.wait()[1]) or run_in_child("child_jobs:echo", {})["pid"] - first)
    """
    parent = start_parent(jobs, script)
    assert parent.communicate(timeout=20)[0].strip() == "0"


def test_a_child_whose_job_failed_does_no_other(pool: ChildPool) -> None:
    """After some CUDA errors every later call of a process fails."""
    first = pool.run("child_jobs:echo", {})["pid"]
    assert pool.run("child_jobs:echo", {})["pid"] == first
    with pytest.raises(ChildDefect):
        pool.run("child_jobs:slip", {})
    assert pool.run("child_jobs:echo", {})["pid"] != first
