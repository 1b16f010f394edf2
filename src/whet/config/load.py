"""Recipes: TOML in, validated data out. An unknown key is refused with the nearest right one."""

import json
import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError

from whet import config
from whet.config import Recipe
from whet.errors import RecipeError, did_you_mean


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path` with `key=value` overrides (`seed=3`, `stage.rl.steps=10`). Raises
    RecipeError.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"no recipe at {path}") from None
    except (
        OSError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: no UTF-8, no TOML, a number beyond all bounds
        raise RecipeError(f"{path}: {' '.join(str(error).split())}") from None
    for text in overrides:
        override(data, text)
    return parse(data, str(path))


def parse(data: dict[str, Any], source: str = "recipe") -> Recipe:
    """Raises RecipeError with every fault in one line."""
    try:
        return Recipe.model_validate_json(_json(data))
    except ValidationError as error:
        raise RecipeError(f"{source}: {'; '.join(_faults(error, data))}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError(f"{source}: {' '.join(str(error).split())}") from None


def _json(data: dict[str, Any]) -> str:
    try:
        return json.dumps(data, allow_nan=False)
    except ValueError:
        raise ValueError("nan and inf are no values for a recipe") from None


def override(data: dict[str, Any], text: str) -> None:
    """Sets one dotted key of a recipe's data; stages are addressed by name. Raises RecipeError."""
    key, equals, raw = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z0-9_.-]+", key):
        raise RecipeError(
            f"override {text!r}: write key=value, such as seed=3 or stage.rl.steps=10"
        )
    value = told(raw)
    at: Any = data
    *path, last = key.split(".")
    for word in path:
        if isinstance(at, list):
            at = _named(cast(list[Any], at), word, key)
        elif isinstance(at, dict):
            at = cast(dict[str, Any], at).setdefault(word, {})
        if not isinstance(at, (dict, list)):
            raise RecipeError(f"override {text!r}: {word!r} is a value, not a table")
    if not isinstance(at, dict):
        raise RecipeError(
            f"override {text!r}: name a key of one stage, such as {key}.NAME.steps=10"
        )
    at[last] = value


def told(raw: str) -> Any:
    """What a word of the command line stands for: as TOML says it, else the word itself.

    >>> told("3"), told("[1, 2]"), told("chain")
    (3, [1, 2], 'chain')
    """
    try:
        return tomllib.loads(f"x = {raw}")["x"]
    except (ValueError, RecursionError):
        return raw


def _named(stages: list[Any], word: str, key: str) -> Any:
    tables = [cast(dict[str, Any], s) for s in stages if isinstance(s, dict)]
    names = {str(s.get("name", i)): s for i, s in enumerate(tables)}
    if word not in names:
        raise RecipeError(f"override {key}: no {word!r} there{did_you_mean(word, names)}")
    return names[word]


def _faults(error: ValidationError, data: dict[str, Any]) -> Iterable[str]:
    for fault in error.errors(include_url=False):
        where = _readable(fault["loc"], data)
        dotted = ".".join(where)
        if fault["type"] == "extra_forbidden":
            yield f"unknown key {dotted!r}{did_you_mean(where[-1], _keys_beside(fault['loc']))}"
        elif fault["type"] == "union_tag_invalid" and fault.get("ctx", {}).get("tag") == "prefer":
            yield f"{dotted}: kind 'prefer' is called 'dpo'"
        else:
            message = fault["msg"].removeprefix("Value error, ")
            given = (
                "" if isinstance(fault["input"], (dict, list)) else f" (given: {fault['input']!r})"
            )
            yield f"{dotted}: {message}{given}" if dotted else message


def _readable(loc: tuple[int | str, ...], data: dict[str, Any]) -> list[str]:
    """A fault's place in the user's words: stages by name, without the tag that told their kind."""
    words = [str(part) for part in loc]
    if len(loc) > 1 and loc[0] == "stage" and isinstance(loc[1], int):
        words[1] = (
            str(data["stage"][loc[1]].get("name", loc[1]))
            if isinstance(data["stage"][loc[1]], dict)
            else words[1]
        )
        del words[2:3]
    return words


def _keys_beside(loc: tuple[int | str, ...]) -> list[str]:
    """The fields of the table in which an unknown key stands."""
    table: type[BaseModel] = Recipe
    kinds = {
        get_args(k.model_fields["kind"].annotation)[0]: k
        for k in get_args(get_args(config.AnyStage)[0])
    }
    tables: dict[str, type[BaseModel]] = {
        "model": config.Model, "shape": config.Shape, "ask": config.Ask, "evaluation": config.Evaluation,
        "optimizer": config.Optimizer, "critic": config.Critic, "lora": config.Lora, "gate": config.Gate,
        "save": config.Save,
    }  # fmt: skip
    for part in loc[:-1]:
        table = kinds.get(str(part)) or tables.get(str(part)) or table
    return list(table.model_fields)
