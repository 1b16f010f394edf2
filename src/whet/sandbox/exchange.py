"""The host's side of the guest: sends an order and reads the replies.

The guest is the program made of the `guest_*` files; runners start it, each in its own isolation.
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
PROCESSES = 64
CURE = 'install it (apt-get install bubblewrap), or name sandbox = "docker" or the URL of a SandboxFusion endpoint'
_FILES = ("plain_data.py", "guest_child.py", "guest_tests.py", "guest_main.py")


@dataclass(frozen=True, slots=True)
class GuestRun:
    """What came back: one JSON line a reply. `began` is False where the guest never spoke: the
    sandbox's fault, in `message`.
    """

    replies: list[str]
    began: bool
    ended: str  # done, time, flood, died
    message: str = ""
    seconds: float = 0.0


@lru_cache(maxsize=1)
def source() -> str:
    """The guest's program in one text: its files in order, without their imports of one another and
    without `typing`'s 5 ms.
    """
    texts = [Path(__file__).with_name(name).read_text(encoding="utf-8") for name in _FILES]
    plain = re.sub(r"^from (?:whet\.|typing ).*\n", "", "\n".join(texts), flags=re.MULTILINE)
    return f"from __future__ import annotations\nAny = object\n{plain}"


def encode_order(order: Mapping[str, Any], memory_mb: int, alone: bool = True) -> bytes:
    """An order as the guest reads it, with its limits. Without `alone`, other processes may share
    its uid.
    """
    limits = {
        "AS": memory_mb << 20, "FSIZE": 16 << 20, "NOFILE": 64, "CORE": 0, "STACK": 64 << 20,
        "CPU": int(order["total"] + GRACE) + 2, **({"NPROC": PROCESSES} if alone else {}),
    }  # fmt: skip
    return json.dumps({**order, "alone": alone, "limits": limits}).encode()


def memory_file(data: bytes) -> int:
    """A descriptor from which a process can read the data; in memory, so that nobody need write
    while somebody reads.
    """
    descriptor = os.memfd_create("whet")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def parse_output(raw: bytes, ended: str, message: str, seconds: float) -> GuestRun:
    """The guest's output, read: only whole lines count."""
    first, *lines = raw.decode("utf-8", "replace").split("\n")
    began = first == '{"began": true}'
    done = '{"done": true}'
    replies = [line for line in lines[:-1] if line != done]
    return GuestRun(
        replies, began, "done" if done in lines and ended == "died" else ended, message, seconds
    )


def read_output(process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, str, str]:
    """(output, the last line of what bubblewrap complained of, how it ended), never more than the
    caps.
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
    said = complaints.decode("utf-8", "replace").strip().splitlines()
    return bytes(data), said[-1][:300] if said else "", "died"
