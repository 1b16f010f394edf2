"""Ten thousand recipes, data files and values of rewards, broken in every way: taken, or refused in one line. Never anything else."""

import copy
import json
import math
import random
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tomli_w

from whet import recipes
from whet.errors import WhetError, one_line
from whet.rewards.custom import CustomReward, Failed
from whet.rollout import finite
from whet.tasks import load as load_task
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
    inside = held.items() if isinstance(held, dict) else enumerate(held) if isinstance(held, list) else ()
    for key, value in inside:
        yield (*path, key)
        yield from places(value, (*path, key))


def mutated(data, rng):
    """A deep copy with one to three things changed."""
    held = json.loads(json.dumps(data))
    for _ in range(rng.randrange(1, 4)):
        found = list(places(held))
        if not found:
            return held
        *path, last = rng.choice(found)
        at = held
        for key in path:
            at = at[key]
        how = rng.randrange(6)
        if how == 0 and isinstance(at, dict):
            at[str(last)[::-1] + rng.choice("_x9é ")] = at.pop(last)  # another key
        elif how == 1:
            del at[last]
        elif how == 2 and isinstance(at, list):
            at.append(copy.deepcopy(rng.choice(ODD)))
        elif how == 3:
            at[last] = [at[last]]
        elif how == 4:
            at[last] = {"name": at[last]}
        else:
            at[last] = copy.deepcopy(rng.choice(ODD))
    return held


def test_recipes_that_were_changed():
    rng, plain = random.Random(1), [tomllib.loads(p.read_text()) for p in RECIPES]
    told = [refused(lambda: recipes.parse(mutated(rng.choice(plain), rng))) for _ in range(4000)]
    assert 2500 < sum(told) < 4000  # some changes are harmless


def test_recipes_whose_text_was_changed(tmp_path):
    rng, path, told = random.Random(2), tmp_path / "r.toml", []
    texts = [p.read_bytes() for p in RECIPES]
    for _ in range(1500):
        text = bytearray(rng.choice(texts))
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(text))
            text[at : at + rng.randrange(4)] = (
                rng.randbytes(rng.randrange(4)) if rng.random() < 0.5 else b"[]=\"{}',#"[rng.randrange(9) :][:1]
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


def row(rng):
    def word():
        return rng.choice(
            ["2+2", "", "<|im_start|>", "<eos>", "é\u202e", "\0", "\ud800", "9" * 2000, 4, None, [], {}, True, math.nan]
        )

    held = {rng.choice(["question", "answer", "response", "messages", "x"]): word() for _ in range(rng.randrange(5))}
    if rng.random() < 0.3:
        held["messages"] = rng.choice(
            [[], [{}], [{"role": word(), "content": word()}], "x", [1], [{"role": "user", "content": "a"}] * 3]
        )
    return held


def test_data_files(tmp_path):
    rng, told = random.Random(4), []
    options = [
        {},
        {"response": "response"},
        {"messages": "messages"},
        {"question": "x"},
        {"answer_after": "####"},
        {"test_share": 0.5},
    ]
    for i in range(2000):
        path = tmp_path / f"{i}.jsonl"
        good = [{"question": f"{j}+1", "answer": str(j + 1), "response": "2"} for j in range(rng.randrange(6))]
        lines = [json.dumps(r) for r in [*good, *(row(rng) for _ in range(rng.randrange(3)))]]
        rng.shuffle(lines)
        data = "\n".join(lines).encode()
        if rng.random() < 0.4:
            at = rng.randrange(len(data) + 1)
            data = data[:at] + rng.randbytes(rng.randrange(6)) + data[at + rng.randrange(6) :]
        path.write_bytes(data)

        given = rng.choice(options)

        def read(path=path, given=given):
            task = load_task("files", path=str(path), **given)
            for split in ("train", "test"):
                size = task.size(split)
                for problem in task.problems(split, min(size, 4), 0):
                    task.score([problem], [rng.choice(["2", "", "\\boxed{3}"])])

        told.append(refused(read))
    assert 200 < sum(told) < 2000


def test_values_of_a_reward_of_one_s_own(tmp_path):
    rng, problem = random.Random(5), Problem("p", ({"role": "user", "content": "?"},))
    (tmp_path / "own.py").write_text("def one(prompt, sample): ...\ndef many(completions): ...\n")
    failed = 0
    for i in range(1500):
        reward = CustomReward(f"{tmp_path / 'own.py'}:{('one', 'many')[i % 2]}", {})
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
        value = rng.choice([*values, Score(1.0, "scored", odd), Score(1.0, "wrong", {"a": 1.0}, odd)])
        value = value if i % 2 == 0 else rng.choice([value, [value], [value] * 2, [0.5, value]])
        reward.function = lambda *given, value=value, **named: value
        try:
            scores = reward.score([problem] * 2, ["a", "b"])
        except Failed as error:  # the answers' error: told, logged, never trained on
            assert "\n" not in str(error)
            failed += 1
            continue
        for score in map(finite, scores):
            json.dumps([score.value, score.status, dict(score.parts), score.reason], allow_nan=False)
            assert math.isfinite(score.value) and all(math.isfinite(v) for v in score.parts.values())
    assert 500 < failed < 1500


@pytest.mark.parametrize("seed", range(12))
def test_the_command_line_itself(seed, tmp_path):
    rng = random.Random(seed)
    path = tmp_path / "broken.toml"
    while True:  # one that is refused
        data = mutated(tomllib.loads(rng.choice(RECIPES).read_text()), rng)
        try:
            path.write_text(tomli_w.dumps(data), encoding="utf-8", errors="surrogatepass")
        except (TypeError, ValueError, AttributeError):
            continue
        if refused(lambda: recipes.load(path)):
            break
    done = subprocess.run(
        [sys.executable, "-m", "whet.cli", "run", str(path), "--runs", str(tmp_path)], capture_output=True, check=False
    )
    said = done.stderr.decode(errors="replace")
    assert done.returncode == 2 and "Traceback" not in said
    assert said.startswith("whet: ") and len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [path]  # and nothing was left behind
