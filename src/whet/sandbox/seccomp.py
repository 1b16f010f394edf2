"""Assembles a system-call filter for bubblewrap's `--seccomp`: classic BPF, without a compiler or a
library.

It refuses with EPERM the calls that debug, mount, make namespaces or devices, load into the kernel,
set clocks or reach keys, those that have often been the kernel's weak spot (io_uring, bpf,
userfaultfd), and every socket but AF_UNIX's (vsock and netlink know no namespace).
"""

import errno
import struct

from whet.errors import RewardError

AF_UNIX = 1
NEW_NAMESPACE = 0x7E020000 | 0x80  # every CLONE_NEW… flag of clone(2)
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
# Offsets in struct seccomp_data; the low half of an argument comes first on both machines.
_NUMBER, _MACHINE, _FIRST = 0, 4, 16
_MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000

# name: number on x86_64, on aarch64; 0 where there is none
DENIED = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "kcmp": (312, 272), "pidfd_getfd": (438, 438),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "mount_setattr": (442, 442),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "iopl": (172, 0),
    "ioperm": (173, 0), "acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "adjtimex": (159, 171), "sethostname": (170, 161), "setdomainname": (171, 162),
    "syslog": (103, 116), "personality": (135, 92), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "lookup_dcookie": (212, 18), "vmsplice": (278, 75),
    "move_pages": (279, 239), "migrate_pages": (256, 238), "mbind": (237, 235),
    "set_mempolicy": (238, 237), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "fanotify_init": (300, 262), "modify_ldt": (154, 0), "uselib": (134, 0), "ustat": (136, 0),
    "sysfs": (139, 0), "vhangup": (153, 58), "mknod": (133, 0), "mknodat": (259, 33),
    "nfsservctl": (180, 42),
}  # fmt: skip
_CLONE3, _CLONE, _SOCKET = (435, 435), (56, 220), (41, 198)


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("<HBBI", code, yes, no, value)


def _refused(number: int, error: int = errno.EPERM) -> bytes:
    return _step(_EQUAL, number, 0, 1) + _step(_RETURN, _ERRNO | error)


def program(machine: str) -> bytes:
    """The filter for "x86_64" or "aarch64", 8 bytes an instruction.

    clone3 is answered with ENOSYS, as by an old kernel: its flags lie in memory, where a filter
    cannot look. Raises RewardError for another machine.
    """
    if machine not in _MACHINES:
        raise RewardError(
            f"code sandbox: no system-call filter for {machine} machines; name a remote sandbox instead"
        )
    column = list(_MACHINES).index(machine)
    steps = [_step(_LOAD, _MACHINE), _step(_EQUAL, _MACHINES[machine], 1, 0), _step(_RETURN, _KILL)]
    steps += [_step(_LOAD, _NUMBER)]
    if machine == "x86_64":
        steps += [_step(_AT_LEAST, _X32, 0, 1), _step(_RETURN, _KILL)]
    steps += [_refused(numbers[column]) for numbers in DENIED.values() if numbers[column]]
    steps += [_refused(_CLONE3[column], errno.ENOSYS)]
    refuse, allow = _step(_RETURN, _ERRNO | errno.EPERM), _step(_RETURN, _ALLOW)
    steps += [_step(_EQUAL, _SOCKET[column], 0, 4), _step(_LOAD, _FIRST)]
    steps += [_step(_EQUAL, AF_UNIX, 1, 0), refuse, allow]
    steps += [_step(_EQUAL, _CLONE[column], 0, 4), _step(_LOAD, _FIRST)]
    steps += [_step(_ANY_BIT, NEW_NAMESPACE, 0, 1), refuse, allow]
    return b"".join([*steps, allow])
