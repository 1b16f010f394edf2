"""What the path of a data set stands for: files on this machine, or a data set on the Hub."""

import os
from pathlib import Path

from whet.data.hub import download

ROLES = ("system", "user", "assistant")  # of a row's messages


def sources(path: str) -> tuple[list[Path], list[Path]]:
    """(train files, test files) that a path or a Hub data set stands for."""
    return download(path) if path.startswith("hf:") else ([Path(os.path.expanduser(path))], [])
