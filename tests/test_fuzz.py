"""Recipes whose text was changed, overrides, and values of rewards of one's own: taken, or refused
in one line. Never anything else.

Recipes whose values are odd and broken data files: test_fuzz_recipes.py, test_fuzz_data.py; the
command line itself: test_fuzz_cli.py.
"""

import json
import math
import random
import tomllib
from pathlib import Path

from whet.config import load as recipes
from whet.errors import WhetError, one_line
from whet.rewards.custom.function import UserFunction, Failed
from whet.rollout.rollout import finite
from whet.types import Problem, Score

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))
ODD = [
    None, True, -1, 0, 2**63, 10**400, -0.0, 1e308, math.nan, math.inf, "", "x" * 5000, "\0", "\n", "\ud800", "ﷺ<|im_end|>", "nan",
    [], [[]], {}, {"a": {"b": [1, {"c": None}]}}, [1, "a", {}], "../../etc/passwd", "hf:", "a:b", "__import__('os')",
]  # fmt: skip


def refused(call):
    """Whether it was; in one line, whatever it is."""
    try:
        call()
    except WhetError as error:
        said = one_line(error)  # as the command line prints it
        assert 0 < len(said) < 2100 and said.isprintable(), repr(said)
        assert "Traceback" not in said
        return True
    return False


def places(held, path=()):
    """Every place in nested data."""
    inside = (
        held.items()
        if isinstance(held, dict)
        else enumerate(held)
        if isinstance(held, list)
        else ()
    )
    for key, value in inside:
        yield (*path, key)
        yield from places(value, (*path, key))


def test_recipes_whose_text_was_changed(tmp_path):
    rng, path, told = random.Random(2), tmp_path / "r.toml", []
    texts = [p.read_bytes() for p in RECIPES]
    for _ in range(1500):
        text = bytearray(rng.choice(texts))
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(text))
            text[at : at + rng.randrange(4)] = (
                rng.randbytes(rng.randrange(4))
                if rng.random() < 0.5
                else b"[]=\"{}',#"[rng.randrange(9) :][:1]
            )
        path.write_bytes(text)
        told.append(refused(lambda: recipes.load(path)))
    assert sum(told) > 700


def test_overrides():
    rng, plain = random.Random(3), [tomllib.loads(p.read_text()) for p in RECIPES]
    for _ in range(1000):
        data = json.loads(json.dumps(rng.choice(plain)))
        key = (
            ".".join(str(k) for k in rng.choice(list(places(data))))
            if rng.random() < 0.7
            else rng.choice(["", "=", "a..b", "stage.=", "é"])
        )
        text = key + rng.choice(["=", "", "=="]) + str(rng.choice(ODD))
        refused(lambda data=data, text=text: (recipes.override(data, text), recipes.parse(data)))


def test_values_of_a_reward_of_one_s_own(tmp_path):
    rng, problem = random.Random(5), Problem("p", ({"role": "user", "content": "?"},))
    (tmp_path / "own.py").write_text("def one(prompt, sample): ...\ndef many(completions): ...\n")
    failed = 0
    for i in range(1500):
        reward = UserFunction(f"{tmp_path / 'own.py'}:{('one', 'many')[i % 2]}", {})
        odd = rng.choice(ODD)
        values = [
            *ODD,
            0.5,
            (1, 2),
            b"1",
            object(),
            1j,
            range(3),
            Score(odd),
            Score(1.0, odd),
            Score(1.0, "scored", {"a": odd}),
        ]
        value = rng.choice(
            [*values, Score(1.0, "scored", odd), Score(1.0, "wrong", {"a": 1.0}, odd)]
        )
        value = value if i % 2 == 0 else rng.choice([value, [value], [value] * 2, [0.5, value]])
        reward.function = lambda *given, value=value, **named: value
        try:
            scores = reward.score([problem] * 2, ["a", "b"])
        except Failed as error:  # the answers' error: told, logged, never trained on
            assert "\n" not in str(error)
            failed += 1
            continue
        for score in map(finite, scores):
            json.dumps(
                [score.value, score.status, dict(score.parts), score.reason], allow_nan=False
            )
            assert math.isfinite(score.value) and all(
                math.isfinite(v) for v in score.parts.values()
            )
    assert 500 < failed < 1500
