"""The parent's side of a worker process: starts it, writes to it, reads from it, kills it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from whet.errors import RewardError

MAX_BYTES = 4 << 20  # of one result
START_SECONDS = 60.0  # imports; never charged to an item
_MAIN = str(Path(__file__).with_name("worker_main.py"))


_lock = threading.Lock()
_spawner: tuple[int, ThreadPoolExecutor] | None = None  # with the pid of its process


def _spawn(env: dict[str, str]) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-P", _MAIN, str(os.getpid())],
        stdin=pipe,
        stdout=pipe,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env=env,
        start_new_session=True,
    )


def start(function: str, memory_mb: int, env: dict[str, str]) -> "Worker":
    """Starts a worker that imports `function`. Raises RewardError where no process can start.

    One thread, which lives as long as the process, starts all workers: the kernel's parent-death
    signal fires when the *thread* that forked ends.
    """
    global _spawner
    with _lock:
        # None yet, or we are a fork, which has none of its parent's threads.
        if _spawner is None or _spawner[0] != os.getpid():
            _spawner = os.getpid(), ThreadPoolExecutor(1, "whet-spawner")
        started = _spawner[1].submit(_spawn, env)
    try:
        worker = Worker(started.result())
    except OSError as error:
        raise RewardError(f"cannot start a worker process: {error}") from error
    path = [os.getcwd() if entry == "" else entry for entry in sys.path]
    setup = {"function": function, "path": path, "memory": memory_mb << 20, "max_bytes": MAX_BYTES}
    worker.unsent += json.dumps(setup).encode() + b"\n"
    worker.write()
    return worker


@dataclass(eq=False)
class Worker:
    """A started process, the pipes to it, which never block, and its unanswered items."""

    process: subprocess.Popen[bytes]
    ready: bool = False
    # When it was started; later, when its first pending item became the first.
    since: float = field(default_factory=time.monotonic)
    pending: deque[int] = field(default_factory=deque[int])  # sent, not answered, in order
    unsent: bytearray = field(default_factory=bytearray)
    unread: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.stdin, False)
        os.set_blocking(self.stdout, False)

    def write(self) -> None:
        try:
            while self.unsent:
                del self.unsent[: os.write(self.stdin, bytes(self.unsent[: 1 << 16]))]
        except BlockingIOError:
            pass
        except BrokenPipeError:  # it died; `read` reports the end
            self.unsent.clear()

    def read(self) -> tuple[list[bytes], bool]:
        """The complete lines that have arrived; True if the output has ended or a line is too long."""
        ended = False
        try:
            while not ended and len(self.unread) < 2 * MAX_BYTES:
                chunk = os.read(self.stdout, 1 << 18)
                ended = not chunk
                self.unread += chunk
        except BlockingIOError:
            pass
        *lines, rest = self.unread.split(b"\n")
        self.unread = bytearray(rest)
        return [bytes(line) for line in lines], ended or len(rest) > MAX_BYTES + 1024

    def kill(self) -> int:
        """Ends the worker and its processes. Returns its exit code, negative for a signal."""
        # Once it has been waited for, its pid may be another process's.
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        self.discard()
        return code

    def discard(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
