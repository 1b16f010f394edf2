"""`whet eval`: measures one model, or two on the same problems."""

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from whet import config
from whet.cli import terminal
from whet.cli.arguments import option_values
from whet.errors import RecipeError
from whet.format import number, percent
from whet.options import faults

Figures = Mapping[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a Hugging Face directory or Hub id")
    parser.add_argument("--task", required=True, help="as `whet tasks` lists it")
    parser.add_argument("pairs", nargs="*", metavar="key=value", help="options of the task")
    parser.add_argument("--n", type=int, default=1, help="samples a problem (default 1)")
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--system", help="a system message before each problem")
    parser.add_argument(
        "--thinking", choices=("on", "off", "both"), help="the chat template's switch"
    )
    parser.add_argument(
        "--against",
        metavar="MODEL2",
        help="measure a second model on the same problems, and test the difference",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def call(arguments: argparse.Namespace) -> int:
    from whet.evaluation.measure import paired
    from whet.pipeline import pipeline

    evaluation = _evaluation(arguments)
    ask = config.Ask(system=arguments.system)
    task = config.Task(name=arguments.task, **option_values(arguments.pairs))
    console = Console(stderr=True)
    with console.status(f"measuring {arguments.model}"):
        one = pipeline.evaluate(arguments.model, task, ask, evaluation)
    result: dict[str, Any] = {"model": arguments.model, "task": arguments.task, **one.figures}
    if arguments.against is not None:
        with console.status(f"measuring {arguments.against}"):
            other = pipeline.evaluate(arguments.against, task, ask, evaluation)
        result["against"] = {"model": arguments.against, **other.figures}
        result["paired"] = paired(other, one)
        if one.off is not None and other.off is not None:
            result["thinking"]["off"]["paired"] = paired(other.off, one.off)
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        print_evaluation(result)
    return 0


def _evaluation(arguments: argparse.Namespace) -> config.Evaluation:
    """How to measure, as the command line says. Raises RecipeError."""
    words = {
        key: getattr(arguments, key) for key in config.Evaluation.model_fields if key != "samples"
    }
    try:
        return config.Evaluation(samples=arguments.n, **words)
    except ValidationError as error:
        raise RecipeError("; ".join(faults(error, config.Evaluation))) from None


def print_evaluation(result: Figures) -> None:
    """The figures as a table, a column for each model and each state of its thinking switch."""
    models = [result, *([result["against"]] if "against" in result else [])]
    table = Table(title=f"task {result['task']}", title_justify="left")
    table.add_column("")
    columns: list[Figures] = []
    for model in models:
        for switch, figures in terminal.switched(model):
            title = f"{model['model']}, thinking {switch}" if switch else model["model"]
            table.add_column(title, justify="right", overflow="fold")
            columns.append(figures)
    for label, cell in _rows(columns[0]):
        table.add_row(label, *map(cell, columns))
    console = Console()
    console.print(table)
    sampling = ", ".join(f"{k} {v}" for k, v in columns[0]["sampling"].items())
    console.print(f"sampling: {sampling}", highlight=False)
    if "paired" in result:
        off = result.get("thinking", {}).get("off")
        line = f"{'thinking on: ' if off else ''}{terminal.paired_line(result['paired'])}"
        console.print(line, highlight=False)
        if off:
            console.print(f"thinking off: {terminal.paired_line(off['paired'])}", highlight=False)


def _rows(figures: Figures) -> list[tuple[str, Callable[[Figures], str]]]:
    """(label, how a cell is written) of each row that the figures call for."""
    lengths = ("length", "length_right", "length_wrong")
    n = figures["sampling"]["n"]
    return [
        ("pass@1", lambda s: percent(s["accuracy"])),
        ("95 % interval", _interval),
        ("problems × samples", lambda s: f"{s['n']} × {s['sampling']['n']}"),
        *[
            (f"pass@{k}", lambda s, k=k: percent(s["pass_at"].get(k)))
            for k in figures["pass_at"]
            if k != "1"
        ],
        *(
            [(f"majority@{n}", lambda s: percent(s.get("majority")))]
            if "majority" in figures
            else []
        ),
        ("cut off", lambda s: percent(s["truncated"])),
        ("unparsed", lambda s: percent(s["unparsed"])),
        ("length, all · right · wrong", lambda s: " · ".join(number(s[k]) for k in lengths)),
        *[
            (f"{task}: pass@1 · length", lambda s, task=task: _by_task(s, task))
            for task in figures.get("by_task", {})
        ],
        *[
            (f"{mode}: share · accuracy", lambda s, mode=mode: _by_mode(s, mode))
            for mode in figures["modes"]
        ],
    ]


def _interval(figures: Figures) -> str:
    low, high = figures["low"], figures["high"]
    return number(None) if low is None else f"{100 * low:.1f} – {100 * high:.1f} %"


def _by_task(figures: Figures, task: str) -> str:
    own = figures.get("by_task", {}).get(task, {})
    return f"{percent(own.get('accuracy'))} · {number(own.get('length'))}"


def _by_mode(figures: Figures, mode: str) -> str:
    own = figures["modes"].get(mode, {})
    return f"{percent(own.get('share'))} · {percent(own.get('accuracy'))}"
