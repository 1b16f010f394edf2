"""`whet tasks`: the tasks, or the options of one and an example of its problems."""

import argparse

from rich.console import Console
from rich.table import Table

from whet.cli import terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="a task, whose options are printed")


def call(arguments: argparse.Namespace) -> int:
    from whet.tasks import load, names, options

    console = Console()
    if arguments.name is None:
        table = Table("task", "what it is", box=None, pad_edge=False)
        for name, about in names():
            table.add_row(f"[bold]{name}[/]", about)
        console.print(table)
        return 0
    known = options(arguments.name)
    terminal.print_options(console, known)
    source = arguments.name.partition(":")[0]
    if source == "gym":
        console.print("\nEvery other option is the data set's own.", highlight=False)
    elif source != "hf" and all(
        option.default is not None for option in known if "." not in option.name
    ):
        (problem,) = load(arguments.name).problems("train", 1, 1)
        terminal.print_plain(console, f"\nA problem:\n{problem.question}\n\nIts answer:")
        terminal.print_plain(console, problem.answer or "")
    return 0
