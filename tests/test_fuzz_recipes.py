"""Recipes that nobody would write, up to where a run would begin: each is accepted, or refused in
one line; nothing else ever happens.
"""

import copy
import random
import tomllib
from collections import Counter
from datetime import date
from pathlib import Path

import pytest
import tomli_w

from whet import config
from whet.config.load import load_recipe, override_recipe, parse_recipe
from whet.errors import ModelError, WhetError, one_line
from whet.model import pretrained
from whet.pipeline.setup import build_reward
from whet.pipeline.validate import validate
from whet.tasks import load as load_task

CASES = 6000
SOURCES = {
    p.stem: p.read_text() for p in sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))
}
HERE = {"chain", "countdown", "knights", "taste", "mix"}  # tasks that read no file
WORDS = [
    "", " ", "previous", "new", "start", "rl", "base", "none", "math", "task", "<|im_end|>", "a/b",
    "../x", "~", "é\u202e\u0000", "\n\n", "x" * 5000, "hf:a/b", "gym:x", "a:b:c", "nan",
    "{budget}",
]  # fmt: skip
NUMBERS = [
    0, 1, -1, 2, 3, -7, 0.0, -0.0, 0.5, 1.0, 1.5, -1e-300, 1e308, 1e-308, 2**31, 2**63,
    -(2**63) - 1, 10**30, 10**400, float("nan"), float("inf"), float("-inf"),
]  # fmt: skip
DEEP = 200
LONG = ["[" * 9999, "9" * 5000, "{a=" * 3000, "0x" + "f" * 9999, "a." * 3000]


def value(rng):
    """Anything that TOML can say, and a little more."""
    kind = rng.randrange(9)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 5:
        return rng.choice(WORDS)
    if kind == 5:
        return rng.choice([True, False, date(2026, 1, 1)])
    if kind == 6:
        return [value(rng) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {
            rng.choice([*WORDS[2:8], "lr", "steps", "name", "kind"]): value(rng)
            for _ in range(rng.randrange(4))
        }
    deep = 1
    for _ in range(rng.randrange(DEEP)):
        deep = [deep] if rng.random() < 0.5 else {"x": deep}
    return deep


def places(table, spots=None):
    """(table or list, key) of everything in a recipe."""
    spots = [] if spots is None else spots
    for key in list(table) if isinstance(table, dict) else range(len(table)):
        spots.append((table, key))
        if isinstance(table[key], dict | list):
            places(table[key], spots)
    return spots


def misspelt(word, rng):
    at = rng.randrange(len(word) + 1)
    return rng.choice(
        [word[:at] + word[at + 1 :], word[:at] + rng.choice("aé_ -.") + word[at:], word.upper()]
    )


def mutated(mutant, rng):
    """The recipe after one to three things have happened to it."""
    mutant = copy.deepcopy(mutant)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at, key = rng.choice(places(mutant))
        others = [(a, k) for a, k in places(mutant)]
        match rng.randrange(8):
            case 0:
                at[key] = value(rng)
            case 1 | 2 | 5 if isinstance(at[key], int | float | str):
                at[key] = rng.choice(WORDS if isinstance(at[key], str) else NUMBERS)
            case 3 if isinstance(at, dict):
                at[misspelt(key, rng)] = at.pop(key)
            case 4:
                del at[key]
            case _:
                other, its = rng.choice(others)
                at[key] = copy.deepcopy(other[its])
    return mutant


def refused(call) -> bool:
    """Whether it is refused, and that in one line; what else is raised fails the test, but for what
    the command line tells in one line too.
    """
    try:
        call()
    except OSError as error:
        assert error.strerror and error.filename
        return True
    except WhetError as error:
        assert one_line(error).isprintable() and 0 < len(one_line(error)) < 2100
        return True
    return False


def validated(recipe):
    """All that is looked at before a run begins, but what would read files or the network."""
    for stage in recipe.stage:
        if isinstance(stage, config.RL):
            _ = stage.row
    if recipe.task.name not in HERE:
        return
    if recipe.task.name == "mix":
        parts = recipe.task.options.get("parts")
        named = (
            [p.get("name") for p in parts if isinstance(p, dict)] if isinstance(parts, list) else []
        )
        if not all(not isinstance(name, str) or name in HERE for name in named):
            return
    task = load_task(recipe.task.name, **recipe.task.options)
    validate(recipe, task)
    for parts in (
        recipe.reward,
        *(s.reward for s in recipe.stage if isinstance(s, config.Draws) and s.reward),
    ):
        if not any(":" in part.name for part in parts):
            build_reward(recipe, parts, task, Path("nowhere"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def none(name):
        raise ModelError(f"{name} is not here")

    monkeypatch.setattr(pretrained, "_download", none)


def test_thousands_of_changed_recipes_are_accepted_or_refused_in_one_line():
    rng, refusals = random.Random(1), Counter()
    data = [tomllib.loads(text) for text in SOURCES.values()]
    for _ in range(CASES * 2 // 3):
        mutant = mutated(rng.choice(data), rng)
        refusals[refused(lambda mutant=mutant: validated(parse_recipe(mutant)))] += 1
    assert min(refusals.values()) > CASES / 20


def test_thousands_of_changed_texts_of_recipes_are_accepted_or_refused_in_one_line(tmp_path):
    rng, refusals, path = random.Random(2), Counter(), tmp_path / "r.toml"
    for _ in range(CASES // 6):
        text = rng.choice(list(SOURCES.values())).encode()
        at = rng.randrange(len(text))
        match rng.randrange(6):
            case 5:
                at = rng.choice([i for i, c in enumerate(text) if 48 <= c < 58])
                text = text[:at] + str(rng.randrange(10)).encode() + text[at + 1 :]
            case 0:
                text = text[:at] + rng.randbytes(rng.randrange(1, 9)) + text[at:]
            case 1:
                text = text[:at]
            case 2:
                text = text[:at] + text[at + rng.randrange(20) :]
            case 3:
                text = (
                    text[:at]
                    + rng.choice(['"', "[", "{", "]]", "=", "\n", "\x00", "é", "'''", "#"]).encode()
                    + text[at:]
                )
            case _:
                text += f"\nx = {rng.choice(LONG)}".encode()
        path.write_bytes(text)
        refusals[refused(lambda: validated(load_recipe(path)))] += 1
    assert min(refusals.values()) > CASES / 400


def test_a_thousand_overrides_are_accepted_or_refused_in_one_line():
    rng, refusals = random.Random(3), Counter()
    data = [tomllib.loads(text) for text in SOURCES.values()]
    words = [
        "stage",
        "rl",
        "base",
        "optimizer",
        "lr",
        "seed",
        "task",
        "name",
        "model",
        "shape",
        "0",
        "",
        "reward",
        "x",
    ]
    for _ in range(CASES // 6):
        mutant = copy.deepcopy(rng.choice(data))
        key = rng.choice(
            [
                "seed",
                "stage.rl.steps",
                "model.shape.hidden",
                "evaluation.problems",
                "stage.base.batch",
            ]
        )
        if rng.random() < 0.7:
            key = ".".join(rng.choice(words) for _ in range(rng.randrange(1, 5)))
        shown = rng.choice([lambda v: v, lambda v: tomli_w.dumps({"x": v}).partition("=")[2]])(
            rng.choice(WORDS)
        )
        text = rng.choice(
            [
                f"{key}={rng.choice(NUMBERS[:18])}",
                f"{key}={shown}",
                f"{key}={'[' * 9999}",
                key,
                f"{key}={'9' * 5000}",
            ]
        )

        def resolved(mutant=mutant, text=text):
            override_recipe(mutant, text)
            validated(parse_recipe(mutant))

        refusals[refused(resolved)] += 1
    assert min(refusals.values()) > CASES / 400
