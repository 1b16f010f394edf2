"""`whet show`: a recipe with every key filled in, and each algorithm's row as it resolves."""

import argparse

import tomli_w

from whet import config
from whet.cli.arguments import add_recipe
from whet.config.load import load_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)


def call(arguments: argparse.Namespace) -> int:
    from whet.algorithms.table import cells

    recipe = load_recipe(arguments.recipe, arguments.pairs)
    print(tomli_w.dumps(recipe.model_dump(exclude_none=True)), end="")
    for stage in recipe.stage:
        if isinstance(stage, config.RL):
            resolved = tomli_w.dumps(cells(stage.row))
            print(
                f"\n# stage {stage.name}: {stage.algorithm}, every cell\n# "
                + resolved.strip().replace("\n", "\n# ")
            )
    return 0
