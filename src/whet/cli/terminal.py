"""What a person sees in the terminal: a bar a stage with the numbers that matter, warnings, the
table at the end.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from whet.evaluation import statistics

SHOWN = {
    "sft": (("loss", "loss", "{:.3f}"), ("lr", "lr", "{:.1e}"), ("gate", "gate", "{:.2f}")),
    "rl": (
        ("reward", "reward", "{:.2f}"),
        ("accuracy", "right", "{:.0%}"),
        ("length", "length", "{:.0f}"),
        ("groups_with_signal", "signal", "{:.0%}"),
        ("entropy", "entropy", "{:.2f}"),
    ),
    "reject": (("kept", "kept", "{:.0f}"),),
    "rank": (("kept", "kept", "{:.0f}"),),
    "reward_model": (("loss", "loss", "{:.3f}"), ("pairs_right", "pairs right", "{:.0%}")),
    "dpo": (("loss", "loss", "{:.3f}"), ("pairs_right", "pairs right", "{:.0%}")),
}


class Terminal:
    """Draws a run on a rich console; where that is no terminal, plain lines at every tenth of a
    stage.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.stage, self.kind, self.total = "", "", 0

    def begin(self, stage: str, kind: str, total: int) -> None:
        self.stage, self.kind, self.total = stage, kind, total
        if not self.console.is_terminal:
            self.console.print(f"{stage} ({kind}) …")
            return
        self.bar = Progress(
            TextColumn("[bold]{task.description:<10}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[numbers]}"), console=self.console,
        )  # fmt: skip
        self.bar.start()
        self.task = self.bar.add_task(escape(stage), total=total or None, numbers=kind)

    def step(self, done: int, values: Mapping[str, float]) -> None:
        shown = SHOWN.get(self.kind, ())
        numbers = "  ".join(
            f"{label} {form.format(values[key])}" for key, label, form in shown if key in values
        )
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, numbers=numbers)
        elif self.total and (done == self.total or done % max(1, self.total // 10) == 0):
            self.console.print(f"  {self.stage} {done}/{self.total}  {numbers}", highlight=False)

    def warn(self, text: str) -> None:
        self.console.print(f"[yellow]warning[/] {escape(text)}", highlight=False)

    def end(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def number(value: float | None, form: str = "{:.1f}") -> str:
    return "–" if value is None else form.format(value)


def switched(measured: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """How the thinking switch stood and the figures: once with "" where it was left alone, else on
    and off.
    """
    return list(measured["thinking"].items()) if "thinking" in measured else [("", measured)]


def stages_table(summary: Mapping[str, Any]) -> Table:
    """Stage by stage: accuracy with its 95 % interval, length, truncation, time; a line each with
    thinking on and off.
    """
    title = f"{summary['name']} · task {summary['task']} · seed {summary['seed']}"
    table = Table(title=title, title_justify="left", pad_edge=False)
    rows = [(stage, *row) for stage in summary["stages"] for row in switched(stage)]
    both = any(switch for _, switch, _ in rows)
    for column in ("stage", *(["thinking"] if both else [])):
        table.add_column(column, no_wrap=True)
    tasks = list(
        dict.fromkeys(name for s in summary["stages"] for name in s.get("by_task") or ())
    )  # of a mix
    last = ("length", "seconds") if tasks else ("problems", "length", "cut off", "seconds")
    for column in ("accuracy", "95 % interval", *tasks, *last):
        table.add_column(column, justify="right", no_wrap=True)
    for s, switch, figures in rows:
        told = s.get("pairs") or figures  # a reward model is measured on pairs of responses
        interval = (
            "–"
            if told.get("low") is None
            else f"{100 * told['low']:.1f} – {100 * told['high']:.1f}"
        )
        name = (
            f"[bold]{escape(s['name'])}[/]"
            if s["name"] == summary.get("result")
            else escape(s["name"])
        )
        cells = {
            "problems": str(told.get("n") or "–") + " pairs" * ("pairs" in s),
            "length": number(figures.get("length")),
            "cut off": percent(figures.get("truncated")),
            "seconds": "" if switch == "off" else number(s.get("seconds")),
        }
        parts = figures.get("by_task") or {}
        table.add_row(
            name, *([switch] if both else []), percent(told.get("accuracy")), interval,
            *(percent((parts.get(task) or {}).get("accuracy")) for task in tasks), *(cells[column] for column in last),
        )  # fmt: skip
    return table


def closing(console: Console, summary: Mapping[str, Any], directory: Path) -> None:
    """The end of a run: before -> after, what the gain is made of, and where things are."""
    console.print(stages_table(summary))
    told = summary.get("gain")
    if told:
        both = any("thinking" in s for s in summary["stages"] if s["name"] == told["after"])
        line = f"[bold]{told['before']} → {told['after']}: {100 * told['total']:+.1f} points{' with thinking on' * both}[/]"
        if "choosing" in told:
            line += f" — {100 * told['choosing']:+.1f} from choosing another mode of answering, {100 * told['reasoning']:+.1f} from answering better within a mode"
        console.print(line, highlight=False)
    console.print(f"model   {directory / 'model'}", highlight=False, soft_wrap=True)
    console.print(f"report  {directory / 'report.html'}", highlight=False, soft_wrap=True)


def paired_line(test: Mapping[str, Any]) -> str:
    """A paired test in words: the first model less the second, on the same problems."""
    if not test["n"]:
        return "paired: no problem was answered by both"
    difference, low, high = (100 * test[k] for k in ("difference", "low", "high"))
    p = "below 0.0001" if test["p"] < 1e-4 else f"{test['p']:.4f}"
    return f"paired on the same {test['n']} problems: {difference:+.1f} points [{low:+.1f}, {high:+.1f}], p {p} ({test['test']})"


def seeds_table(summaries: list[Mapping[str, Any]]) -> Table:
    """One row a seed, and mean ± standard deviation, for runs of one recipe."""
    rows = [_accuracies(s) for s in summaries]
    names = list(rows[0])
    table = Table(title=f"accuracy over {len(summaries)} seeds", title_justify="left")
    for column in ("seed", *names, "gain", "seconds"):
        table.add_column(column, justify="right")
    for s, row in zip(summaries, rows, strict=True):
        table.add_row(
            str(s["seed"]),
            *(percent(row[n]) for n in names),
            number(100 * s["gain"]["total"] if s["gain"] else None, "{:+.1f}"),
            number(s["seconds"], "{:.0f}"),
        )
    columns = [[row[n] for row in rows] for n in names]
    table.add_section()
    table.add_row(
        "mean ± sd",
        *(mean_sd(c) for c in columns),
        mean_sd([s["gain"]["total"] for s in summaries if s["gain"]]),
        "",
    )
    return table


def _accuracies(summary: Mapping[str, Any]) -> dict[str, float]:
    """By stage, and by how the thinking switch stood."""
    return {
        f"{s['name']} {switch}".rstrip(): told["accuracy"]
        for s in summary["stages"]
        for switch, told in switched(s)
        if told["accuracy"] is not None
    }


def mean_sd(values: list[float]) -> str:
    """Shares as percent, mean ± standard deviation over seeds."""
    if len(values) < 2:
        return percent(values[0]) if values else "–"
    mean, deviation = statistics.mean_sd(values)
    return f"{100 * mean:.1f} ± {100 * deviation:.1f}"
