"""A directory or a file that is there whole, or not at all, whatever ends the process or the
machine.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from whet.errors import ModelError

OURS = ("config.json", "adapter_config.json")


@contextmanager
def committed(directory: Path, holds: Sequence[str] = OURS) -> Iterator[Path]:
    """Yields a temporary sibling to write into; when the block ends, everything is flushed and one
    rename commits it.

    Where the block raises, nothing is left. A directory that stands there already is replaced,
    unless it is neither empty nor has a file named in `holds`: then it is somebody's, and is left
    alone. Its old content is moved aside, and back if the commit fails.
    Raises ModelError where the place cannot be written or may not be replaced.
    """
    target = Path(os.path.realpath(directory))
    if target.exists() and not target.is_dir():
        raise ModelError(f"{directory} is a file; give a directory to write to")
    try:
        if (
            target.is_dir()
            and any(target.iterdir())
            and not any((target / name).is_file() for name in holds)
        ):
            raise ModelError(
                f"{directory} holds other files and no {holds[0]}; give a new directory, or empty this one"
            )
        made(target.parent)
        token = uuid4().hex[:8]
        part, old = (
            target.parent / f".{target.name}.{token}.{kind}" for kind in ("partial", "old")
        )
        part.mkdir()
    except OSError as failure:
        raise ModelError(f"{directory} cannot be written: {failure}") from None
    try:
        yield part
        try:
            _flush(part)
            _replace(part, target, old)
        except OSError as failure:
            raise ModelError(f"{directory} cannot be written: {failure}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _replace(part: Path, target: Path, old: Path) -> None:
    replaces = target.exists()
    if replaces:
        target.rename(old)
    try:
        part.rename(target)
    except OSError:
        if replaces:
            old.rename(target)
        raise
    sync(target.parent)
    if replaces:
        shutil.rmtree(old, ignore_errors=True)


def _flush(directory: Path) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            sync(Path(folder) / name)
        sync(Path(folder))


def made(directory: Path) -> None:
    """Makes a directory and those above it, each entered for good in the one that it stands in."""
    if not directory.exists():
        made(directory.parent)
        directory.mkdir(exist_ok=True)
        sync(directory.parent)


def written(path: Path, text: str) -> None:
    """All of the text or what was there before: a temporary file, synced, then one rename, synced
    too.
    """
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Returns when a file, or the names in a directory, would outlast a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
