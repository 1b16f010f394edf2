"""Inside the isolation: a forked process that runs the program; its parent watches and kills it."""

import os
import select
import time
from collections.abc import Callable
from typing import Any

Order = dict[str, Any]


def write(descriptor: int, line: bytes) -> None:
    view = memoryview(line)
    while view:
        view = view[os.write(descriptor, view) :]


class Child:
    """A forked process that runs `body(descriptor)` and writes its output to the descriptor."""

    def __init__(self, body: Callable[[int], int], order: Order, stdin: bytes = b"") -> None:
        self.seconds, self.cap, self.alone = order["seconds"], order["bytes"], order["alone"]
        self.source, target = os.pipe()
        input_file = self._input_file(stdin)
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.dup2(input_file, 0)
            os.closerange(3, target)
            os.closerange(target + 1, 256)
            code = 1
            try:
                code = body(target)
            finally:
                os._exit(code)
        os.close(target)
        os.close(input_file)

    def _input_file(self, stdin: bytes) -> int:
        if not stdin:
            return os.open(os.devnull, os.O_RDONLY)
        path = f"{os.getcwd()}/.input-{os.getpid()}-{time.monotonic_ns()}"
        input_file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.unlink(path)
        write(input_file, stdin)
        os.lseek(input_file, 0, os.SEEK_SET)
        return input_file

    def read(self, until: float, renew: bool) -> tuple[bytes, str]:
        """Its output until it ends or breaks a limit, and how it ended.

        The end is "exit N", "signal N", "time" or "flood". With `renew`, each line restarts the
        clock of its seconds; `until` is the last moment in any case.
        """
        data, ended = bytearray(), ""
        handle = os.pidfd_open(self.pid)
        deadline = min(until, time.monotonic() + self.seconds)
        while not ended:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.source, handle], [], [], max(0.0, left))
            if self.source in ready:
                chunk = os.read(self.source, 1 << 16)
                data += chunk
                if renew and b"\n" in chunk:
                    deadline = min(until, time.monotonic() + self.seconds)
                if len(data) > self.cap:
                    ended = "flood"
                elif not chunk:
                    select.select([handle], [], [], max(0.0, deadline - time.monotonic()))
                    break
            elif handle in ready:
                break
            elif left <= 0:
                ended = "time"
        if not ended:
            ended = "time" if time.monotonic() >= deadline else ""
        os.close(handle)
        return self._end(data, ended)

    def _end(self, data: bytearray, ended: str) -> tuple[bytes, str]:
        if not ended:
            _, status = os.waitpid(self.pid, 0)
            code = os.waitstatus_to_exitcode(status)
            ended = f"exit {code}" if code >= 0 else f"signal {-code}"
        self._sweep()
        os.set_blocking(self.source, False)
        try:
            while len(data) <= self.cap and (chunk := os.read(self.source, 1 << 16)):
                data += chunk
        except BlockingIOError:
            pass
        os.close(self.source)
        return bytes(data), "flood" if len(data) > self.cap else ended

    def _sweep(self) -> None:
        """Kills the processes that the program left: all of our uid if we are alone, else its
        session.
        """
        for _ in range(200):
            try:
                os.kill(-1, 9) if self.alone else os.killpg(self.pid, 9)
            except (ProcessLookupError, PermissionError):
                break
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                if not self.alone:
                    break
            time.sleep(0.001)
