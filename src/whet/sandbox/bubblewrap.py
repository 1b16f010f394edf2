"""Runs one order of `guest.py` in a process that sees nothing of this machine: bubblewrap, a
filter, limits, a uid of its own.

User, mount, process, network, ipc and host-name namespaces; no capability; the interpreter and its
libraries read-only and nothing else of the disk; one small temporary folder in memory; an empty
environment; a memory and process cgroup where there is one. As root the rights are given up before
bubblewrap starts, for RLIMIT_NPROC and file permissions do not bind root.
"""

import ctypes
import os
import platform
import py_compile
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from whet.errors import RewardError
from whet.sandbox import seccomp
from whet.sandbox.cgroup import Group
from whet.sandbox.exchange import (
    CURE,
    GRACE,
    PROCESSES,
    GuestRun,
    encode_order,
    memory_file,
    parse_output,
    read_output,
    source,
)

NEEDED = (0, 8)  # bubblewrap: --size and --disable-userns
FIRST_UID, UIDS = 61_000, 1_000  # of no user; each worker process takes one that no other holds
_CHILD_SUBREAPER = 36
_NEWNS, _BIND, _RECURSIVE, _PRIVATE = 0x20000, 0x1000, 0x4000, 0x40000


def compiled() -> bytes:
    """`source`, compiled by this interpreter for this interpreter: a third of what starting the
    guest costs.
    """
    with tempfile.TemporaryDirectory() as folder:
        text, code = Path(folder) / "guest.py", Path(folder) / "guest.pyc"
        text.write_text(source(), encoding="utf-8")
        py_compile.compile(str(text), str(code), "guest.py", doraise=True)
        return code.read_bytes()


class Bubblewrap:
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

    def run(self, order: Mapping[str, Any]) -> GuestRun:
        """Run one order to its end, or kill it `GRACE` seconds after the total that it names.
        Nothing of it is left after.
        """
        start = time.monotonic()
        given, rules, guest = map(
            memory_file, (encode_order(order, self.memory_mb), self.filter, self.guest)
        )
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
            return GuestRun([], False, "died", f"bubblewrap does not start: {error}")
        finally:
            for descriptor in (given, rules, guest, info):
                os.close(descriptor)
        raw, errors, ended = read_output(process, start + order["total"] + GRACE)
        self.clean(process, told_by)
        return parse_output(raw, ended, errors, time.monotonic() - start)

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
