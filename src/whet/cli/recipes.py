"""`whet recipes`: the recipes that whet brings, which `whet run NAME` finds by name."""

import argparse

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from whet.config.load import load_recipe, shipped_recipes
from whet.errors import RecipeError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def call(arguments: argparse.Namespace) -> int:
    recipes = shipped_recipes()
    if not recipes:
        raise RecipeError("this installation has no recipes; install whet from its wheel")
    table = Table("recipe", "size", "what it is for", box=None, pad_edge=False)
    for name, path in recipes.items():
        size = "miniature" if name.endswith("-mini") else "real"
        table.add_row(f"[bold]{escape(name)}[/]", size, escape(load_recipe(path).about))
    Console().print(table)
    return 0
