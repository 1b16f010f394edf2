"""What the terminal shows of a run: a bar for each stage, warnings, and the tables at the end."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
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
from whet.format import UNKNOWN, number, percent, points, signed
from whet.options import Option

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
    """Draws a run on a rich console, or prints a line at every tenth of a stage where output is
    redirected.
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
            TextColumn("[bold]{task.description:<10}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self.console,
        )
        self.bar.start()
        self.task = self.bar.add_task(escape(stage), total=total or None, numbers=kind)

    def step(self, done: int, values: Mapping[str, float]) -> None:
        numbers = "  ".join(
            f"{label} {form.format(values[key])}"
            for key, label, form in SHOWN.get(self.kind, ())
            if key in values
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


def print_plain(console: Console, text: str) -> None:
    """Prints text as it is: nothing in it is markup, and lines keep their length."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def print_options(console: Console, options: Iterable[Option]) -> None:
    """What a task or a reward accepts: name, kind, default and meaning of each option."""
    for option in options:
        default = "required" if option.default is None else f"default {option.default}"
        console.print(f"[bold]{escape(option.name)}[/]  {escape(f'{option.kind}; {default}')}")
        console.print(Padding(escape(option.meaning), (0, 0, 0, 4)), highlight=False)


def switched(measured: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(state of the thinking switch, figures) of each measurement; "" where it was not set."""
    return list(measured["thinking"].items()) if "thinking" in measured else [("", measured)]


def stages_table(summary: Mapping[str, Any]) -> Table:
    """Stage by stage: accuracy, its 95 % interval, length, truncation and time.

    A stage that was measured with thinking on and off has a line for each.
    """
    title = f"{summary['name']} · task {summary['task']} · seed {summary['seed']}"
    table = Table(title=title, title_justify="left", pad_edge=False)
    rows = [(stage, *row) for stage in summary["stages"] for row in switched(stage)]
    both = any(switch for _, switch, _ in rows)
    for column in ("stage", *(["thinking"] if both else [])):
        table.add_column(column, no_wrap=True)
    # the parts of a mix
    tasks = list(dict.fromkeys(name for s in summary["stages"] for name in s.get("by_task") or ()))
    last = ("length", "seconds") if tasks else ("problems", "length", "cut off", "seconds")
    for column in ("accuracy", "95 % interval", *tasks, *last):
        table.add_column(column, justify="right", no_wrap=True)
    for s, switch, figures in rows:
        measured = s.get("pairs") or figures  # a reward model is measured on pairs of responses
        low, high = measured.get("low"), measured.get("high")
        interval = UNKNOWN if low is None or high is None else f"{100 * low:.1f} – {100 * high:.1f}"
        name = escape(s["name"])
        if s["name"] == summary.get("result"):
            name = f"[bold]{name}[/]"
        cells = {
            "problems": str(measured.get("n") or UNKNOWN) + " pairs" * ("pairs" in s),
            "length": number(figures.get("length")),
            "cut off": percent(figures.get("truncated")),
            "seconds": "" if switch == "off" else number(s.get("seconds")),
        }
        parts = figures.get("by_task") or {}
        table.add_row(
            name,
            *([switch] if both else []),
            percent(measured.get("accuracy")),
            interval,
            *(percent((parts.get(task) or {}).get("accuracy")) for task in tasks),
            *(cells[column] for column in last),
        )
    return table


def closing(console: Console, summary: Mapping[str, Any], directory: Path) -> None:
    """The end of a run: before and after, the parts of the gain, and where the files are."""
    console.print(stages_table(summary))
    gain = summary.get("gain")
    if gain:
        both = any("thinking" in s for s in summary["stages"] if s["name"] == gain["after"])
        line = f"[bold]{gain['before']} → {gain['after']}: {points(gain['total'])}"
        line += f"{' with thinking on' * both}[/]"
        if "choosing" in gain:
            line += (
                f" — {signed(gain['choosing'])} from choosing another mode of answering, "
                f"{signed(gain['reasoning'])} from answering better within a mode"
            )
        console.print(line, highlight=False)
    console.print(f"model   {directory / 'model'}", highlight=False, soft_wrap=True)
    console.print(f"report  {directory / 'report.html'}", highlight=False, soft_wrap=True)


def paired_line(test: Mapping[str, Any]) -> str:
    """A paired test in words: the first model less the second, on the same problems."""
    if not test["n"]:
        return "paired: no problem was answered by both"
    p = "below 0.0001" if test["p"] < 1e-4 else f"{test['p']:.4f}"
    return (
        f"paired on the same {test['n']} problems: {points(test['difference'])} "
        f"[{signed(test['low'])}, {signed(test['high'])}], p {p} ({test['test']})"
    )


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
            signed(s["gain"]["total"]) if s["gain"] else UNKNOWN,
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
    """The accuracy of each stage, and of each state of the thinking switch."""
    return {
        f"{s['name']} {switch}".rstrip(): figures["accuracy"]
        for s in summary["stages"]
        for switch, figures in switched(s)
        if figures["accuracy"] is not None
    }


def mean_sd(values: list[float]) -> str:
    """Shares as percent, mean ± standard deviation over seeds."""
    if len(values) < 2:
        return percent(values[0] if values else None)
    mean, deviation = statistics.mean_sd(values)
    return f"{100 * mean:.1f} ± {100 * deviation:.1f}"
