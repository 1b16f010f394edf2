"""What the commands do. Imported only when one runs, so that `whet --help` stays quick."""

import argparse
import json
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any, NamedTuple

import tomli_w
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from whet import config
from whet.cli import terminal
from whet.config.load import load_recipe, toml_value
from whet.errors import RecipeError

SEEDS = re.compile(r"seed=(-?\d+)\.\.(-?\d+)")


class Way(NamedTuple):
    """How a run begins: anew, where another stood; where it was stopped; or one stage of it, alone."""

    overwrite: bool = False
    resume: bool = False
    only: str | None = None


def run(path: Path, overrides: Sequence[str], runs: Path, way: Way) -> int:
    """One run, or one a seed where an override says seed=1..5."""
    if way.resume and (way.overwrite or way.only is not None):
        raise RecipeError(
            "--resume goes on with a run; drop " + ("--overwrite" if way.overwrite else "--only")
        )
    ranges = [m for m in (SEEDS.fullmatch(o) for o in overrides) if m]
    plain = [o for o in overrides if not SEEDS.fullmatch(o)]
    if not ranges:
        recipe = load_recipe(path, plain)
        one_run(recipe, runs / recipe.name, way)
        return 0
    if way.only is not None:
        raise RecipeError("--only reruns a stage of one run; give one seed")
    first, last = int(ranges[-1].group(1)), int(ranges[-1].group(2))
    if not 0 <= last - first < 1000:
        raise RecipeError(f"{ranges[-1].group(0)}: give a rising range, such as seed=1..5")
    loaded = [load_recipe(path, [*plain, f"seed={seed}"]) for seed in range(first, last + 1)]
    summaries: list[Mapping[str, Any]] = []
    for recipe in loaded:
        directory = runs / f"{recipe.name}-seed{recipe.seed}"
        there = (
            way.resume and (directory / "recipe.toml").is_file()
        )  # of a range some may not have begun
        summaries.append(one_run(recipe, directory, way if there else way._replace(resume=False)))
    Console().print(terminal.seeds_table(summaries))
    return 0


def one_run(recipe: config.Recipe, directory: Path, way: Way) -> dict[str, Any]:
    from whet import report
    from whet.pipeline import pipeline
    from whet.pipeline.resume import rerun, resume

    console = Console()
    if way.only is None and not way.resume:
        pipeline.prepare(directory, way.overwrite)
    shown = terminal.Terminal(console)
    try:
        with stopping() as stop:
            if way.only is not None:
                run = rerun(recipe, directory, way.only, shown)
            else:
                run = (resume if way.resume else pipeline.run)(recipe, directory, shown, stop)
    finally:
        shown.end()
    report.write(directory)
    terminal.closing(console, run, directory)
    return run


@contextmanager
def stopping() -> Iterator[Event]:
    """Within it, the first Ctrl-C or SIGTERM sets the event, which asks a run to keep its step and
    stop; a second ends the program at once.
    """
    stop = Event()

    def asked(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print(
            "\nwhet: stopping after this step; once more to leave at once",
            file=sys.stderr,
            flush=True,
        )

    numbers = (
        (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is threading.main_thread()
        else ()
    )
    before = [signal.signal(number, asked) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def show(path: Path, overrides: Sequence[str]) -> int:
    """The recipe with every key filled in, and each algorithm's row as it resolves."""
    from whet.algorithms.table import algorithm, cells

    recipe = load_recipe(path, overrides)
    print(tomli_w.dumps(recipe.model_dump(exclude_none=True)), end="")
    for stage in recipe.stage:
        if isinstance(stage, config.RL):
            resolved = tomli_w.dumps(cells(algorithm(stage.algorithm, stage.override)))
            print(
                f"\n# stage {stage.name}: {stage.algorithm}, every cell\n# "
                + resolved.strip().replace("\n", "\n# ")
            )
    return 0


def check(path: Path, overrides: Sequence[str], offline: bool = False) -> int:
    """A line for each thing looked at; 1 where any is not as it should be."""
    from whet.preflight.check import findings

    console, bad = Console(), 0
    for finding in findings(load_recipe(path, overrides), offline):
        bad += not finding.ok
        mark = "[green]ok  [/]" if finding.ok else "[red]FAIL[/]"
        console.print(
            f"{mark} [bold]{escape(finding.name)}[/]  {escape(finding.told)}",
            highlight=False,
            soft_wrap=True,
        )
    if bad:
        console.print(f"\n{bad} of these would make the run fail or mislead.", highlight=False)
    return int(bad > 0)


def tasks() -> int:
    from whet.tasks import names

    table = Table("task", "what it is", box=None, pad_edge=False)
    for name, about in names():
        table.add_row(f"[bold]{name}[/]", about)
    Console().print(table)
    return 0


def algorithms() -> int:
    """The table of algorithms, a row each, and where each comes from."""
    from whet.algorithms.table import TABLE, shown

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
        "\nA recipe's rl stage names a row (algorithm) and may override any cell (override).",
        highlight=False,
    )
    return 0


def evaluate(a: argparse.Namespace) -> int:
    """`whet eval`: one model, or two on the same problems."""
    from whet.evaluation.measure import paired
    from whet.pipeline import pipeline

    given = {"problems": a.problems, "samples": a.n, "temperature": a.temperature, "top_p": a.top_p}
    given |= {"top_k": a.top_k, "max_tokens": a.max_tokens, "seed": a.seed, "thinking": a.thinking}
    try:
        spec = config.Evaluation(**given)
    except ValidationError as error:
        faults = "; ".join(
            f"{f['loc'][0]}: {f['msg']} (given: {f['input']!r})" for f in error.errors()
        )
        raise RecipeError(faults) from None
    ask = config.Ask(system=a.system)
    task = config.Task(name=a.task, **options(a.pairs))
    console = Console(stderr=True)
    with console.status(f"measuring {a.model}"):
        one = pipeline.evaluate(a.model, task, ask, spec)
    told: dict[str, Any] = {"model": a.model, "task": a.task, **one.figures}
    if a.against is not None:
        with console.status(f"measuring {a.against}"):
            other = pipeline.evaluate(a.against, task, ask, spec)
        told["against"] = {"model": a.against, **other.figures}
        told["paired"] = paired(other, one)
        if one.off is not None and other.off is not None:
            told["thinking"]["off"]["paired"] = paired(other.off, one.off)
    if a.json:
        print(json.dumps(told, indent=1))
    else:
        print_evaluation(told)
    return 0


def options(words: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in words:
        key, equals, raw = word.partition("=")
        if not equals or not key.isidentifier():
            raise RecipeError(f"option {word!r}: write key=value")
        found[key] = toml_value(raw)
    return found


def print_evaluation(told: dict[str, Any]) -> None:
    table = Table(title=f"task {told['task']}", title_justify="left")
    models = [told, *([told["against"]] if "against" in told else [])]
    sides = [figures for model in models for _, figures in terminal.switched(model)]
    table.add_column("")
    for model in models:
        for switch, _ in terminal.switched(model):
            title = f"{model['model']}, thinking {switch}" if switch else model["model"]
            table.add_column(title, justify="right", overflow="fold")

    def row(label: str, cell: Any) -> None:
        table.add_row(label, *(cell(side) for side in sides))

    row("pass@1", lambda s: terminal.percent(s["accuracy"]))
    row(
        "95 % interval",
        lambda s: "–" if s["low"] is None else f"{100 * s['low']:.1f} – {100 * s['high']:.1f} %",
    )
    row("problems × samples", lambda s: f"{s['n']} × {s['sampling']['n']}")
    for k in sides[0]["pass_at"]:
        if k != "1":
            row(f"pass@{k}", lambda s, k=k: terminal.percent(s["pass_at"].get(k)))
    if "majority" in sides[0]:
        row(f"majority@{sides[0]['sampling']['n']}", lambda s: terminal.percent(s.get("majority")))
    row("cut off", lambda s: terminal.percent(s["truncated"]))
    row("unparsed", lambda s: terminal.percent(s["unparsed"]))
    row(
        "length, all · right · wrong",
        lambda s: " · ".join(
            terminal.number(s[k]) for k in ("length", "length_right", "length_wrong")
        ),
    )
    for name in sides[0].get("by_task", {}):

        def of(s: dict[str, Any], key: str, t: str = name) -> Any:
            return s.get("by_task", {}).get(t, {}).get(key)

        row(
            f"{name}: pass@1 · length",
            lambda s, of=of: (
                f"{terminal.percent(of(s, 'accuracy'))} · {terminal.number(of(s, 'length'))}"
            ),
        )
    for mode in sides[0]["modes"]:
        row(
            f"{mode}: share · accuracy",
            lambda s, m=mode: " · ".join(
                terminal.percent(s["modes"].get(m, {}).get(k)) for k in ("share", "accuracy")
            ),
        )
    sampling = ", ".join(f"{k} {v}" for k, v in sides[0]["sampling"].items())
    console = Console()
    console.print(table)
    console.print(f"sampling: {sampling}", highlight=False)
    if "paired" in told:
        off = told.get("thinking", {}).get("off")
        console.print(
            f"{'thinking on: ' if off else ''}{terminal.paired_line(told['paired'])}",
            highlight=False,
        )
        if off:
            console.print(f"thinking off: {terminal.paired_line(off['paired'])}", highlight=False)
