"""`whet report`: writes a run's report.html again."""

import argparse
from pathlib import Path

from whet.errors import RecipeError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path)


def call(arguments: argparse.Namespace) -> int:
    from whet import report

    if not arguments.run.is_dir():
        raise RecipeError(f"no run at {arguments.run}")
    print(report.write(arguments.run))
    return 0
