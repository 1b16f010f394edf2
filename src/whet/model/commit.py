"""A directory that is there whole, or not at all."""

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
    """Yields a temporary sibling to write into; when the block ends, everything is flushed and one rename commits it.

    Where the block raises, nothing is left. A directory that stands there already is replaced, unless it is neither empty nor
    has a file named in `holds`: then it is somebody's, and is left alone. Its old content is moved aside, and back if the
    commit fails.
    Raises ModelError where the place cannot be written or may not be replaced.
    """
    target = Path(os.path.realpath(directory))
    if target.exists() and not target.is_dir():
        raise ModelError(f"{directory} is a file; give a directory to write to")
    try:
        if target.is_dir() and any(target.iterdir()) and not any((target / name).is_file() for name in holds):
            raise ModelError(
                f"{directory} holds other files and no {holds[0]}; give a new directory, or empty this one"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        token = uuid4().hex[:8]
        part, old = (target.parent / f".{target.name}.{token}.{kind}" for kind in ("partial", "old"))
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
    _sync(target.parent)
    if replaces:
        shutil.rmtree(old, ignore_errors=True)


def _flush(directory: Path) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            _sync(Path(folder) / name)
        _sync(Path(folder))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
