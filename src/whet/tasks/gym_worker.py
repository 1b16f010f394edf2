"""The worker's side of `gym:` tasks: makes reasoning-gym questions and runs its scorers.

The parent never imports this file.

Nine scorers hand the answer, a model's text, to Python's `eval` or to sympy's parser, which
evaluates too. Here `eval` is replaced by a reader of literals, and sympy sees only what its grammar
below admits. What is left, such as a slow simplification, is bounded by the worker's time and
memory.
"""

import ast
import re
import sys
from dataclasses import fields
from functools import lru_cache
from math import isfinite
from typing import Any

import reasoning_gym
from reasoning_gym.factory import DATASETS

from whet.errors import did_you_mean

EVALUATED = ("binary_matrix", "spiral_matrix", "string_insertion", "n_queens")
FUNCTIONS = "exp|log|ln|sqrt|sinh|cosh|tanh|sin|cos|tan|asin|acos|atan|sec|csc|cot|Abs|pi"
ALGEBRA = re.compile(
    rf"(?:\s|\d{{1,9}}+(?:\.\d{{1,9}}+)?(?!\d)|(?:{FUNCTIONS}|[a-zCEX])(?![A-Za-z_0-9])|[-+/()]|\*(?!\*)"
    r"|\*\*\s?(?:\d{1,2}|\(-?\d{1,2}(?:/\d{1,2})?\))(?![\d.]|\s*\*\*))++"
)
ARITHMETIC = re.compile(r"(?:\s|\d{1,6}+(?!\d)|[-+()]|\*(?!\*)|/(?!/))++")
FORMS = {  # the form that an answer must have before the scorer sees it
    "countdown": ARITHMETIC,
    "simple_integration": ALGEBRA,
    "intermediate_integration": ALGEBRA,
    "polynomial_multiplication": ALGEBRA,
    "prime_factorization": re.compile(r"\s*\d{1,12}(?:\s*×\s*\d{1,12})*\s*"),
    "game_of_life": re.compile(r"[\[\]0-9,\s]+"),
    "coin_flip": re.compile(r"\s*-?\d{1,40}(?:\.\d{1,40}|/[1-9]\d{0,39})?\s*"),
}
MAX_FORM = 500  # characters of an answer that has to have a form, but for a board
MAX_NESTING = 20


def has_form(name: str, text: str) -> bool:
    form = FORMS.get(name)
    if form is None:
        return True
    if name != "game_of_life" and len(text) > MAX_FORM:
        return False
    depth = deepest = 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        deepest = max(deepest, depth)
    return deepest <= MAX_NESTING and form.fullmatch(text) is not None


@lru_cache(maxsize=64)
def dataset(name: str, config: tuple[tuple[str, Any], ...], seed: int) -> Any:
    made = reasoning_gym.create_dataset(name, seed=seed, size=BLOCK, **dict(config))
    if name in EVALUATED:
        vars(sys.modules[type(made).__module__])["eval"] = ast.literal_eval
    return made


BLOCK = 64  # questions of one seed


@lru_cache(maxsize=4096)
def entry(name: str, config: tuple[tuple[str, Any], ...], seed: int, index: int) -> Any:
    return dataset(name, config, seed)[index]


def frozen(value: Any) -> Any:
    return tuple(frozen(v) for v in value) if isinstance(value, list) else value


def check(name: str, config: dict[str, Any]) -> str:
    """The fault of a data set's name or options, in words; empty where they are right."""
    if name not in DATASETS:
        return f"reasoning-gym has no data set {name!r}{did_you_mean(name, DATASETS)}"
    known = {field.name for field in fields(DATASETS[name][1])} - {"seed", "size"}
    for key in config:
        if key not in known:
            return f"unknown option {key!r}{did_you_mean(key, known | {'pool', 'partial'})}"
    try:
        dataset(name, tuple((key, frozen(value)) for key, value in config.items()), 0)
    except (AssertionError, TypeError, ValueError) as error:
        options = ", ".join(f"{key} = {value!r}" for key, value in config.items())
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"reasoning-gym refuses these options ({options}): {reason}"
    return ""


def score(
    name: str, config: tuple[tuple[str, Any], ...], seed: int, index: int, text: str
) -> float | None:
    """reasoning-gym's own score, within [0, 1]; None where the text is no answer."""
    if not has_form(name, text):
        return None
    value = float(dataset(name, config, seed).score_answer(text, entry(name, config, seed, index)))
    if not isfinite(value):
        raise ValueError(f"the scorer returned {value}")
    return min(1.0, max(0.0, value))


def serve(item: dict[str, Any]) -> Any:
    """One order: `names`, `check`, `make` (a block's questions and answers) or `score`."""
    if item["do"] == "names":
        return sorted(DATASETS)
    name = item["name"]
    if item["do"] == "check":
        return check(name, item["config"])
    config = tuple((key, frozen(value)) for key, value in item["config"].items())
    if item["do"] == "make":
        made = dataset(name, config, item["seed"])
        entries = [(i, made[i]) for i in range(item["count"])]
        # a reference that is no answer itself (an integral left unsolved) makes no question
        return [
            [i, e["question"], str(e["answer"])]
            for i, e in entries
            if has_form(name, str(e["answer"]))
        ]
    return score(name, config, item["seed"], item["index"], item["text"])
