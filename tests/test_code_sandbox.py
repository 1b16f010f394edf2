"""The sandbox's own parts: the filter, the cgroup, what is refused where, Docker and endpoints,
hostile replies, speed of cleaning up.
"""

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from whet.errors import RewardError
from whet.rewards.code.verifier import CodeReward
from whet.sandbox import bubblewrap, exchange, seccomp
from whet.sandbox.bubblewrap import Bubblewrap
from whet.sandbox.cgroup import Group
from whet.sandbox.exchange import GuestRun, parse_output
from whet.sandbox.plain_data import HASHED, Unplain, decode, encode

needs_bwrap = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="bubblewrap is not installed"
)
ORDER: dict[str, Any] = {
    "mode": "stdio",
    "program": "print(int(input()) * 2)",
    "inputs": ["21"],
    "seconds": 2.0,
    "total": 2.0,
    "bytes": 1 << 16,
    "stop": False,
}
ANSWER = ['{"output": "42\\n", "ended": "exit 0"}']


def decided(filter: bytes, machine: int, number: int, first: int = 0) -> int:
    """What the filter says of one system call: a classic BPF machine in a few lines."""
    memory = {0: number, 4: machine, 16: first}
    steps = list(struct.iter_unpack("<HBBI", filter))
    at = accumulator = 0
    while True:
        code, yes, no, value = steps[at]
        at += 1
        if code == 0x06:
            return value
        if code == 0x20:
            accumulator = memory[value]
        else:
            taken = {
                0x15: accumulator == value,
                0x35: accumulator >= value,
                0x45: accumulator & value,
            }[code]
            at += yes if taken else no


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_the_filter_refuses_what_it_names_and_nothing_else(machine: str, column: int):
    filter, arch = seccomp.program(machine), {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]
    allow, refuse = 0x7FFF0000, 0x00050001
    denied = {numbers[column] for numbers in seccomp.DENIED.values() if numbers[column]}
    special = {(41, 198)[column]: refuse, (56, 220)[column]: allow, 435: 0x00050000 | 38}
    for number in range(500):
        assert decided(filter, arch, number) == (
            refuse if number in denied else special.get(number, allow)
        ), number
    assert decided(filter, arch, (41, 198)[column], 1) == allow  # AF_UNIX
    assert [decided(filter, arch, (41, 198)[column], family) for family in (2, 10, 16, 17, 40)] == [
        refuse
    ] * 5
    for flag in (
        0x20000,
        0x2000000,
        0x4000000,
        0x8000000,
        0x10000000,
        0x20000000,
        0x40000000,
        0x80,
    ):
        assert decided(filter, arch, (56, 220)[column], flag | 17) == refuse
    assert decided(filter, 0x40000003, 1) == 0x80000000  # a 32-bit call
    assert len(steps := list(struct.iter_unpack("<HBBI", filter))) < 4096 and steps[-1][0] == 0x06
    if machine == "x86_64":
        assert decided(filter, arch, 0x40000000 + 39) == 0x80000000


def test_other_machines_have_no_filter():
    with pytest.raises(RewardError, match="no system-call filter for riscv64"):
        seccomp.program("riscv64")


def test_plain_data_comes_back_as_it_went():
    values: list[Any] = [
        None,
        True,
        1,
        -(2**60),
        1.5,
        "é\ud800",
        [1, [2]],
        (1, ()),
        {1, 2},
        frozenset("a"),
        {"a": (1,), 2: None},
        b"\0x",
        bytearray(b"y"),
        1 + 2j,
        range(1, 9, 2),
    ]
    for value in values:
        back = decode(json.loads(json.dumps(encode(value))))
        assert back == value and type(back) is type(value), value


def test_only_exact_types_are_plain():
    class Int(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    for value in (Int(3), object(), int, len, [Int(3)], {Int(3): 1}, (x for x in ()), deep):
        with pytest.raises(Unplain):
            encode(value)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"a": 1, "b": 2},
        {"eval": "1"},
        {"int": "x"},
        {"set": [[1]]},
        {"set": list(range(HASHED + 1))},
        {"bytes": "z"},
        {"range": [0, 1, 0]},
    ],
)
def test_forged_data_is_not_read(data: Any):
    with pytest.raises((ValueError, TypeError)):
        decode(data)


def test_only_whole_lines_after_the_first_count():
    assert parse_output(b'{"began": true}\n1\n2\n{"done": true}\n', "died", "") == GuestRun(
        ["1", "2"], True, "done"
    )
    assert parse_output(b'{"began": true}\n1\n2', "died", "") == GuestRun(["1"], True, "died")
    assert parse_output(b'1\n{"began": true}\n', "died", "no").began is False
    assert parse_output(b"", "died", "no") == GuestRun([], False, "died", "no")


@pytest.mark.parametrize("version", [1, 2])
def test_a_group_is_made_where_there_is_a_tree(tmp_path: Path, version: int):
    gone = f"whet-{2**22 + 7}"
    if version == 1:
        parents = [tmp_path / "memory", tmp_path / "pids"]
    else:
        parents = [tmp_path / "slice"]
        tmp_path.joinpath("cgroup.controllers").write_text("cpu memory pids")
    for parent in parents:
        (parent / gone).mkdir(parents=True)
        (parent / "cgroup.subtree_control").write_text("cpu")
    own = tmp_path / "own"
    own.write_text("0::/slice\n")
    group = Group(1 << 20, 9, tmp_path, own)
    names = (
        {"memory.limit_in_bytes", "pids.max"}
        if version == 1
        else {"memory.max", "memory.swap.max", "pids.max"}
    )
    assert group and {p.name for f in group.folders for p in f.iterdir()} == names
    assert all(not (parent / gone).exists() for parent in parents)
    group.join()
    assert group.pids() == {0}
    assert not Group(1, 1, tmp_path / "nowhere", own)


@pytest.fixture
def open_folder() -> Iterator[str]:
    """A folder that any user may enter."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        yield folder


def test_a_missing_or_old_bubblewrap_is_said_in_one_line(
    tmp_path: Path, open_folder: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        RewardError,
        match=r"^code sandbox: bubblewrap is not here; install it \(apt-get install bubblewrap\)",
    ):
        Bubblewrap()
    with pytest.raises(
        RewardError, match=r"^code sandbox: bubblewrap is not here; install it .*docker"
    ) as error:
        CodeReward()
    assert "\n" not in str(error.value)
    fake = Path(open_folder) / "bwrap"
    monkeypatch.setenv("PATH", open_folder)
    fake.write_text("#!/bin/sh\necho bubblewrap 0.6.1\n")
    fake.chmod(0o755)
    with pytest.raises(RewardError, match=r"bubblewrap 0\.6 is older than 0.8"):
        Bubblewrap()
    fake.write_text(
        "#!/bin/sh\n[ $1 = --version ] && echo bubblewrap 0.9.0 && exit\necho No permissions to "
        "create new namespace >&2\nexit 1\n"
    )
    with pytest.raises(
        RewardError, match=r"cannot isolate here \(.*No permissions.*user namespaces"
    ):
        CodeReward(processes=1)


@needs_bwrap
@pytest.mark.skipif(os.getuid() != 0, reason="every other test shows it then")
def test_nobody_special_can_isolate_too(open_folder: str):
    """Where user namespaces are open to all, the sandbox needs no root."""
    ours = Bubblewrap(128)

    def nobody() -> None:
        if ours.closed is not None:
            bubblewrap._cover(ours.closed, ours.visible)
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

    code = (
        f"import json\nfrom whet.sandbox.bubblewrap import Bubblewrap\ni = "
        f"Bubblewrap(128)\nprint(i.root, *i.run(json.loads({json.dumps(ORDER)!r})).replies)"
    )
    package = Path(bubblewrap.__file__).parents[1]
    shutil.copytree(package / "sandbox", f"{open_folder}/whet/sandbox")
    shutil.copy(package / "errors.py", f"{open_folder}/whet/errors.py")
    env = {"PYTHONPATH": open_folder, "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [str(ours.python), "-c", code],
        env=env,
        capture_output=True,
        text=True,
        cwd="/",
        preexec_fn=nobody,
    )
    assert (done.returncode, done.stdout.strip()) == (0, f"False {ANSWER[0]}"), done.stderr


@needs_bwrap
def test_parallel_sandboxes_share_nothing():
    try:
        ours = Bubblewrap(128)
    except RewardError as error:
        pytest.skip(str(error))
    code = (
        "from whet.sandbox.bubblewrap import Bubblewrap\nimport json, sys\ni = "
        "Bubblewrap(128)\nprint(i.uid)"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (int(other.stdout) != ours.uid) == ours.root
    order = {
        **ORDER,
        "program": "import os\nprint(os.path.exists('/tmp/x'))\nopen('/tmp/x', 'w')",
        "inputs": ["", ""],
    }
    assert [json.loads(r)["output"] for _ in range(2) for r in ours.run(order).replies] == [
        "False\n",
        "True\n",
    ] * 2
    before = len(os.listdir("/proc/self/fd"))
    assert ours.run(ORDER).replies == ANSWER and len(os.listdir("/proc/self/fd")) == before
    started = time.monotonic()
    late = ours.run(
        {
            **ORDER,
            "mode": "record",
            "setup": "while True: pass",
            "test": "",
            "entry": "f",
            "total": 0.3,
        }
    )
    assert late.ended == "time" and time.monotonic() - started < 0.3 + exchange.GRACE + 2
