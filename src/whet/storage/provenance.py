"""What a run is made of, as hashes: its recipe, the files that the recipe names, and whet's own
code.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from whet import config

FILE = "origin.json"


def origin(recipe: config.Recipe) -> dict[str, Any]:
    """{"recipe": SHA-256, "code": SHA-256, "files": {path: SHA-256}}; the files are all that some
    value of the recipe names.
    """
    told = recipe.model_dump(mode="json")
    source = Path(__file__).parents[1]
    code = sorted(p for p in source.rglob("*") if p.suffix in (".py", ".c", ".h"))
    files = {name: _sum(path.read_bytes()) for name, path in sorted(_named(told))}
    return {
        "recipe": _sum(json.dumps(told, sort_keys=True).encode()),
        "code": _sum(
            b"".join(str(p.relative_to(source)).encode() + b"\0" + p.read_bytes() for p in code)
        ),
        "files": files,
    }


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Files that are not as they were, or no longer there."""
    return [name for name, held in old["files"].items() if new["files"].get(name) != held]


def _named(held: Any) -> Iterator[tuple[str, Path]]:
    """Every text in the recipe that is the path of a file, or FILE.py:FUNCTION of one."""
    if isinstance(held, Mapping):
        for value in held.values():
            yield from _named(value)
    elif isinstance(held, list):
        for value in held:
            yield from _named(value)
    elif isinstance(held, str) and 0 < len(held) < 1024 and held.isprintable():
        name = held.rpartition(":")[0] if ".py:" in held else held
        path = Path(name).expanduser()
        if path.is_file():
            yield name, path


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
