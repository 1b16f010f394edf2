"""Power cuts, as the worst of disks would have them: whatever was not synced is lost.

While a run goes on, each fsync is noted: the content of a file, the names in a directory. Right
before each of them the power may be cut; since nothing becomes safe between two of them, these are
all the states that such a disk can be left in. Of each there are two kinds: names that were not
synced are lost with the rest, or they are there and what they name is empty or as old as its last
sync.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from whet import config
from whet.config.load import load_recipe
from whet.errors import WhetError
from whet.pipeline import pipeline, resume


class Disk:
    """What of a directory would outlast a power cut. Held by inode, for a rename changes none."""

    def __init__(self) -> None:
        self.contents: dict[int, bytes] = {}  # a file's bytes when it was last synced
        self.names: dict[int, dict[str, int]] = {}  # a directory's when it was last synced
        self.kept: list[int] = []  # handles, so that no inode is used twice

    def note(self, handle: int) -> None:
        inode, path = os.fstat(handle).st_ino, Path(f"/proc/self/fd/{handle}")
        self.kept.append(os.dup(handle))
        if path.is_dir():
            self.names[inode] = named(path)
        else:
            self.contents[inode] = path.read_bytes()

    def left(self, place: Path, to: Path, lost: bool) -> None:
        """Writes to `to` what a cut leaves of `place`; `lost`: without the names that were not
        synced.
        """
        self._folder(
            os.stat(place).st_ino,
            {os.stat(p).st_ino: p for p in (place, *place.rglob("*"))},
            to,
            lost,
        )

    def _folder(self, inode: int, live: dict[int, Path], to: Path, lost: bool) -> None:
        to.mkdir()
        for name, entry in (self.names.get(inode, {}) if lost else named(live[inode])).items():
            if entry in self.names or (entry in live and live[entry].is_dir()):
                self._folder(entry, live, to / name, lost)
            else:
                (to / name).write_bytes(self.contents.get(entry, b""))

    def close(self) -> None:
        for handle in self.kept:
            os.close(handle)


def named(path: Path) -> dict[str, int]:
    with os.scandir(path) as entries:
        return {entry.name: entry.inode() for entry in entries}


@contextmanager
def noted(before: Callable[[Disk], None]) -> Iterator[None]:
    """Within it, each fsync of this process is noted, and `before` is called before each."""
    disk, real = Disk(), os.fsync

    def fsync(handle: int) -> None:
        before(disk)
        real(handle)
        disk.note(handle)

    with patch("os.fsync", fsync):
        try:
            yield
        finally:
            disk.close()


def cuts(recipe: config.Recipe, place: Path, every: int = 1) -> list[Path]:
    """Runs a recipe in `place`/whole and leaves, in folders beside it, what a cut would leave there
    before every so-many-th fsync.
    """
    runs, found, count = place / "whole", list[Path](), 0
    runs.mkdir()

    def before(disk: Disk) -> None:
        nonlocal count
        count += 1
        if count % every:
            return
        disk.names.setdefault(os.stat(runs).st_ino, {})  # it was there before the run
        for lost in (True, False):
            found.append(place / f"{count}{'-lost' if lost else '-empty'}")
            disk.left(runs, found[-1], lost)

    with noted(before):
        pipeline.run(recipe, runs / recipe.name)
    return found


def goes_on(recipe: config.Recipe, folder: Path) -> Path:
    """With power again: to the run's end."""
    run = folder / recipe.name
    if (run / "recipe.toml").exists():
        resume.resume(recipe, run)
    else:
        pipeline.prepare(run, overwrite=True)
        pipeline.run(recipe, run)
    return run


def tried(
    recipe: config.Recipe, place: Path, left: Callable[[Path], dict[str, object]], every: int = 1
) -> tuple[int, list[str]]:
    """How many cuts there were, and in words each after which a run has left other files."""
    folders = cuts(recipe, place, every)
    expected, wrong = left(place / "whole" / recipe.name), list[str]()
    for folder in folders:
        try:
            found = left(goes_on(recipe, folder))
        except WhetError as refusal:
            wrong.append(f"a cut before sync {folder.name}: {refusal}")
            continue
        odd = [n for n in sorted(found.keys() | expected.keys()) if found.get(n) != expected.get(n)]
        if odd:
            wrong.append(f"a cut before sync {folder.name}: other {', '.join(odd[:5])}")
        shutil.rmtree(folder)
    return len(folders), wrong


def main(every: int) -> tuple[int, int]:
    """How many cuts there were in the recipe of all stages, and after how many a run has left other
    files, which it prints.
    """
    from crash import left

    recipe = load_recipe(Path(__file__).parents[1] / "data" / "every_stage.toml")
    with tempfile.TemporaryDirectory() as place:
        count, wrong = tried(recipe, Path(place), left, every)
    print(*wrong, sep="\n", end="\n" if wrong else "", flush=True)
    return count, len(wrong)
