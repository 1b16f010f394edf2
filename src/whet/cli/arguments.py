"""Arguments that several commands share: a recipe with its overrides, and options as key=value."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from whet.config.load import toml_value
from whet.errors import RecipeError


def add_recipe(parser: argparse.ArgumentParser, example: str = "stage.rl.steps=10") -> None:
    parser.add_argument(
        "recipe", type=Path, help="a TOML file, or a name that `whet recipes` lists"
    )
    parser.add_argument("pairs", nargs="*", metavar="key=value", help=example)


def option_values(pairs: Sequence[str]) -> dict[str, Any]:
    """The options in words such as `operations=3`. Raises RecipeError.

    >>> option_values(["operations=3", "words={ en = 1.0 }"])
    {'operations': 3, 'words': {'en': 1.0}}
    """
    options: dict[str, Any] = {}
    for word in pairs:
        key, equals, raw = word.partition("=")
        if not equals or not key.isidentifier():
            raise RecipeError(f"option {word!r}: write key=value")
        options[key] = toml_value(raw)
    return options
