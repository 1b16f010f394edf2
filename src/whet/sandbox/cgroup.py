"""Limits the memory and the number of a whole tree of processes by a cgroup, v1 or v2, where the
machine lets us make one.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PREFIX = "whet-"


class Group:
    """A cgroup with limits; falsy where none could be made.

    It is named after its owner's pid, so that the cgroups of dead owners can be removed. `join` runs
    in the child before it gives up its rights; `kill` ends all processes of the group.
    """

    def __init__(
        self, memory: int, processes: int, root: Path = ROOT, own: Path = Path("/proc/self/cgroup")
    ) -> None:
        self.folders: list[Path] = []
        v2 = (root / "cgroup.controllers").is_file()
        if v2:
            parent = _v2_parent(root, own)
            limits = {parent: {"memory.max": memory, "pids.max": processes}} if parent else {}
        else:
            v1 = {"memory": {"memory.limit_in_bytes": memory}, "pids": {"pids.max": processes}}
            limits = {root / name: files for name, files in v1.items() if (root / name).is_dir()}
        for parent, files in limits.items():
            _sweep(parent)
            folder = parent / f"{PREFIX}{os.getpid()}"
            with suppress(OSError):
                folder.mkdir(exist_ok=True)
                for name, limit in files.items():
                    (folder / name).write_text(str(limit))
                if v2:
                    with suppress(OSError):
                        (folder / "memory.swap.max").write_text("0")
                self.folders.append(folder)

    def __bool__(self) -> bool:
        return bool(self.folders)

    def join(self) -> None:
        for folder in self.folders:
            (folder / "cgroup.procs").write_text("0")

    def pids(self) -> set[int]:
        return {
            int(pid)
            for folder in self.folders
            for pid in (folder / "cgroup.procs").read_text().split()
        }

    def kill(self, seconds: float = 2.0) -> bool:
        """Kills the group's processes until none is left. False if some are after `seconds`."""
        deadline = time.monotonic() + seconds
        while left := self.pids():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, 9)
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    def close(self) -> None:
        for folder in self.folders:
            with suppress(OSError):
                folder.rmdir()
        self.folders.clear()


def _v2_parent(root: Path, own: Path) -> Path | None:
    """The folder in which a v2 group with both limits can be made; None where there is none."""
    with suppress(OSError):
        path = next((x[3:] for x in own.read_text().splitlines() if x.startswith("0::")), "/")
        parent = root / path.strip("/")
        control = parent / "cgroup.subtree_control"
        if {"memory", "pids"} - set(control.read_text().split()):
            control.write_text("+memory +pids")
        return parent
    return None


def _sweep(parent: Path) -> None:
    """Removes the groups of owners that no longer run."""
    for folder in parent.glob(f"{PREFIX}*"):
        owner = folder.name.removeprefix(PREFIX)
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            with suppress(OSError):
                folder.rmdir()
