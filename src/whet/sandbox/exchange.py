"""The host's side of the exchange with the guest: builds its program, encodes an order, reads its
replies.

The guest is the program inside the isolation, made of the `guest_*` files. The runners start it.
"""

import json
import os
import re
import select
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

GRACE = 3.0  # seconds beyond an order's own for starting and cleaning up
MAX_REPLY = 3 << 20  # bytes of all replies to one order
PROCESSES = 64  # that a program may have at once
CURE = (
    'install it (apt-get install bubblewrap), or name sandbox = "docker" or the URL of a '
    "SandboxFusion endpoint"
)
_FILES = ("plain_data.py", "guest_child.py", "guest_tests.py", "guest_main.py")


@dataclass(frozen=True, slots=True)
class GuestRun:
    """The replies of a guest to one order, and how it ended.

    `began` is False where the guest wrote nothing: the sandbox failed, and `message` says why.
    """

    replies: list[str]  # JSON of each
    began: bool
    ended: str  # done, time, flood, died
    message: str = ""


@lru_cache(maxsize=1)
def source() -> str:
    """The guest's program as one text: its files in order, without imports of whet and of `typing`.

    The files need nothing of `typing` at run time, and importing it takes 5 ms.
    """
    texts = [Path(__file__).with_name(name).read_text(encoding="utf-8") for name in _FILES]
    program = re.sub(r"^from (?:whet\.|typing ).*\n", "", "\n".join(texts), flags=re.MULTILINE)
    return f"from __future__ import annotations\nAny = object\n{program}"


def encode_order(order: Mapping[str, Any], memory_mb: int, alone: bool = True) -> bytes:
    """An order with its limits, as JSON. `alone`: no other process shares the guest's uid."""
    limits = {
        "AS": memory_mb << 20, "FSIZE": 16 << 20, "NOFILE": 64, "CORE": 0, "STACK": 64 << 20,
        "CPU": int(order["total"] + GRACE) + 2, **({"NPROC": PROCESSES} if alone else {}),
    }  # fmt: skip
    return json.dumps({**order, "alone": alone, "limits": limits}).encode()


def memory_file(data: bytes) -> int:
    """A descriptor of a file in memory that holds the data, at its start.

    A child reads a file at its own pace; a pipe would need a writer meanwhile.
    """
    descriptor = os.memfd_create("whet")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def parse_output(raw: bytes, ended: str, message: str) -> GuestRun:
    """The guest's output as replies; an unfinished last line does not count."""
    first, *lines = raw.decode("utf-8", "replace").split("\n")
    began = first == '{"began": true}'
    done = '{"done": true}'
    replies = [line for line in lines[:-1] if line != done]
    if done in lines and ended == "died":
        ended = "done"
    return GuestRun(replies, began, ended, message)


def read_output(process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, str, str]:
    """(standard output, last line of standard error, how it ended), cut off at the caps.

    `ended` is "died" where the output ended, "time" past the deadline, "flood" past MAX_REPLY.
    """
    assert process.stdout is not None and process.stderr is not None
    out, errors = process.stdout.fileno(), process.stderr.fileno()
    data, complaints, open_pipes = bytearray(), bytearray(), {out, errors}
    while out in open_pipes:
        left = deadline - time.monotonic()
        if left <= 0:
            return bytes(data), "", "time"
        for descriptor in select.select(list(open_pipes), [], [], left)[0]:
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                open_pipes.discard(descriptor)
            elif descriptor == out:
                data += chunk
            elif len(complaints) < 4096:
                complaints += chunk
        if len(data) > MAX_REPLY:
            return bytes(data[:MAX_REPLY]), "", "flood"
    lines = complaints.decode("utf-8", "replace").strip().splitlines()
    return bytes(data), lines[-1][:300] if lines else "", "died"
