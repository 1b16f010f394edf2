"""`whet run`: one run of a recipe, or one for each of several seeds."""

import argparse
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any, NamedTuple

from rich.console import Console

from whet import config
from whet.cli import terminal
from whet.cli.arguments import add_recipe
from whet.config.load import load_recipe
from whet.errors import RecipeError

SEEDS = re.compile(r"seed=(-?\d+)\.\.(-?\d+)")


class Way(NamedTuple):
    """How a run begins: anew, in place of another; where it stopped; or with one stage, alone."""

    overwrite: bool = False
    resume: bool = False
    only: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, "stage.rl.steps=10; seed=1..5 runs five seeds")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="where runs are kept (default: runs)"
    )
    parser.add_argument(
        "--only", metavar="STAGE", help="run this stage of a finished run once more, alone"
    )
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    parser.add_argument("--overwrite", action="store_true", help="replace a run of the same name")


def call(arguments: argparse.Namespace) -> int:
    way = Way(arguments.overwrite, arguments.resume, arguments.only)
    path, runs, pairs = arguments.recipe, arguments.runs, arguments.pairs
    if way.resume and (way.overwrite or way.only is not None):
        other = "--overwrite" if way.overwrite else "--only"
        raise RecipeError(f"--resume goes on with a run; drop {other}")
    overrides = [word for word in pairs if not SEEDS.fullmatch(word)]
    ranges = [match for word in pairs if (match := SEEDS.fullmatch(word))]
    if not ranges:
        recipe = load_recipe(path, overrides)
        one_run(recipe, runs / recipe.name, way)
        return 0
    if way.only is not None:
        raise RecipeError("--only reruns a stage of one run; give one seed")
    first, last = map(int, ranges[-1].groups())
    if not 0 <= last - first < 1000:
        raise RecipeError(f"{ranges[-1].group()}: give a rising range, such as seed=1..5")
    recipes = [load_recipe(path, [*overrides, f"seed={s}"]) for s in range(first, last + 1)]
    summaries: list[Mapping[str, Any]] = []
    for recipe in recipes:
        directory = runs / f"{recipe.name}-seed{recipe.seed}"
        # of a range that was stopped, some runs may not have begun
        begun = way.resume and (directory / "recipe.toml").is_file()
        summaries.append(one_run(recipe, directory, way if begun else way._replace(resume=False)))
    Console().print(terminal.seeds_table(summaries))
    return 0


def one_run(recipe: config.Recipe, directory: Path, way: Way) -> dict[str, Any]:
    from whet import report
    from whet.pipeline import pipeline
    from whet.pipeline.resume import rerun, resume

    console = Console()
    if way.only is None and not way.resume:
        pipeline.prepare(directory, way.overwrite)
    display = terminal.Terminal(console)
    try:
        with stopping() as stop:
            if way.only is not None:
                summary = rerun(recipe, directory, way.only, display)
            else:
                begin = resume if way.resume else pipeline.run
                summary = begin(recipe, directory, display, stop)
    finally:
        display.end()
    report.write(directory)
    terminal.closing(console, summary, directory)
    return summary


@contextmanager
def stopping() -> Iterator[Event]:
    """Within it, the first Ctrl-C or SIGTERM sets the event; a second ends the program at once.

    A run whose event is set keeps its step and stops.
    """
    stop = Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print(
            "\nwhet: stopping after this step; once more to leave at once",
            file=sys.stderr,
            flush=True,
        )

    in_main_thread = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
