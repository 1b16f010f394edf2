"""A memory and process limit for a whole tree of processes, where the machine lets us make one:
cgroup v1, v2, or neither.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PREFIX = "whet-"


class Group:
    """One cgroup with limits; falsy where none could be made. Named after its owner, so that those
    of dead owners can be removed.

    `join` runs in the child that is to be limited, before it gives up its rights; `kill` ends all
    that is left inside.
    """

    def __init__(
        self, memory: int, processes: int, root: Path = ROOT, own: Path = Path("/proc/self/cgroup")
    ) -> None:
        limits = {"memory": str(memory), "pids": str(processes)}
        self.folders: list[Path] = []
        v2 = (root / "cgroup.controllers").is_file()
        parents = (
            _v2(root, own)
            if v2
            else {name: root / name for name in limits if (root / name).is_dir()}
        )
        for controller, parent in parents.items():
            _sweep(parent)
            folder = parent / f"{PREFIX}{os.getpid()}"
            with suppress(OSError):
                folder.mkdir(exist_ok=True)
                files = {
                    "memory": "memory.max" if v2 else "memory.limit_in_bytes",
                    "pids": "pids.max",
                }
                for name in limits if v2 else (controller,):
                    (folder / files[name]).write_text(limits[name])
                for swap in ("memory.swap.max",) if v2 else ():
                    with suppress(OSError):
                        (folder / swap).write_text("0")
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
        """Kill what is inside until nothing is. False where something outlives it."""
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


def _v2(root: Path, own: Path) -> dict[str, Path]:
    """The one parent in which a group with both limits can be made; empty where there is none."""
    with suppress(OSError):
        path = next((x[3:] for x in own.read_text().splitlines() if x.startswith("0::")), "/")
        parent = root / path.strip("/")
        control = parent / "cgroup.subtree_control"
        if {"memory", "pids"} - set(control.read_text().split()):
            control.write_text("+memory +pids")
        return {"memory": parent}
    return {}


def _sweep(parent: Path) -> None:
    """Remove the empty groups of owners that are gone."""
    for folder in parent.glob(f"{PREFIX}*"):
        owner = folder.name.removeprefix(PREFIX)
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            with suppress(OSError):
                folder.rmdir()
