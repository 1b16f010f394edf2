"""The files of a data set, on this machine or on the Hub."""

import os
from pathlib import Path

from whet.data.hub import download


def sources(path: str) -> tuple[list[Path], list[Path]]:
    """(train files, test files) of a path, or of `hf:OWNER/NAME`."""
    return download(path) if path.startswith("hf:") else ([Path(os.path.expanduser(path))], [])
