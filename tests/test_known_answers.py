"""`whet reward test`: a reward on answers whose verdict is known, and what it says of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from whet.cli.main import main
from whet.rewards.known_answers import Case, figures, try_cases
from whet.types import Problem, Score

CASES = [
    {
        "question": "6*3",
        "answer": "18",
        "right": ["\\boxed{18}", "18.0", "it is 17"],
        "wrong": ["\\boxed{19}", "no idea"],
    },
    {"id": "half", "answer": 0.5, "response": "1/2", "correct": False},
]
MINE = """
import os, time
def reward(prompt, sample, *, accept="18"):
    if "hang" in sample.text:
        time.sleep(60)
    if "die" in sample.text:
        os._exit(3)
    return sample.text == accept and prompt.meta["level"] == 2
"""


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def report(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["reward", "test", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_false_accepts_rejects_and_unparsed_are_counted(tmp_path, capsys):
    file = written(tmp_path / "cases.jsonl", CASES)
    code, result = report(capsys, "math", file)
    assert code == 1
    assert {k: result[k] for k in ("cases", "right", "false_accepts", "false_rejects", "unparsed",
        "unparsed_right")} == {
        "cases": 6, "right": 3, "false_accepts": 1, "false_rejects": 1, "unparsed": 1, "unparsed_right": 0,
    }  # fmt: skip
    assert [(c["id"], c["verdict"]) for c in result["cases_wrong"]] == [
        (f"{file}:1", "false reject"),
        ("half", "false accept"),
    ]
    assert 0 < result["median_seconds"] <= result["worst_seconds"] < 2
    assert main(["reward", "test", "math", file]) == 1
    shown = capsys.readouterr().out
    assert "false accepts" in shown and "'1/2' (paid 1)" in shown and "'it is 17' (paid 0)" in shown


def test_all_well_is_0(tmp_path, capsys):
    file = written(tmp_path / "cases.jsonl", [{"answer": "18", "right": ["18"], "wrong": ["19"]}])
    code, result = report(capsys, "math", file)
    assert code == 0 and result["cases_wrong"] == []


def test_an_own_function_that_hangs_or_dies_is_told_with_its_reason(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(MINE)
    rows = [
        {"answer": "x", "level": 2, "right": ["20", "hang"], "wrong": ["18", "die"]},
        {"answer": "x", "right": ["20"]},
    ]
    words = [
        f"{tmp_path}/mine.py:reward",
        written(tmp_path / "cases.jsonl", rows),
        "accept='20'",
        "limit={seconds=0.3}",
    ]
    code, result = report(capsys, *words)
    assert code == 1 and result["timeouts"] == 1 and result["errors"] == 2
    assert result["false_accepts"] == result["false_rejects"] == 0
    reasons = [c["reason"] for c in result["cases_wrong"]]
    assert (
        "limit 0.3 s" in reasons[0]
        and "exit code 3" in reasons[1]
        and "KeyError: 'level' (mine.py:8)" in reasons[2]
    )


def test_a_recipes_whole_reward(tmp_path, capsys):
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        'name = "r"\ntask = { name = "chain" }\n[[reward]]\nname = "math"\n[[reward]]\n'
        'name = "format"\nweight = 0.5\n'
        '[[stage]]\nkind = "sft"\nname = "s"\nsteps = 1\n'
    )
    file = written(
        tmp_path / "cases.jsonl",
        [{"answer": "7", "right": ["7"], "wrong": ["<think></think><answer>8</answer>"]}],
    )
    assert report(capsys, str(recipe), file)[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mth", "FILE"], "did you mean 'math'"),
        (["math", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
        (["math", "FILE", "secnds=2"], "did you mean 'seconds'"),
        (["task", "FILE"], "needs a recipe"),
        (["math", "EMPTY"], "empty"),
        (["math", "ODD"], "response must be a text and correct true or false"),
        (["math", "LIST"], "right must be a list"),
        (["math", "NONE"], "holds no case"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, words, message):
    files = {
        "FILE": CASES, "EMPTY": [], "ODD": [{"answer": "1", "response": "1"}],
        "LIST": [{"answer": "1", "right": "1"}],
        "NONE": [{"answer": "1"}],
    }  # fmt: skip
    named = [written(tmp_path / "x.jsonl", files[w]) if w in files else w for w in words]
    assert main(["reward", "test", *named]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_built_in_rewards_are_listed(capsys):
    assert main(["reward", "list"]) == 0
    assert "lcpo_exact" in capsys.readouterr().out


class Once:
    """Slow the first time, as a reward whose worker starts."""

    asked = 0

    def score(self, problems, texts, samples=None):
        import time

        self.asked += 1
        time.sleep(0.15 if self.asked == 1 else 0)
        return [Score(1.0) for _ in texts]


def test_a_workers_start_is_no_answers_time():
    problem = Problem("p", ({"role": "user", "content": "?"},), "1")
    reward = Once()
    result = figures(try_cases(reward, [Case(problem, "1", True)] * 3))
    assert result["worst_seconds"] < 0.1 and reward.asked == 4
