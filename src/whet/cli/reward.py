"""`whet reward`: tries a reward on answers whose verdict is known, or lists the rewards."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from whet.cli import terminal
from whet.cli.arguments import option_values
from whet.config.load import load_recipe
from whet.errors import RewardError
from whet.rewards import Reward, combined, load, names, registry
from whet.rewards.known_answers import Outcome, figures, read_cases, try_cases
from whet.tasks import load as load_task

SHOWN = 10  # cases printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="test|list")
    test = actions.add_parser("test", help="Try a reward on answers whose verdict is known.")
    test.add_argument(
        "reward",
        help="a built-in, module:function, path/to/file.py:function, "
        "or RECIPE.toml for all of its parts",
    )
    test.add_argument(
        "file",
        type=Path,
        help="a row: question, answer, and right and wrong (lists), or response and correct",
    )
    test.add_argument(
        "pairs", nargs="*", metavar="key=value", help="options of the reward, or keys of the recipe"
    )
    test.add_argument("--json", action="store_true", help="print one JSON object")
    listed = actions.add_parser("list", help="List the built-in rewards, or the options of one.")
    listed.add_argument("name", nargs="?", help="a reward, whose options are printed")
    for action in (test, listed):
        action.add_argument("--debug", action="store_true", help="show the traceback of an error")


def call(arguments: argparse.Namespace) -> int:
    if arguments.action == "list":
        return list_rewards(arguments.name)
    return test(arguments.reward, arguments.file, arguments.pairs, arguments.json)


def list_rewards(name: str | None) -> int:
    if name is not None:
        terminal.print_options(Console(), registry.options(name))
        return 0
    table = Table("reward", "what it pays for", box=None, pad_edge=False)
    for reward, about in names().items():
        table.add_row(f"[bold]{reward}[/]", escape(about))
    Console().print(table)
    return 0


def test(name: str, path: Path, pairs: Sequence[str], as_json: bool) -> int:
    """1 where the reward accepts or rejects a case falsely, or fails on it."""
    reward, task = chosen(name, pairs)
    tried = try_cases(reward, read_cases(path, task))
    wrong = [t for t in tried if t.verdict]
    counts = figures(tried)
    if as_json:
        cases = [
            {
                "id": t.case.problem.id,
                "verdict": t.verdict,
                "status": t.score.status,
                "value": t.score.value,
                "reason": t.score.reason,
                "seconds": t.seconds,
                "text": t.case.text,
            }
            for t in wrong
        ]
        result = {"reward": name, "file": str(path), **counts, "cases_wrong": cases}
        print(json.dumps(result, indent=1))
        return int(bool(wrong))
    console = Console()
    console.print(_table(name, counts))
    for t in wrong[:SHOWN]:
        console.print(line(t), highlight=False, soft_wrap=True)
    if len(wrong) > SHOWN:
        console.print(f"… and {len(wrong) - SHOWN} more; --json has them all", highlight=False)
    return int(bool(wrong))


def _table(name: str, counts: dict[str, Any]) -> Table:
    title = f"reward {escape(name)} · {counts['cases']} answers, {counts['right']} of them right"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    for key in ("false_accepts", "false_rejects", "timeouts", "errors"):
        table.add_row(key.replace("_", " "), f"[red]{counts[key]}[/]" if counts[key] else "0")
    table.add_row("unparsed", f"{counts['unparsed']} ({counts['unparsed_right']} of them right)")
    for label, key in (("time an answer, median", "median_seconds"), ("worst", "worst_seconds")):
        table.add_row(label, f"{1000 * counts[key]:.2f} ms")
    return table


def chosen(name: str, pairs: Sequence[str]) -> tuple[Reward, str]:
    """(the reward, the task whose problems it judges where it is a recipe's, else empty).

    Raises WhetError.
    """
    if not name.endswith(".toml"):
        return load(name, **option_values(pairs)), ""
    recipe = load_recipe(Path(name), pairs)
    task = load_task(recipe.task.name, **recipe.task.options)
    stages = {s.name for s in recipe.stage}
    for part in recipe.reward:
        if part.name == "learned" and part.options.get("model") in stages:
            raise RewardError(
                f"reward learned: {part.options['model']} is a stage's model; "
                "give its directory, RUN/STAGE/model"
            )
    return combined([(p.name, p.weight, p.options) for p in recipe.reward], task), recipe.task.name


def line(tried: Outcome) -> str:
    """One case as a terminal may show it: the fault, its place and the answer."""
    text = " ".join(tried.case.text.split())
    short = repr(text if len(text) <= 70 else f"{text[:33]} … {text[-33:]}")
    why = f" ({tried.score.reason})" if tried.score.reason else f" (paid {tried.score.value:g})"
    where = "".join(c if c.isprintable() else "?" for c in tried.case.problem.id)
    return f"[red]{tried.verdict:<12}[/] {escape(where)}  {escape(short)}{escape(why)}"
