"""Programs that try to get out of the sandbox, to see in from it, or to take the machine with them.
None may.

Each returns whether it got out. The harmless ones are also run outside, where they must get out: an
attack that cannot work anywhere would prove nothing. What would harm a machine is only tried
inside, and never against its /proc/sys.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from whet.errors import RewardError
from whet.sandbox.bubblewrap import Bubblewrap
from whet.sandbox.exchange import GuestRun

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
SECRET = "whet-canary-5d1f"
HARNESS = """
import ctypes, os, socket, sys, errno, signal
libc = ctypes.CDLL(None, use_errno=True)
def call(*args):
    ctypes.set_errno(0)
    if libc.syscall(*args) >= 0: return True
    if ctypes.get_errno() in (errno.EPERM, errno.ENOSYS, errno.EACCES): return False
    return ctypes.get_errno() not in REFUSED
REFUSED = ()
def memory(pid):
    found = b""
    for line in open(f"/proc/{pid}/maps"):
        start, end = (int(x, 16) for x in line.split()[0].split("-"))
        if line.split()[1].startswith("rw") and end - start < 1 << 24:
            with open(f"/proc/{pid}/mem", "rb", 0) as file:
                file.seek(start)
                found += file.read(end - start)
    return found
def attempt():
{body}
try:
    escaped = attempt()
except (OSError, MemoryError, RuntimeError, ValueError) as error:
    print("refused", type(error).__name__, error)
    escaped = False
print("ESCAPED" if escaped else "HELD")
"""

# name: (body, whether it gets out where nothing isolates)
SEEING = {
    "reads a file of the host": ("return open('{canary}').read() == '{secret}'", True),
    "follows a symlink to it": ("os.symlink('{canary}', '{folder}/link'); return "
    "open('{folder}/link').read() == '{secret}'", True),
    "reads it through /proc/self/root": ("return open('/proc/self/root{canary}').read() == '{secret}'", True),
    "reads it through /proc/1/root": ("return open('/proc/1/root{canary}').read() == '{secret}'", False),
    "reads it through its own working folder": ("return "
    "open('/proc/self/cwd/../../../../..{canary}').read() == '{secret}'", True),
    "reads the users": ("return 'root' in open('/etc/passwd').read()", True),
    "reads the passwords": ("return bool(open('/etc/shadow').read())", False),
    "lists the home of root": ("return bool(set(os.listdir('/root')) - {{'.pyenv', '.local'}})", False),
    "sees this repository": ("return os.path.exists('{repository}')", True),
    "sees homes, logs, mounts, sys": ("return any(map(os.path.exists, ('/home', '/var', '/mnt', "
    "'/sys', '/run', '/srv', '/opt')))", True),
    "finds the old root": ("return any(map(os.path.exists, ('/oldroot', '/newroot', '/.pivot')))", False),
    "finds a shell": ("return any(map(os.path.exists, ('/bin/sh', '/usr/bin/env', '/bin/true')))", True),
    "reads the environment": ("return '{secret}' in str(dict(os.environ))", True),
    "reads the parent's environment": ("return '{secret}' in open('/proc/%d/environ' % "
    "os.getppid()).read()", False),
    "reads every environment": (
        "found = 0\n    for pid in filter(str.isdigit, os.listdir('/proc')):\n        try: found += "
        "'{secret}' in open('/proc/%s/environ' % pid).read()\n"
        "        except OSError: pass\n    return found", True),
    "sees the host's processes": ("return len(list(filter(str.isdigit, os.listdir('/proc')))) > 4", True),
    "signals a process of the host": ("os.kill({canary_pid}, 0); return True", True),
    "finds the secret in the memory of others": ("return any(b'{terces}'[::-1] in memory(pid) for "
    "pid in (1, os.getppid()))", False),
    "reads the kernel's memory or log": ("return any(os.access(p, os.R_OK) for p in ('/proc/kcore', "
    "'/proc/kmsg', '/dev/kmsg', '/dev/mem'))", False),
    "sees disks": ("return any(n.startswith(('sd', 'vd', 'nvme', 'loop', 'dm')) for n in "
    "os.listdir('/dev'))", False),
    "connects to a server of the host": ("socket.create_connection(('127.0.0.1', {port}), 1); "
    "return True", True),
    "connects to the host's abstract socket": ("s = socket.socket(socket.AF_UNIX); "
    "s.connect('\\0whet-canary-{port}'); return True", True),
    "opens an internet socket": ("return bool(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))", True),
    "opens an IPv6 socket": ("return bool(socket.socket(socket.AF_INET6))", False),
    "opens a raw socket": ("return bool(socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))", False),
    "opens a netlink socket": ("return bool(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))", True),
    "opens a packet socket": ("return bool(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))", False),
    "opens a vsock": ("return bool(socket.socket(40, socket.SOCK_STREAM))", False),
    "resolves a name": ("return bool(socket.getaddrinfo('example.com', 80))", False),
    "learns the host's name": ("return os.uname().nodename == '{host}'", True),
    "opens the terminal": ("return bool(os.open('/dev/tty', os.O_RDWR))", False),
}  # fmt: skip
WRITING = {
    "writes to the root": "open('/x', 'w'); return True",
    "writes to a library": "open('/usr/lib/x', 'w'); return True",
    "writes to the interpreter's library": "open(os.__file__, 'a'); return True",
    "writes to the interpreter": "open(sys.executable, 'ab'); return True",
    "writes to the device folder": "open('/dev/x', 'w'); return True",
    "writes to shared memory": "open('/dev/shm/x', 'w'); return True",
    "has a writable sysctl": "return [p for p, _, names in os.walk('/proc/sys') for n in names if "
    "os.access(p + '/' + n, os.W_OK)]",
    "may trigger sysrq": "return os.access('/proc/sysrq-trigger', os.W_OK)",
    "protects itself from the memory killer": "return os.write(os.open('/proc/self/oom_score_adj', "
    "os.O_WRONLY), b'-1000')",
    "writes to its parent's memory": "return os.open(f'/proc/{os.getppid()}/mem', os.O_RDWR)",
    "maps another uid": "return os.write(os.open('/proc/self/uid_map', os.O_WRONLY), b'0 0 1')",
    "makes a device": "os.mknod('/tmp/disk', 0o60600, os.makedev(8, 0)); return True",
    "gives a file to root": "open('/tmp/x', 'w'); os.chown('/tmp/x', 0, 0); return True",
    "becomes root": "os.setuid(0); return True",
    "becomes root's group": "os.setgid(0); return True",
    "joins groups": "os.setgroups([0]); return True",
    "is root": "return 0 in (os.getuid(), os.geteuid(), os.getgid())",
    "has capabilities": "return any(l.split()[1].strip('0') for l in open('/proc/self/status') if "
    "l.startswith('Cap'))",
    "may gain privileges": "return 'NoNewPrivs:\\t1' not in open('/proc/self/status').read()",
    "has no filter": "return 'Seccomp:\\t2' not in open('/proc/self/status').read()",
    "raises its limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1)); return True",
    "raises its priority": "os.setpriority(os.PRIO_PROCESS, 0, -10); return True",
    "runs in real time": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50)); return True",
}  # fmt: skip
# with arguments that do nothing where they are allowed: then the answer is neither EPERM nor ENOSYS
SYSCALLS = {
    "ptrace": "101, 0, 0, 0, 0", "ptrace of process 1": "101, 16, 1, 0, 0",
    "process_vm_readv": "310, 1, 0, 0, 0, 0, 0",
    "process_vm_writev": "311, 1, 0, 0, 0, 0, 0", "pidfd_getfd": "438, -1, 0, 0",
    "unshare a user namespace": "272, 0x10000000",
    "unshare a mount namespace": "272, 0x20000", "clone a user namespace": "56, 0x10000011, 0, 0, "
    "0, 0", "clone3": "435, 0, 0",
    "setns": "308, -1, 0", "mount": "165, 0, 0, 0, 0, 0", "umount2": "166, 0, 0",
    "pivot_root": "155, 0, 0", "chroot": "161, b'/'",
    "open_tree": "428, -1, 0, 1", "fsopen": "430, 0, 0", "mount_setattr": "442, -1, 0, 0, 0, 0",
    "bpf": "321, 0, 0, 0",
    "perf_event_open": "298, 0, 0, 0, 0, 0", "userfaultfd": "323, 1",
    "io_uring_setup": "425, 1, 0", "keyctl": "250, 0, -3, 0",
    "add_key": "248, 0, 0, 0, 0, 0", "kexec_load": "246, 0, 0, 0, -1",
    "init_module": "175, 0, 0, 0", "reboot": "169, 0, 0, 0, 0",
    "swapon": "167, 0, 0", "settimeofday": "164, 0, 0", "sethostname": "170, b'x', 1",
    "personality": "135, 0xffffffff",
    "open_by_handle_at": "304, -1, 0, 0", "memfd_create": "319, b'x', 0",
    "shmget": "29, 0, 4096, 0o1600", "iopl": "172, 0",
    "syslog": "103, 3, 0, 0", "quotactl": "179, 0, 0, 0, 0", "acct": "163, 0", "modify_ldt": "154, 0, 0, 0",
}  # fmt: skip
# name: (program, what its end must be)
HARMING = {
    "fork bomb": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", {"time",
    "signal 9"}),
    "fork bomb that ends": ("import os, time\nn = 0\ntry:\n    while n < 500:\n        if os.fork() "
    "== 0: time.sleep(60)\n        n += 1\nexcept OSError: pass\nassert n < 80", {"exit 0"}),
    "threads without end": ("import threading, time\nwhile True: "
    "threading.Thread(target=time.sleep, args=(60,)).start()", {"exit 1", "time", "signal 9"}),
    "memory": ("x = bytearray(4 << 30)", {"exit 1"}),
    "memory bit by bit": ("x = []\nwhile True: x.append(bytearray(1 << 20))", {"exit 1", "signal 9", "time"}),
    "memory of many processes": ("import os, time\nfor _ in range(12):\n    if os.fork() == 0:\n    "
    "    x = bytearray(b'x') * (200 << 20)\n        time.sleep(60)\ntime.sleep(60)", {"time",
    "signal 9", "died"}),
    "full temporary folder": ("import os\nn = 0\ntry:\n    while n < 200:\n        "
    "open(f'/tmp/{n}', 'wb').write(bytes(1 << 20)); n += 1\nexcept OSError: pass\nassert n <= 32, "
    "n", {"exit 0"}),
    "one large file": ("import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\ntry:\n    "
    "open('/tmp/x', 'wb').truncate(1 << 30); print('large')\nexcept OSError: pass", {"exit 0"}),
    "descriptors": ("import os\nn = 0\ntry:\n    while n < 1000: os.dup(0); n += 1\nexcept OSError: "
    "pass\nassert n < 64", {"exit 0"}),
    "flood of output": ("while True: print('x' * 100000)", {"flood"}),
    "flood without a newline": ("import os\nwhile True: os.write(1, b'x' * 65536)", {"flood"}),
    "flood of errors": ("import sys\nfor _ in range(2000): sys.stderr.write('x' * 10000)", {"exit 0"}),
    "endless loop": ("while True: pass", {"time"}),
    "endless sleep": ("import time\ntime.sleep(1000)", {"time"}),
    "sleep with every signal ignored": ("import signal, time\nfor n in range(1, 65):\n    try: "
    "signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\ntime.sleep(1000)", {"time"}),
    "stops itself": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", {"time"}),
    "stops its parent": ("import os, signal, time\nos.kill(os.getppid(), "
    "signal.SIGSTOP)\ntime.sleep(1000)", {"time"}),
    "kills its parent": ("import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(1000)", {"died"}),
    "kills everything": ("import os\nos.kill(-1, 9)\nprint('alone')", {"died"}),
    "leaves a daemon": ("import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == "
    "0: time.sleep(1000)\n    os._exit(0)", {"exit 0"}),
    "leaves a daemon that holds the output": ("import os, time\nif os.fork() == 0: "
    "time.sleep(1000)\nos._exit(0)", {"exit 0"}),
    "recursion in C": ("import sys\nsys.setrecursionlimit(10**9)\ndef f(): return [f()]\nf()",
    {"signal 11", "exit 1", "time", "signal 9"}),
    "a regular expression without end": ("import re\nre.match(r'(a+)+$', 'a' * 40 + 'b')", {"time"}),
    "a number without end": ("x = 9 ** 9 ** 9", {"time", "exit 1", "signal 9"}),
    "removes its folder": ("import shutil, os\nshutil.rmtree('/tmp', "
    "ignore_errors=True)\nprint(os.listdir('/tmp'))", {"exit 0"}),
    "an x32 system call": ("import ctypes\nctypes.CDLL(None).syscall(0x40000000 + 39)", {"signal 31"}),
}  # fmt: skip


@dataclass
class Host:
    """What the programs must not reach, and the sandbox."""

    isolation: Bubblewrap
    facts: dict[str, object]
    pid: int

    def run(self, program: str, seconds: float = 3.0) -> GuestRun:
        limits = {"seconds": seconds, "total": seconds, "bytes": 1 << 20, "stop": False}
        return self.isolation.run({"mode": "stdio", "program": program, "inputs": [""], **limits})

    def leftovers(self) -> list[str]:
        """Command lines of processes that run under the sandbox's uid, but for the canary."""
        breaches: list[str] = []
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                text = status.read_text()
                name = status.with_name("cmdline").read_text()
            except OSError:
                continue
            if f"\nUid:\t{self.isolation.uid}\t" in text and f"\nPid:\t{self.pid}\n" not in text:
                breaches.append(name)
        return breaches if self.isolation.root else []


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    try:
        isolation = Bubblewrap(256)
    except RewardError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("host")
    (folder / "canary").write_text(SECRET)
    os.environ["WHET_CANARY"] = SECRET
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    local = socket.socket(socket.AF_UNIX)
    local.bind(f"\0whet-canary-{port}")
    local.listen()
    user = isolation.uid if isolation.root else None
    canary = subprocess.Popen(["sleep", "600"], user=user)
    facts: dict[str, object] = {
        "canary": folder / "canary", "folder": folder, "secret": SECRET, "terces": SECRET[::-1],
        "canary_pid": canary.pid, "port": port,
        "repository": Path(__file__).parents[1], "host": os.uname().nodename,
    }  # fmt: skip
    yield Host(isolation, facts, canary.pid)
    assert canary.poll() is None, "a program killed a process of the host"
    canary.kill()
    canary.wait()
    server.close()
    local.close()
    del os.environ["WHET_CANARY"]
    isolation.group.close()


def attack(body: str, facts: dict[str, object] | None = None) -> str:
    filled = body.format(**facts) if facts is not None else body
    return HARNESS.replace(
        "{body}", textwrap.indent(filled, "    ") if "\n    " not in filled else "    " + filled
    )


def verdict(ran: GuestRun) -> str:
    """The verdict that an attack printed; it must have run to its end."""
    assert ran.began and ran.ended == "done", ran
    reply = json.loads(ran.replies[0])
    assert reply["ended"] == "exit 0", reply
    return reply["output"].strip().splitlines()[-1]


@pytest.mark.parametrize("name", SEEING)
def test_the_host_is_out_of_sight(host: Host, name: str):
    body, works = SEEING[name]
    program = attack(body, host.facts)
    assert verdict(host.run(program)) == "HELD"
    if works:
        outside = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        (Path(str(host.facts["folder"])) / "link").unlink(missing_ok=True)
        assert outside.stdout.strip().endswith("ESCAPED"), f"the attack works nowhere: {outside}"


@pytest.mark.parametrize("name", WRITING)
def test_nothing_can_be_written_or_gained(host: Host, name: str):
    assert verdict(host.run(attack(WRITING[name]))) == "HELD"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86_64")
@pytest.mark.parametrize("name", SYSCALLS)
def test_the_filter_refuses(host: Host, name: str):
    assert verdict(host.run(attack(f"return call({SYSCALLS[name]})"))) == "HELD"


@pytest.mark.parametrize("name", HARMING)
def test_the_machine_survives(host: Host, name: str):
    program, ends = HARMING[name]
    if "x32" in name and os.uname().machine != "x86_64":
        pytest.skip("x32 is a mode of x86_64")
    start = time.monotonic()
    ran = host.run(program, 0.6)
    assert time.monotonic() - start < 0.6 + 3.0 + 2.0 + 2.0
    reply = json.loads(ran.replies[0]) if ran.replies else {"ended": ran.ended}
    assert ran.began and reply["ended"] in ends, (ran.ended, reply)
    assert not host.leftovers() and not host.isolation.group.pids()
    assert "large" not in reply.get("output", "") and "alone" not in reply.get("output", "")


def test_enough_is_tried():
    assert len(SEEING) + len(WRITING) + len(SYSCALLS) + len(HARMING) >= 60
