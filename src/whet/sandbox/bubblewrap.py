"""Runs an order of the guest under bubblewrap: a process that sees nothing of this machine.

It has a system-call filter, limits and a uid of its own; user, mount, process, network, ipc and
host-name namespaces; no capability. Of the disk it sees the interpreter and its libraries,
read-only, and one small temporary folder in memory. Its environment is empty; a cgroup limits
memory and processes where there is one. Root gives up its rights before bubblewrap starts, because
RLIMIT_NPROC and file permissions do not bind root.
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
FIRST_UID, UIDS = 61_000, 1_000  # of no user; each worker process takes one of its own
_CHILD_SUBREAPER = 36
_NEWNS, _BIND, _RECURSIVE, _PRIVATE = 0x20000, 0x1000, 0x4000, 0x40000


def compiled() -> bytes:
    """The guest's program as bytecode of this interpreter; compiling is a third of a guest's start."""
    with tempfile.TemporaryDirectory() as folder:
        text, code = Path(folder) / "guest.py", Path(folder) / "guest.pyc"
        text.write_text(source(), encoding="utf-8")
        py_compile.compile(str(text), str(code), "guest.py", doraise=True)
        return code.read_bytes()


class Bubblewrap:
    """The sandbox of this process: a uid, a cgroup and a command line, made once.

    Only for a process with one thread. Raises RewardError, with the cure, where bubblewrap is
    missing or too old or the machine is no Linux.
    """

    def __init__(self, memory_mb: int = 512) -> None:
        self.memory_mb = memory_mb
        bwrap = shutil.which("bwrap")
        if sys.platform != "linux" or bwrap is None:
            raise RewardError(f"code sandbox: bubblewrap is not here; {CURE}")
        version = subprocess.run(
            [bwrap, "--version"], capture_output=True, text=True, env={}
        ).stdout
        numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
        if numbers < NEEDED:
            raise RewardError(
                f"code sandbox: bubblewrap {'.'.join(map(str, numbers))} is older than 0.8; {CURE}"
            )
        self.bwrap, self.root = bwrap, os.geteuid() == 0
        self.group = Group((memory_mb + 128) << 20, PROCESSES + 8)
        self.uid, self._uid_lock = _free_uid() if self.root else (os.getuid(), None)
        ctypes.CDLL(None).prctl(_CHILD_SUBREAPER, 1)  # we wait for the processes bubblewrap leaves
        self.filter, self.guest = seccomp.program(platform.machine()), compiled()
        prefix = Path(sys.base_prefix).resolve()
        name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        self.python = prefix / "bin" / name
        self.visible = [
            self.python,
            prefix / "lib" / name,
            *sorted((prefix / "lib").glob("libpython*")),
        ]
        self.closed = _closed_folder(prefix) if self.root else None

    def command(self, filter_fd: int, guest_fd: int, info_fd: int) -> list[str]:
        libraries = [p for p in ("/usr/lib", "/usr/lib64") if Path(p).is_dir()]
        spaces = (
            "--unshare-user --unshare-all --disable-userns --die-with-parent --new-session "
            "--cap-drop ALL"
        )
        inputs = f"--hostname sandbox --seccomp {filter_fd} --info-fd {info_fd} --file {guest_fd} /guest.pyc"
        arguments = [self.bwrap, *spaces.split(), *inputs.split()]
        for path in libraries:
            arguments += ["--ro-bind", path, path]
        for link in ("/lib", "/lib64"):
            if os.path.islink(link):
                arguments += ["--symlink", os.readlink(link), link]
            elif os.path.isdir(link):
                arguments += ["--ro-bind", link, link]
        arguments += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
        for path in self.visible:
            if not any(path.is_relative_to(p) for p in libraries):
                arguments += ["--ro-bind", str(path), str(path)]
        mounts = f"--proc /proc --dev /dev --remount-ro /dev --size {32 << 20} --tmpfs /tmp"
        mounts += " --remount-ro /proc --remount-ro / --chdir /tmp"
        return [*arguments, *mounts.split(), "--", str(self.python), "-sSBP", "/guest.pyc"]

    def run(self, order: Mapping[str, Any]) -> GuestRun:
        """Runs an order to its end, or kills it `GRACE` seconds after its total.

        None of its processes is left afterwards.
        """
        start = time.monotonic()
        stdin, rules, guest = map(
            memory_file, (encode_order(order, self.memory_mb), self.filter, self.guest)
        )
        info_reader, info = os.pipe()
        try:
            process = subprocess.Popen(
                self.command(rules, guest, info),
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(rules, guest, info),
                env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
                cwd="/",
                preexec_fn=self.enter,
            )
        except (OSError, subprocess.SubprocessError) as error:
            os.close(info_reader)
            return GuestRun([], False, "died", f"bubblewrap does not start: {error}")
        finally:
            for descriptor in (stdin, rules, guest, info):
                os.close(descriptor)
        raw, errors, ended = read_output(process, start + order["total"] + GRACE)
        self.clean(process, info_reader)
        return parse_output(raw, ended, errors)

    def enter(self) -> None:
        """Runs in the child before bubblewrap: joins the cgroup, makes the interpreter reachable,
        takes the uid.
        """
        self.group.join()
        if not self.root:
            return
        if self.closed is not None:
            _cover(self.closed, self.visible)
        os.setgroups([])
        os.setresgid(self.uid, self.uid, self.uid)
        os.setresuid(self.uid, self.uid, self.uid)

    def clean(self, process: subprocess.Popen[bytes], info_reader: int) -> None:
        """Ends all processes of the order and waits for them.

        They die with the namespace's first process, which outlives bubblewrap itself.
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
        with open(info_reader) as file:
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
    """A uid that no other worker on this machine uses, and the socket that reserves it.

    The kernel frees the socket's name when the worker dies.
    """
    for uid in range(FIRST_UID, FIRST_UID + UIDS):
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lock.bind(f"\0whet-uid-{uid}")
            return uid, lock
        except OSError:
            lock.close()
    raise RewardError(f"code sandbox: {UIDS} workers run on this machine already")


def _closed_folder(prefix: Path) -> Path | None:
    """The first folder above the interpreter that other users may not enter; None without one."""
    for folder in [*reversed(prefix.parents), prefix]:
        if not folder.stat().st_mode & stat.S_IXOTH:
            return folder
    return None


def _cover(closed: Path, visible: Sequence[Path]) -> None:
    """Mounts, in a new mount namespace, an empty folder over the closed one; only the interpreter is
    in it.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def checked(result: int) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    checked(libc.unshare(_NEWNS))
    checked(libc.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None))
    handles = [os.open(path, os.O_PATH) for path in visible]
    checked(libc.mount(b"tmpfs", os.fsencode(closed), b"tmpfs", 0, b"mode=755,size=1m"))
    for path, handle in zip(visible, handles, strict=True):
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
