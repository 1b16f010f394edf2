"""Atomic writes: a directory or a file is whole or absent, even after a kill or a power cut."""

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
    """Yields a temporary sibling of `directory` to write into, and renames it at the block's end.

    Everything is flushed before the rename. Where the block raises, nothing is left. An existing
    directory is replaced if it is empty or has a file named in `holds`; otherwise it belongs to
    somebody and stays. Its old content is moved aside, and back if the commit fails.
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
        make_directory(target.parent)
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


def make_directory(directory: Path) -> None:
    """Makes a directory and its parents; each outlasts a power cut."""
    if not directory.exists():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        sync(directory.parent)


def write_text(path: Path, text: str) -> None:
    """Replaces a file by a synced temporary one; after a crash it has the old text or the new."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Returns once a file, or the list of a directory's names, would outlast a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
