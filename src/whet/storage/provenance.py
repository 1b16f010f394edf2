"""Provenance of a run, as hashes: its recipe, the files that the recipe names, whet's own code."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from whet import config

FILE = "origin.json"
PACKAGE = Path(__file__).parents[1]  # src/whet


def origin(recipe: config.Recipe) -> dict[str, Any]:
    """{"recipe": SHA-256, "code": SHA-256, "files": {path: SHA-256}}.

    `files` are all files that a value of the recipe names.
    """
    values = recipe.model_dump(mode="json")
    return {
        "recipe": _sha256(json.dumps(values, sort_keys=True).encode()),
        "code": code(PACKAGE),
        "files": {name: _sha256(path.read_bytes()) for name, path in sorted(_files(values))},
    }


def code(package: Path) -> str:
    """SHA-256 over the names and the contents of a package's Python and C files."""
    paths = sorted(p for p in package.rglob("*") if p.suffix in (".py", ".c", ".h"))
    return _sha256(
        b"".join(str(p.relative_to(package)).encode() + b"\0" + p.read_bytes() for p in paths)
    )


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The files whose content differs, or that are gone."""
    return [name for name, sha256 in old["files"].items() if new["files"].get(name) != sha256]


def _files(value: Any) -> Iterator[tuple[str, Path]]:
    """Every text in the recipe that is the path of a file, or FILE.py:FUNCTION of one."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _files(item)
    elif isinstance(value, str) and 0 < len(value) < 1024 and value.isprintable():
        name = value.rpartition(":")[0] if ".py:" in value else value
        path = Path(name).expanduser()
        if path.is_file():
            yield name, path


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
