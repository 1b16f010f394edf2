"""Runs in whose system calls strace steps in: killed right before one of them, or told that the
disk is full there.

A run is forked from a process that has imported everything, and waits until strace holds it: what
strace counts is whet's own work. The calls that count are those of the save path: they name
something in the run's directory and could change it, or end a change. SIGKILL that strace delivers
on entering a call keeps the call from being made, so that a death before each call is also one
right after the call before it.
"""

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch._dynamo  # noqa: F401  what a run imports, once for all of them

from whet import report  # noqa: F401
from whet.cli.main import main
from whet.engines import native  # noqa: F401
from whet.pipeline import pipeline, resume  # noqa: F401
from whet.stages import dpo, merge, rank, reject, reward_model, rl, sft  # noqa: F401

NAMES = (
    "open,creat,openat,write,pwrite64,writev,sendfile,copy_file_range,ftruncate,truncate,fallocate,fsync,fdatasync,close,"
    "rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,link,linkat,symlink,symlinkat,chmod,fchmod,utimensat"
)
NEEDS_ROOM = [
    "openat",
    "write",
    "pwrite64",
    "writev",
    "sendfile",
    "copy_file_range",
    "ftruncate",
    "fallocate",
    "fsync",
    "mkdir",
    "rename",
]
PR_SET_PTRACER = 0x59616D61
RECIPE = (Path(__file__).parents[1] / "data" / "every_stage.toml").read_text()


class Call(NamedTuple):
    """One system call of the save path: the how-manieth of its name it is, all paths counted, and
    what it says, the run's folder left out.
    """

    name: str
    number: int
    says: str


class Ended(NamedTuple):
    code: int  # -9: killed
    told: str  # on stderr
    calls: list[Call]


def unable() -> str:
    """Why strace cannot step in here; empty where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    child = os.fork()
    if not child:
        _let_trace()
        signal.pause()
    try:
        with _attached(child, Path(os.devnull), "") as said:
            return "" if said is None else f"strace may not attach here: {said}"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def run(folder: Path, *words: str, inject: str | None = None) -> Ended:
    """`whet run` of the folder's crash.toml, in it. `inject` as strace has it; where empty strace
    only looks on, where None it is not there.
    """
    go, gone = os.pipe()
    child = os.fork()
    if not child:
        os.close(gone)
        _child(folder, ["run", str(folder / "crash.toml"), "--runs", str(folder), *words], go)
    os.close(go)
    log = folder / "strace.txt"
    with contextlib.ExitStack() as stack:
        if (
            inject is not None
            and (said := stack.enter_context(_attached(child, log, inject))) is not None
        ):
            raise RuntimeError(f"strace: {said}")
        os.write(gone, b"!")
        os.close(gone)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    calls = (
        list(_calls(log.read_text(errors="replace"), str(folder / "crash")))
        if inject is not None
        else []
    )
    return Ended(code, (folder / "told.txt").read_text(errors="replace"), calls)


def _child(folder: Path, words: list[str], go: int) -> NoReturn:
    """The run itself, as a process of its own would do it, once something can be read from `go`."""
    code = 70
    try:
        _let_trace()
        out = os.open(folder / "told.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = (
            os.fdopen(i, "w", closefd=False) for i in (1, 2)
        )  # the parent's may be somebody's else
        os.read(go, 1)
        code = main(words)
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _let_trace() -> None:
    """Lets any process of this user attach, where the kernel lets only parents."""
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)


@contextlib.contextmanager
def _attached(process: int, log: Path, inject: str) -> Iterator[str | None]:
    """Within it strace holds the process's first thread, which alone writes a run's files. Yields
    what it said where it could not.
    """
    command = [
        "strace",
        "-yy",
        "-s",
        "0",
        "-o",
        str(log),
        "-e",
        f"trace={NAMES}",
        "-p",
        str(process),
    ]
    if inject:
        command[1:1] = ["-e", f"inject={inject}"]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    said = tracer.stderr.readline().strip()
    yield None if "attached" in said else said or "it says nothing"
    if tracer.poll() is None and log == Path(os.devnull):
        tracer.send_signal(signal.SIGINT)
    tracer.communicate()


def _calls(text: str, run: str) -> Iterator[Call]:
    counts = Counter[str]()
    for line in text.splitlines():
        name = line.partition("(")[0]
        counts[name] += 1
        looks = name == "openat" and not re.search("O_WRONLY|O_RDWR|O_CREAT", line)
        if run in line and not (looks and "O_DIRECTORY" in line):
            said = line.rpartition(" = ")[0].strip().replace(run, "RUN")
            for odd, even in (
                (r"\.[0-9a-f]{8}\.(partial|old)", r".TOKEN.\1"),
                (r"\.tmp\w{6}", ".tmp"),
                (r"\.\.\., \d+|, \[\d+\].*", ""),  # how much: the log says times
                (r"\b\d+<", "<"),
            ):
                said = re.sub(odd, even, said)
            yield Call(name, counts[name], said)
