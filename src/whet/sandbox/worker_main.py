"""The program of a worker of `pool.Pool`: calls a function on item after item, until its input ends
or its parent dies.

It is started by path, not as a module of the package, because its first line of input says where to
import from. Input and output are JSON lines on private descriptors; the function's prints are lost.
"""

import ctypes
import importlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Asks the kernel for SIGKILL when the parent dies, even if the function holds the interpreter's
    lock.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def private_channel() -> tuple[BinaryIO, int]:
    """Moves the pipes to the parent to new descriptors; 0, 1 and 2 then lead to /dev/null."""
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    return open(requests, "rb"), replies


def address_space() -> int:
    """Bytes of address space in use; 0 where the system does not say."""
    if sys.platform != "linux":
        return 0
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def limit_memory(extra: int) -> int:
    """Allows `extra` bytes beyond the size after the imports. Returns the size at which the worker
    is to be replaced.
    """
    base = address_space()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not base:
        return sys.maxsize
    resource.setrlimit(resource.RLIMIT_AS, (base + extra, base + extra))
    return base + extra // 2


def imported(name: str, path: list[str]) -> Callable[[Any], Any]:
    sys.path[:] = path
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def describe(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def answer(function: Callable[[Any], Any], item: Any, max_bytes: int) -> tuple[bytes, bool]:
    """The reply to an item as JSON fields, and whether it ran out of memory.

    The function is foreign, so any exception is a reply.
    """
    try:
        value = function(item)
    except MemoryError:
        return b'"error": "MemoryError: the item needs more memory than memory_mb allows"', True
    # SystemExit and KeyboardInterrupt too: the item fails, not the worker.
    except BaseException as error:
        return b'"error": ' + json.dumps(describe(error)).encode(), False
    try:
        text = json.dumps(value).encode()
    except MemoryError:
        return b'"error": "MemoryError: the result needs more memory than memory_mb allows"', True
    except (TypeError, ValueError, RecursionError) as error:
        return b'"error": ' + json.dumps(
            f"the result is not JSON ({describe(error)})"
        ).encode(), False
    if len(text) > max_bytes:
        return f'"error": "the result has {len(text)} bytes, more than {max_bytes}"'.encode(), False
    return b'"value": ' + text, False


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    requests, replies = private_channel()

    def send(line: bytes) -> None:
        view = memoryview(line + b"\n")
        while view:
            view = view[os.write(replies, view) :]

    setup = json.loads(requests.readline())
    try:
        function = imported(setup["function"], setup["path"])
    except BaseException as error:
        send(json.dumps({"failed": describe(error)}).encode())
        return
    old = limit_memory(setup["memory"])
    send(b'{"ready": true}')
    for line in requests:
        number, item = json.loads(line)
        start = time.perf_counter()
        reply, exhausted = answer(function, item, setup["max_bytes"])
        seconds = time.perf_counter() - start
        last = exhausted or address_space() > old
        send(
            b'{"item": %d, "seconds": %.6f, "last": %s, %s}'
            % (number, seconds, b"true" if last else b"false", reply)
        )
        if last:
            return


if __name__ == "__main__":
    main()
