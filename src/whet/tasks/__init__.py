"""Tasks by name: where problems come from and what counts as solving them.

Nothing heavy is imported before a task is loaded. No model and no training here.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from whet.errors import RecipeError, did_you_mean
from whet.options import Option, Options
from whet.options import options as options_of
from whet.tasks.budget import Budget, Budgeted
from whet.types import Task

_TASKS = {
    "chain": (
        "whet.tasks.chain:Chain",
        "left-to-right arithmetic modulo 10: the smallest task on which thinking pays",
    ),
    "countdown": (
        "whet.tasks.countdown:Countdown",
        "reach a target from given numbers: the smallest on which searching pays",
    ),
    "knights": (
        "whet.tasks.knights:Knights",
        "knights and knaves: who always tells the truth, who never does",
    ),
    "taste": (
        "whet.tasks.taste:Taste",
        "a hidden taste in strings of letters, which can rank texts: for reward models",
    ),
    "mix": ("whet.tasks.mix:Mix", "several tasks as one, each by its weight"),
    "files": ("whet.tasks.files:Files", "questions and answers from a JSONL or Parquet file"),
    "hf:OWNER/NAME": ("whet.tasks.files:Files", "the same from a data set on the Hugging Face Hub"),
    "gym:NAME": (
        "whet.tasks.gym:Gym",
        "any reasoning-gym data set with its own scorer, such as gym:chain_sum",
    ),
}


def names() -> list[tuple[str, str]]:
    """(name, one line that describes it) of every task; capitals stand for what you fill in."""
    return [(name, about) for name, (_, about) in _TASKS.items()]


def load(name: str, **options: Any) -> Task:
    """The task of that name with its options; `budget`, which any task takes, asks for a length.

    Raises RecipeError for an unknown name and for options that do not fit.

    >>> load("chian")
    Traceback (most recent call last):
    whet.errors.RecipeError: unknown task 'chian'; did you mean 'chain'?
    """
    budget = options.pop("budget", None)
    entry, fixed = _entry(name)
    for key in fixed:
        if key in options:
            raise RecipeError(f"task {name}: the task's name says what {key} is; leave it out")
    task = _model(entry)(**fixed, **options)
    if budget is None:
        return task
    if not isinstance(budget, Mapping):
        raise RecipeError(
            f"task {name}: budget = {budget!r}; "
            "it must be a table such as { min = 100, max = 4000 }"
        )
    try:
        return Budgeted(task, Budget(**budget))
    except RecipeError as fault:
        raise RecipeError(f"task {name}: {fault}") from None


def options(name: str) -> list[Option]:
    """The options of a task, as `load` takes them. Raises RecipeError for an unknown name."""
    entry, fixed = _entry(name)
    own = [option for option in options_of(_model(entry)) if option.name not in fixed]
    budget = Option("budget", "table", "none", "asks for a length in the prompt, and draws it")
    return [*own, budget, *options_of(Budget, "budget.")]


def model(name: str) -> type[Options]:
    """The class of a task, whose fields are its options. Raises RecipeError for an unknown name."""
    return _model(_entry(name)[0])


def _entry(name: str) -> tuple[str, dict[str, str]]:
    """(the name in the table of tasks, the options that the task's name itself sets)."""
    prefix, colon, rest = name.partition(":")
    entry, fixed = name, dict[str, str]()
    if prefix == "gym" and rest:
        entry, fixed = "gym:NAME", {"dataset": rest}
    elif prefix == "hf" and rest:
        entry, fixed = "hf:OWNER/NAME", {"path": name}
    if entry not in _TASKS or (colon and not fixed):
        raise RecipeError(f"unknown task {name!r}{did_you_mean(name, _TASKS)}")
    return entry, fixed


def _model(entry: str) -> Any:
    module, _, kind = _TASKS[entry][0].partition(":")
    return getattr(import_module(module), kind)
