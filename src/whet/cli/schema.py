"""`whet schema`: one JSON schema of recipes, with the options of every task and reward by name.

Editors with support for TOML (Even Better TOML, taplo) check and complete recipes with it.
"""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from whet import config, rewards, tasks
from whet.options import Options
from whet.rewards import registry
from whet.rewards.combine import PartOptions
from whet.tasks.budget import Budget
from whet.tasks.mix import Part

Schema = dict[str, Any]
DRAFT = "https://json-schema.org/draft/2020-12/schema"
PATTERNS = {"gym:NAME": ("^gym:.", "dataset"), "hf:OWNER/NAME": ("^hf:.", "path")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", choices=("task", "reward"), help="default: a recipe")
    parser.add_argument("name", nargs="?", help="of the task or the reward")


def call(arguments: argparse.Namespace) -> int:
    if arguments.what is None:
        schema = recipe_schema()
    else:
        model = (tasks if arguments.what == "task" else registry).model(arguments.name or "")
        schema = model.model_json_schema()
    print(json.dumps(schema, indent=1))
    return 0


def recipe_schema() -> Schema:
    """The schema of a recipe. `task` and each `reward` is one of several tables, by its name."""
    schema = config.Recipe.model_json_schema()
    definitions = schema["$defs"]
    definitions["Budget"] = Budget.model_json_schema()
    definitions["Task"] = {"anyOf": _tasks(definitions, {})}
    parts = Part.model_json_schema()["properties"]
    shared = {key: parts[key] for key in ("weight", "as")}
    definitions["Part"] = {"anyOf": _tasks(definitions, shared, without="mix")}
    definitions["Reward"] = {"anyOf": _rewards(definitions)}
    return {"$schema": DRAFT, **schema}


def _tasks(definitions: Schema, shared: Schema, without: str = "") -> list[Schema]:
    """A table for each task: its options, `budget` and the shared keys."""
    shared = {"budget": {"$ref": "#/$defs/Budget"}, **shared}
    tables: list[Schema] = []
    for name, about in tasks.names():
        if name == without:
            continue
        pattern, named = PATTERNS.get(name, ("", ""))
        table = _options(tasks.model(name), definitions)
        table["properties"].pop(named, None)
        table["required"] = [key for key in table.get("required", []) if key != named]
        key = {"pattern": pattern} if pattern else {"const": name}
        tables.append(_named(table, key, about, shared))
    return tables


def _rewards(definitions: Schema) -> list[Schema]:
    """A table for each reward: its options, and the keys that every part of a reward takes."""
    shared = _options(PartOptions, definitions)["properties"]
    shared.pop("name")
    empty: Schema = {"properties": {}, "required": [], "additionalProperties": False}
    own = {**empty, "additionalProperties": True}
    tables = [
        _named(empty, {"const": "task"}, "the task's own verifier", shared, required=False),
        _named(own, {"pattern": ":"}, "your own function: module:function", shared),
    ]
    for name, about in rewards.names().items():
        table = _options(registry.model(name), definitions)
        tables.append(_named(table, {"const": name}, about, shared))
    return tables


def _options(model: type[Options], definitions: Schema) -> Schema:
    """The schema of a class of options; the tables within it go to the definitions."""
    schema = model.model_json_schema()
    for name, table in schema.pop("$defs", {}).items():
        definitions.setdefault(name, table)
    return {"properties": {}, **schema}


def _named(
    table: Mapping[str, Any], name: Schema, about: str, shared: Schema, required: bool = True
) -> Schema:
    """A table whose key `name` says what it is."""
    return {
        "type": "object",
        "description": about,
        "properties": {"name": {"type": "string", **name}, **shared, **table["properties"]},
        "required": [*(["name"] if required else []), *table.get("required", [])],
        "additionalProperties": table["additionalProperties"],
    }
