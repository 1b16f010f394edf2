"""What `whet reward` does."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from whet.cli.commands import options
from whet.config.load import load_recipe
from whet.errors import RewardError
from whet.rewards import Reward, combined, load, names
from whet.rewards.known_answers import Tried, figures, read, trial
from whet.tasks import load as load_task

SHOWN = 10  # cases printed


def listing() -> int:
    table = Table("reward", "what it pays for", box=None, pad_edge=False)
    for name, about in names().items():
        table.add_row(f"[bold]{name}[/]", escape(about))
    Console().print(table)
    return 0


def test(name: str, path: Path, pairs: Sequence[str], as_json: bool) -> int:
    """1 where a case is accepted or rejected falsely, or the verifier fails on it."""
    reward, task = chosen(name, pairs)
    tried = trial(reward, read(path, task))
    wrong = [t for t in tried if t.verdict]
    told = figures(tried)
    if as_json:
        cases = [
            {
                "id": t.case.problem.id,
                "verdict": t.verdict,
                "status": t.score.status,
                "value": t.score.value,
            }
            | {"reason": t.score.reason, "seconds": t.seconds, "text": t.case.text}
            for t in wrong
        ]
        print(
            json.dumps({"reward": name, "file": str(path), **told, "cases_wrong": cases}, indent=1)
        )
        return int(bool(wrong))
    table = Table(
        title=f"reward {escape(name)} · {told['cases']} answers, {told['right']} of them right",
        title_justify="left",
        show_header=False,
    )
    table.add_column("")
    table.add_column("", justify="right")
    for label, key in (
        ("false accepts", "false_accepts"),
        ("false rejects", "false_rejects"),
        ("timeouts", "timeouts"),
        ("errors", "errors"),
    ):
        table.add_row(label, f"[red]{told[key]}[/]" if told[key] else "0")
    table.add_row("unparsed", f"{told['unparsed']} ({told['unparsed_right']} of them right)")
    for label, key in (("time an answer, median", "median_seconds"), ("worst", "worst_seconds")):
        table.add_row(label, f"{1000 * told[key]:.2f} ms")
    console = Console()
    console.print(table)
    for t in wrong[:SHOWN]:
        console.print(line(t), highlight=False, soft_wrap=True)
    if len(wrong) > SHOWN:
        console.print(f"… and {len(wrong) - SHOWN} more; --json has them all", highlight=False)
    return int(bool(wrong))


def chosen(name: str, pairs: Sequence[str]) -> tuple[Reward, str]:
    """The reward, and the task whose problems it judges where it is a recipe's. Raises WhetError."""
    if not name.endswith(".toml"):
        return load(name, **options(pairs)), ""
    recipe = load_recipe(Path(name), pairs)
    task = load_task(recipe.task.name, **recipe.task.options)
    stages = {s.name for s in recipe.stage}
    for part in recipe.reward:
        if part.name == "learned" and part.options.get("model") in stages:
            raise RewardError(
                f"reward learned: {part.options['model']} is a stage's model; give its directory, RUN/STAGE/model"
            )
    return combined([(p.name, p.weight, p.options) for p in recipe.reward], task), recipe.task.name


def line(tried: Tried) -> str:
    """One case: what is wrong, where it stands, what was said, all of it harmless to a terminal."""
    text = " ".join(tried.case.text.split())
    short = repr(text if len(text) <= 70 else f"{text[:33]} … {text[-33:]}")
    why = f" ({tried.score.reason})" if tried.score.reason else f" (paid {tried.score.value:g})"
    where = "".join(c if c.isprintable() else "?" for c in tried.case.problem.id)
    return f"[red]{tried.verdict:<12}[/] {escape(where)}  {escape(short)}{escape(why)}"
