"""Tasks by name. Nothing heavy is imported before a task is loaded."""

import inspect
from collections.abc import Mapping
from importlib import import_module
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from whet.errors import RecipeError, did_you_mean
from whet.tasks.budget import Budgeted
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
    """The task of that name with its options; the option `budget` asks for a length too
    (`tasks.budget`).

    Raises RecipeError for a name or an option that there is not.

    >>> load("chian")
    Traceback (most recent call last):
    whet.errors.RecipeError: unknown task 'chian'; did you mean 'chain'?
    """
    if "budget" in options:
        asked = options.pop("budget")
        if not isinstance(asked, Mapping):
            raise RecipeError(
                f"task {name}: budget = {asked!r}; it must be a table such as {{ min = 100, max = 4000 }}"
            )
        return Budgeted(load(name, **options), asked)
    prefix, colon, rest = name.partition(":")
    if prefix == "gym" and rest:
        entry, fixed = "gym:NAME", {"dataset": rest}
    elif prefix == "hf" and rest:
        entry, fixed = "hf:OWNER/NAME", {"path": name}
    else:
        entry, fixed = name, {}
    if entry not in _TASKS or (colon and not fixed):
        raise RecipeError(f"unknown task {name!r}{did_you_mean(name, _TASKS)}")
    module, _, kind = _TASKS[entry][0].partition(":")
    made = getattr(import_module(module), kind)
    _check(name, made, options, fixed)
    return made(**fixed, **options)


def _check(name: str, made: type, options: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Every option known and of its type, none missing."""
    parameters = inspect.signature(made).parameters
    known = {k: p for k, p in parameters.items() if k not in fixed and p.kind is not p.VAR_KEYWORD}
    types = get_type_hints(made.__init__)
    for key, value in options.items():
        if key in fixed:
            raise RecipeError(f"task {name}: the task's name says what {key} is; leave it out")
        if key in known:
            allowed = get_args(types[key]) if isinstance(types[key], UnionType) else (types[key],)
            if not any(_is(value, kind) for kind in allowed):
                words = " or ".join(kind.__name__ for kind in allowed if kind is not type(None))
                raise RecipeError(f"task {name}: {key} = {value!r}; it must be {words}")
        elif len(known) + len(fixed) == len(parameters):
            raise RecipeError(f"task {name}: unknown option {key!r}{did_you_mean(key, known)}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in options:
            raise RecipeError(f"task {name}: the option {key!r} is missing")


def _is(value: object, kind: type) -> bool:
    """Whether a value from a recipe is of a type; a whole number will do for a float, but True is
    no number.
    """
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else get_origin(kind) or kind)
