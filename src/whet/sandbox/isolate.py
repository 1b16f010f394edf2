"""Runs one order of `guest.py` in a process that sees nothing of this machine: bubblewrap, a
filter, limits, a uid of its own.

User, mount, process, network, ipc and host-name namespaces; no capability; the interpreter and its
libraries read-only and nothing else of the disk; one small temporary folder in memory; an empty
environment; a memory and process cgroup where there is one. As root the rights are given up before
bubblewrap starts, for RLIMIT_NPROC and file permissions do not bind root.
"""

import ctypes
import json
import os
import platform
import py_compile
import re
import select
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from whet.errors import RewardError
from whet.sandbox import seccomp
from whet.sandbox.cgroup import Group

NEEDED = (0, 8)  # bubblewrap: --size and --disable-userns
FIRST_UID, UIDS = 61_000, 1_000  # of no user; each worker process takes one that no other holds
GRACE = 3.0  # seconds beyond an order's own for starting and cleaning up
MAX_REPLY = 3 << 20  # bytes of all replies to one order
PROCESSES = 64
CURE = 'install it (apt-get install bubblewrap), or name sandbox = "docker" or the URL of a SandboxFusion endpoint'
_FILES = ("plain.py", "guest_child.py", "guest_tests.py", "guest.py")
_CHILD_SUBREAPER = 36
_NEWNS, _BIND, _RECURSIVE, _PRIVATE = 0x20000, 0x1000, 0x4000, 0x40000


@dataclass(frozen=True, slots=True)
class Ran:
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


def compiled() -> bytes:
    """`source`, compiled by this interpreter for this interpreter: a third of what starting the
    guest costs.
    """
    with tempfile.TemporaryDirectory() as folder:
        text, code = Path(folder) / "guest.py", Path(folder) / "guest.pyc"
        text.write_text(source(), encoding="utf-8")
        py_compile.compile(str(text), str(code), "guest.py", doraise=True)
        return code.read_bytes()


def ordered(order: Mapping[str, Any], memory_mb: int, alone: bool = True) -> bytes:
    """An order as the guest reads it, with its limits. Without `alone`, other processes may share
    its uid.
    """
    limits = {
        "AS": memory_mb << 20, "FSIZE": 16 << 20, "NOFILE": 64, "CORE": 0, "STACK": 64 << 20,
        "CPU": int(order["total"] + GRACE) + 2, **({"NPROC": PROCESSES} if alone else {}),
    }  # fmt: skip
    return json.dumps({**order, "alone": alone, "limits": limits}).encode()


def held(data: bytes) -> int:
    """A descriptor from which a process can read the data; in memory, so that nobody need write
    while somebody reads.
    """
    descriptor = os.memfd_create("whet")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def told(raw: bytes, ended: str, message: str, seconds: float) -> Ran:
    """The guest's output, read: only whole lines count."""
    first, *lines = raw.decode("utf-8", "replace").split("\n")
    began = first == '{"began": true}'
    done = '{"done": true}'
    replies = [line for line in lines[:-1] if line != done]
    return Ran(
        replies, began, "done" if done in lines and ended == "died" else ended, message, seconds
    )


class Isolation:
    """This process's own sandbox: a uid, a cgroup and a command line, made once. Only for a process
    with one thread.

    Raises RewardError, with the cure, where bubblewrap is missing or too old or the machine is no
    Linux.
    """

    def __init__(self, memory_mb: int = 512) -> None:
        self.memory_mb = memory_mb
        found = shutil.which("bwrap")
        if sys.platform != "linux" or found is None:
            raise RewardError(f"code sandbox: bubblewrap is not here; {CURE}")
        version = subprocess.run(
            [found, "--version"], capture_output=True, text=True, env={}
        ).stdout
        numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
        if numbers < NEEDED:
            raise RewardError(
                f"code sandbox: bubblewrap {'.'.join(map(str, numbers))} is older than 0.8; {CURE}"
            )
        self.bwrap, self.root = found, os.geteuid() == 0
        self.group = Group((memory_mb + 128) << 20, PROCESSES + 8)
        self.uid, self._held = _free_uid() if self.root else (os.getuid(), None)
        ctypes.CDLL(None).prctl(_CHILD_SUBREAPER, 1)  # what bubblewrap leaves is ours to wait for
        self.filter, self.guest = seccomp.program(platform.machine()), compiled()
        prefix = Path(sys.base_prefix).resolve()
        name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        self.python = prefix / "bin" / name
        self.shown = [
            self.python,
            prefix / "lib" / name,
            *sorted((prefix / "lib").glob("libpython*")),
        ]
        self.closed = _closed(prefix) if self.root else None

    def command(self, filter_fd: int, guest_fd: int, info_fd: int) -> list[str]:
        library = [p for p in ("/usr/lib", "/usr/lib64") if Path(p).is_dir()]
        spaces = "--unshare-user --unshare-all --disable-userns --die-with-parent --new-session --cap-drop ALL"
        given = f"--hostname sandbox --seccomp {filter_fd} --info-fd {info_fd} --file {guest_fd} /guest.pyc"
        arguments = [self.bwrap, *spaces.split(), *given.split()]
        for path in library:
            arguments += ["--ro-bind", path, path]
        for link in ("/lib", "/lib64"):
            if os.path.islink(link):
                arguments += ["--symlink", os.readlink(link), link]
            elif os.path.isdir(link):
                arguments += ["--ro-bind", link, link]
        arguments += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
        for path in self.shown:
            if not any(path.is_relative_to(p) for p in library):
                arguments += ["--ro-bind", str(path), str(path)]
        places = f"--proc /proc --dev /dev --remount-ro /dev --size {32 << 20} --tmpfs /tmp"
        arguments += [
            *places.split(),
            *["--remount-ro", "/proc", "--remount-ro", "/", "--chdir", "/tmp"],
        ]
        return [*arguments, "--", str(self.python), "-sSBP", "/guest.pyc"]

    def run(self, order: Mapping[str, Any]) -> Ran:
        """Run one order to its end, or kill it `GRACE` seconds after the total that it names.
        Nothing of it is left after.
        """
        start = time.monotonic()
        given, rules, guest = map(held, (ordered(order, self.memory_mb), self.filter, self.guest))
        told_by, info = os.pipe()
        try:
            process = subprocess.Popen(
                self.command(rules, guest, info),
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(rules, guest, info),
                env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
                cwd="/",
                preexec_fn=self.enter,
            )
        except (OSError, subprocess.SubprocessError) as error:
            os.close(told_by)
            return Ran([], False, "died", f"bubblewrap does not start: {error}")
        finally:
            for descriptor in (given, rules, guest, info):
                os.close(descriptor)
        raw, errors, ended = read(process, start + order["total"] + GRACE)
        self.clean(process, told_by)
        return told(raw, ended, errors, time.monotonic() - start)

    def enter(self) -> None:
        """In the child, before bubblewrap: join the group, make the interpreter reachable, become
        nobody.
        """
        self.group.join()
        if not self.root:
            return
        if self.closed is not None:
            _uncover(self.closed, self.shown)
        os.setgroups([])
        os.setresgid(self.uid, self.uid, self.uid)
        os.setresuid(self.uid, self.uid, self.uid)

    def clean(self, process: subprocess.Popen[bytes], told_by: int) -> None:
        """End all of its processes and wait for them: they die with the namespace's first, which
        outlives bubblewrap itself.
        """
        with suppress(OSError, ValueError):
            for child in (
                Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            ):
                os.kill(int(child), 9)
        try:
            process.wait(2.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with open(told_by) as file:
            first = re.search(r'"child-pid": (\d+)', file.read(4096))
        with suppress(ChildProcessError):
            if first and os.waitpid(int(first[1]), os.WNOHANG)[0] == 0:
                os.kill(int(first[1]), 9)
                os.waitpid(int(first[1]), 0)
        self.group.kill()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def read(process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, str, str]:
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


def _free_uid() -> tuple[int, socket.socket]:
    """A uid that no other worker on this machine uses: whoever holds the socket of its name holds
    it, until it dies.
    """
    for uid in range(FIRST_UID, FIRST_UID + UIDS):
        held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            held.bind(f"\0whet-uid-{uid}")
            return uid, held
        except OSError:
            held.close()
    raise RewardError(f"code sandbox: {UIDS} workers run on this machine already")


def _closed(prefix: Path) -> Path | None:
    """The first folder on the way to the interpreter that other users may not enter; None where all
    may.
    """
    for folder in [*reversed(prefix.parents), prefix]:
        if not folder.stat().st_mode & stat.S_IXOTH:
            return folder
    return None


def _uncover(closed: Path, shown: Sequence[Path]) -> None:
    """In a mount namespace of its own: an empty folder over the closed one, holding the interpreter
    and nothing else.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def checked(result: int) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    checked(libc.unshare(_NEWNS))
    checked(libc.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None))
    handles = [os.open(path, os.O_PATH) for path in shown]
    checked(libc.mount(b"tmpfs", os.fsencode(closed), b"tmpfs", 0, b"mode=755,size=1m"))
    for path, handle in zip(shown, handles, strict=True):
        folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        (path if folder else path.parent).mkdir(parents=True, exist_ok=True)
        if not folder:
            path.touch()
        checked(
            libc.mount(
                f"/proc/self/fd/{handle}".encode(),
                os.fsencode(path),
                None,
                _BIND | _RECURSIVE,
                None,
            )
        )
