"""Recipes: TOML in, validated data out. An unknown key is refused with the nearest right one."""

import json
import re
import tomllib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from whet.config import Recipe
from whet.errors import RecipeError, did_you_mean
from whet.options import Place, dotted, faults


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, or the one of that name that whet brings, with its overrides.

    An override is `key=value`, such as `seed=3` or `stage.rl.steps=10`. Raises RecipeError.
    """
    path = _found(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    # ValueError: not UTF-8, not TOML, or a number beyond all bounds
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: {' '.join(str(error).split())}") from None
    for text in overrides:
        override_recipe(data, text)
    return parse_recipe(data, str(path))


def shipped_recipes() -> dict[str, Path]:
    """The recipes that whet brings, by name: those of the package, or of the checkout."""
    package = Path(str(files("whet")))
    folders = (package / "recipes", package.parents[1] / "recipes")
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _found(path: Path) -> Path:
    """The recipe's file; a name stands for a recipe that whet brings where no such file is."""
    shipped = {} if path.is_file() else shipped_recipes()
    if str(path) in shipped:
        return shipped[str(path)]
    if path.exists():
        return path
    hint = "" if path.suffix or len(path.parts) > 1 else did_you_mean(str(path), shipped)
    raise RecipeError(f"no recipe at {path}{hint}")


def parse_recipe(data: dict[str, Any], source: str = "recipe") -> Recipe:
    """Raises RecipeError with every fault in one line."""
    stages = data.get("stage")
    for stage in cast(list[Any], stages) if isinstance(stages, list) else ():
        if isinstance(stage, dict) and cast(dict[str, Any], stage).get("kind") == "prefer":
            raise RecipeError(f"{source}: a stage has kind = 'prefer'; write kind = 'dpo'")
    try:
        return Recipe.model_validate_json(_json(data))
    except ValidationError as error:
        lines = faults(error, Recipe, "key", lambda place: _readable(place, data))
        raise RecipeError(f"{source}: {'; '.join(lines)}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError(f"{source}: {' '.join(str(error).split())}") from None


def _json(data: dict[str, Any]) -> str:
    try:
        return json.dumps(data, allow_nan=False)
    except ValueError:
        raise ValueError("nan and inf are no values for a recipe") from None


def override_recipe(data: dict[str, Any], text: str) -> None:
    """Sets one dotted key of a recipe's data; stages are addressed by name. Raises RecipeError."""
    key, equals, raw = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z0-9_.-]+", key):
        raise RecipeError(
            f"override {text!r}: write key=value, such as seed=3 or stage.rl.steps=10"
        )
    table: Any = data
    *path, last = key.split(".")
    for word in path:
        if isinstance(table, list):
            table = _named(cast(list[Any], table), word, key)
        elif isinstance(table, dict):
            table = cast(dict[str, Any], table).setdefault(word, {})
        if not isinstance(table, (dict, list)):
            raise RecipeError(f"override {text!r}: {word!r} is a value, not a table")
    if not isinstance(table, dict):
        raise RecipeError(
            f"override {text!r}: name a key of one stage, such as {key}.NAME.steps=10"
        )
    table[last] = toml_value(raw)


def toml_value(word: str) -> Any:
    """The value that a word of the command line stands for: as TOML reads it, else the word itself.

    >>> toml_value("3"), toml_value("[1, 2]"), toml_value("chain")
    (3, [1, 2], 'chain')
    """
    try:
        return tomllib.loads(f"x = {word}")["x"]
    except (ValueError, RecursionError):
        return word


def _named(stages: list[Any], name: str, key: str) -> Any:
    tables = [cast(dict[str, Any], stage) for stage in stages if isinstance(stage, dict)]
    by_name = {str(table.get("name", i)): table for i, table in enumerate(tables)}
    if name not in by_name:
        raise RecipeError(f"override {key}: no {name!r} there{did_you_mean(name, by_name)}")
    return by_name[name]


def _readable(place: Place, data: dict[str, Any]) -> str:
    """A fault's place in the user's words: a stage by its name, without pydantic's tag of kind."""
    match place:
        case ("stage", int(index), *rest) if isinstance(data["stage"][index], dict):
            name = data["stage"][index].get("name", index)
            return dotted(("stage", str(name), *rest[1:]))
        case _:
            return dotted(place)
