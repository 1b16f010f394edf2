"""`whet check`: a line for each thing looked at; exit code 1 where a thing is not as it should be."""

import argparse

from rich.console import Console
from rich.markup import escape

from whet.cli.arguments import add_recipe
from whet.config.load import load_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    parser.add_argument(
        "--offline",
        action="store_true",
        help="with tiny stand-ins for the Hub's models and data sets",
    )


def call(arguments: argparse.Namespace) -> int:
    from whet.preflight.check import findings

    console, bad = Console(), 0
    for finding in findings(load_recipe(arguments.recipe, arguments.pairs), arguments.offline):
        bad += not finding.ok
        mark = "[green]ok  [/]" if finding.ok else "[red]FAIL[/]"
        console.print(
            f"{mark} [bold]{escape(finding.name)}[/]  {escape(finding.message)}",
            highlight=False,
            soft_wrap=True,
        )
    if bad:
        console.print(f"\n{bad} of these would make the run fail or mislead.", highlight=False)
    return int(bad > 0)
