"""The worker pool: limits from outside, one item's failure is one item's, and nothing outlives the
program.
"""

import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from whet.errors import RewardError
from whet.sandbox import pool as pools
from whet.sandbox.pool import Pool

MODULE = "whet_test_worker"
SOURCE = '''
import ctypes, os, signal, subprocess, sys, time

def double(item):
    return item * 2

def spin(item):
    """Hold the interpreter's lock for ever in one call."""
    return str(9 ** 9 ** 9)

def act(item):
    kind = item[0]
    if kind == "value": return item[1]
    if kind == "sleep": time.sleep(item[1]); return "slept"
    if kind == "spin": return 9 ** 9 ** 9 % 7
    if kind == "crash": ctypes.string_at(0)
    if kind == "exit": os._exit(3)
    if kind == "system_exit": sys.exit(0)
    if kind == "raise": raise ValueError("no " + item[1])
    if kind == "memory": return len(bytearray(item[1] << 20))
    if kind == "keep": KEPT.append(bytearray(item[1] << 20)); return len(KEPT)
    if kind == "print":
        print("noise"); os.write(1, b"noise\\\\n"); os.system("echo noise"); return sys.stdin.read()
    if kind == "env": return dict(os.environ)
    if kind == "huge": return "x" * (5 << 20)
    if kind == "set": return {1}
    if kind == "nested":
        value = []
        for _ in range(item[1]): value = [value]
        return value
    if kind == "pid": return os.getpid()
    if kind == "child":
        return subprocess.Popen(["sleep", "1000"]).pid
    if kind == "ignore":
        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM): signal.signal(name, signal.SIG_IGN)
        while True: pass

KEPT = []
'''


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("worker")
    (folder / f"{MODULE}.py").write_text(SOURCE)
    (folder / "whet_test_broken.py").write_text("import nowhere_to_be_found")
    (folder / "whet_test_dies.py").write_text("import os\nos._exit(9)")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(f"{MODULE}:act", processes=2, seconds=1.0, memory_mb=256) as pool:
        yield pool


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_results_keep_the_order_of_items() -> None:
    with Pool(f"{MODULE}:double", processes=2) as pool:
        assert [r.value for r in pool.map(list(range(500)))] == [2 * n for n in range(500)]
        assert pool.map([]) == []
        assert [r.value for r in pool.map(["é\ud800\n", [1.5], "x" * 3_000_00])] == [
            "é\ud800\n" * 2,
            [1.5, 1.5],
            "x" * 6_000_00,
        ]


@pytest.mark.parametrize(
    ("item", "status", "message"),
    [
        (["spin"], "timeout", "limit 1 s"),
        (["ignore"], "timeout", "limit 1 s"),
        (["sleep", 30], "timeout", "limit 1 s"),
        (["crash"], "error", "signal 11"),
        (["exit"], "error", "exit code 3"),
        (["system_exit"], "error", "SystemExit"),
        (["raise", "luck"], "error", "ValueError: no luck"),
        (["memory", 400], "error", "MemoryError"),
        (["huge"], "error", "more than 4194304"),
        (["set"], "error", "not JSON"),
        (["nested", 100_000], "error", "not JSON"),
        (["nested", 990], "error", ""),
    ],
)
def test_one_item_fails_alone(pool: Pool, item: list[Any], status: str, message: str) -> None:
    items = [["value", n] for n in range(20)]
    items[3] = item
    results = pool.map(items)
    if (
        item == ["nested", 990] and results[3].status == "ok"
    ):  # within what this Python can read back
        status = "ok"
    assert results[3].status == status
    assert message in results[3].message
    assert [r.value for n, r in enumerate(results) if n != 3] == [n for n in range(20) if n != 3]


def test_several_failures_in_one_call(pool: Pool) -> None:
    items = [["spin"], ["crash"], ["value", 1], ["sleep", 9], ["exit"], ["value", 2], ["spin"]]
    assert [r.status for r in pool.map(items)] == [
        "timeout",
        "error",
        "ok",
        "timeout",
        "error",
        "ok",
        "timeout",
    ]


def test_time_is_counted_per_item_not_per_queue() -> None:
    with Pool(f"{MODULE}:act", processes=1, seconds=0.8) as pool:
        assert {r.status for r in pool.map([["sleep", 0.3]] * 6)} == {"ok"}


def test_prints_do_not_reach_the_channel(pool: Pool) -> None:
    assert [r.value for r in pool.map([["print"], ["value", 7]])] == ["", 7]


def test_memory_held_from_one_item_does_not_fail_the_next() -> None:
    with Pool(f"{MODULE}:act", processes=2, seconds=20, memory_mb=64) as pool:
        results = pool.map([["keep", 24]] * 8)
    assert [r.status for r in results] == ["ok"] * 8


def test_not_a_number_and_infinity_pass(pool: Pool) -> None:
    value = pool.map([["value", [math.nan, math.inf]]])[0].value
    assert math.isnan(value[0]) and value[1] == math.inf


def test_the_environment_is_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    with Pool(f"{MODULE}:act", processes=1, env={"PYTHONHASHSEED": "7"}) as pool:
        env = pool.map([["env"]])[0].value
    assert "HF_TOKEN" not in env
    assert env["PYTHONHASHSEED"] == "7"


def test_works_from_a_thread_that_ends() -> None:
    """The parent-death signal belongs to the thread that forked: workers must not die with the
    calling thread.
    """
    pool, pids = Pool(f"{MODULE}:act", processes=1), list[int]()
    for _ in range(3):
        thread = threading.Thread(target=lambda: pids.append(pool.map([["pid"]])[0].value))
        thread.start()
        thread.join()
        time.sleep(0.05)
    assert len(set(pids)) == 1 and alive(pids[0])
    pool.close()
    assert not alive(pids[0])
    assert pool.map([["value", 1]])[0].value == 1
    pool.close()


def test_threads_take_turns() -> None:
    with Pool(f"{MODULE}:double", processes=2) as pool:
        answers: dict[int, list[int]] = {}

        def ask(n: int) -> None:
            answers[n] = [r.value for r in pool.map([n] * 50)]

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {n: [2 * n] * 50 for n in range(4)}


def test_an_interrupted_call_leaves_no_answers_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with Pool(f"{MODULE}:act", processes=1) as pool:
        pool.map([["value", 0]])
        with monkeypatch.context() as patch:
            patch.setattr(pools._Call, "wait", interrupt)
            with pytest.raises(KeyboardInterrupt):
                pool.map([["value", 1]] * 4)
        assert [r.value for r in pool.map([["value", n] for n in (5, 6, 7)])] == [5, 6, 7]


def test_what_a_killed_worker_started_dies_with_it(pool: Pool) -> None:
    child = pool.map([["child"]])[0].value
    assert alive(child)
    pool.close()
    assert until(lambda: not alive(child))


@pytest.mark.parametrize("ending", ["kill", "exit", "return"])
def test_no_orphans(module: Path, ending: str) -> None:
    """Not even from a worker that holds the interpreter's lock when its parent is killed."""
    script = f"""
import os, sys, threading, time
sys.path.insert(0, {str(module)!r})
from whet.sandbox.pool import Pool
pool = Pool("{MODULE}:act", processes=1, seconds=100)
print(pool.map([["pid"]])[0].value, flush=True)
if {ending!r} != "return":
    threading.Thread(target=pool.map, args=([["spin"]],), daemon=True).start()
    time.sleep(0.3)
if {ending!r} == "exit": os._exit(1)
if {ending!r} == "kill": print("spinning", flush=True); time.sleep(100)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    if ending == "kill":
        assert parent.stdout.readline() == "spinning\n"
        assert alive(pid)
        parent.kill()
    parent.wait()
    parent.stdout.close()
    assert until(lambda: not alive(pid))


def test_a_fork_gets_workers_of_its_own() -> None:
    with Pool(f"{MODULE}:act", processes=1) as pool:
        mine = pool.map([["pid"]])[0].value
        child = os.fork()
        if child == 0:
            theirs = pool.map([["pid"]])[0].value
            pool.close()
            os._exit(0 if theirs != mine else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert pool.map([["pid"]])[0].value == mine


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("whet_test_nowhere:f", "No module named 'whet_test_nowhere'"),
        (f"{MODULE}:nothing", "has no attribute 'nothing'"),
        ("whet_test_broken:f", "nowhere_to_be_found"),
        ("whet_test_dies:f", "exit code 9"),
    ],
)
def test_a_function_that_cannot_be_imported_is_one_line(function: str, message: str) -> None:
    with Pool(function) as pool, pytest.raises(RewardError, match="whet_test") as error:
        pool.map([1])
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("function", ["module", "a:b:c", "os; import sys:f", "a b:c"])
def test_a_function_must_be_named_module_and_function(function: str) -> None:
    with pytest.raises(RewardError, match="module:function"):
        Pool(function)


def test_limits_must_be_positive() -> None:
    with pytest.raises(RewardError, match="above 0"):
        Pool("math:sqrt", seconds=0)
