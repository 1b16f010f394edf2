"""`whet algorithms`: the table of algorithms, a row each, and where each comes from."""

import argparse

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def call(arguments: argparse.Namespace) -> int:
    from whet.algorithms.algorithm import Algorithm
    from whet.algorithms.table import TABLE, shown
    from whet.options import options

    rows = {name: shown(row) for name, row in TABLE.items()}
    console = Console(width=max(110, Console().width))
    for columns in (
        ("advantage", "ratio", "clip", "aggregation", "KL"),
        ("critic", "groups", "updates", "also"),
    ):
        table = Table("", *columns, box=None, padding=(0, 2, 0, 0))
        for name, cells in rows.items():
            table.add_row(f"[bold]{name}[/]", *(cells[c] for c in columns))
        console.print(table, "")
    console.print(
        "\n".join(f"{row.name:<17} {row.source}" for row in TABLE.values()), highlight=False
    )
    console.print(
        "\nA recipe's rl stage names a row (algorithm) and may override any cell (override):\n",
        highlight=False,
    )
    table = Table("cell", "default", "meaning", box=None, padding=(0, 2, 0, 0))
    for cell in options(Algorithm):
        if cell.name not in ("name", "source"):
            table.add_row(f"[bold]{cell.name}[/]", cell.default or "–", escape(cell.meaning))
    console.print(table)
    return 0
