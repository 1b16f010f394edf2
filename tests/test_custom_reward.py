"""Your own reward functions, whet's form and TRL's: what they are given, and one line for whatever
goes wrong in them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whet.errors import RewardError
from whet.rewards import load
from whet.types import Problem, Sample, Score

PROBLEMS = [
    Problem(
        "a",
        ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}),
        "4",
        "sums",
        {"level": 1},
    ),
    Problem("b", ({"role": "user", "content": "3+3?"},), "6", "sums", {"level": 2, "hint": "even"}),
]


def sample(text: str, chosen: int = 2) -> Sample:
    tokens = np.arange(1 + chosen)
    mask = tokens > 0
    return Sample(tokens, mask, np.where(mask, -0.5, 0.0).astype(np.float32), text, "stop")


Own = Callable[..., str]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Own:
    """Writes a reward file; gives `path:function`."""
    monkeypatch.chdir(tmp_path)

    def write(body: str, function: str = "reward", name: str = "mine.py") -> str:
        (tmp_path / name).write_text(body)
        return f"{tmp_path / name}:{function}"

    return write


def fails(message: str, spec: str, **options: Any) -> None:
    """Loading refuses, or the score is an error's, in one line that says so."""
    try:
        scores = load(spec, **options).score([PROBLEMS[0]] * 2, ["4", "7"])
        (reason, *_) = [s.reason for s in scores if s.status == "error"]
    except RewardError as error:
        reason = str(error)
    assert message in reason
    assert "\n" not in reason and reason.replace("'", "").startswith(f"reward {spec}")


def test_own_function_sees_the_problem_and_the_sample(own: Own) -> None:
    spec = own(
        "def reward(prompt, sample):\n"
        "    assert prompt.messages[-1]['content'] == prompt.question and prompt.meta['level'] "
        "and prompt.id\n"
        "    assert sample.finish == 'stop' and len(sample.tokens) == sample.length + 1\n"
        "    return (sample.text == prompt.answer) + 0.1 * sample.length\n"
    )
    scores = load(spec).score(PROBLEMS, ["4", "7"], [sample("4"), sample("7", chosen=5)])
    assert [s.value for s in scores] == [1.2, 0.5]
    assert {s.status for s in scores} == {"scored"} and scores[0].parts == {}


def test_own_function_by_module_name_and_with_options(own: Own) -> None:
    own(
        "def reward(prompt, sample, *, bonus=1.0):\n    return bonus * (sample.text == prompt.answer)\n",
        name="whet_own_one.py",
    )
    assert [
        s.value for s in load("whet_own_one:reward", bonus=2.5).score(PROBLEMS, ["4", "7"])
    ] == [2.5, 0.0]
    fails("unknown option 'bonsu'; did you mean 'bonus'", "whet_own_one:reward", bonsu=1)
    fails("unknown option 'prompt'", "whet_own_one:reward", prompt=1)


def test_own_function_may_return_a_score_or_an_array_number(own: Own) -> None:
    spec = own(
        "import numpy as np\nfrom whet.types import Score\n"
        "def reward(prompt, sample):\n    return Score(0.0, 'unparsed') if sample.text == '7' "
        "else np.float32(0.5)\n"
    )
    assert load(spec).score(PROBLEMS, ["4", "7"]) == [Score(0.5), Score(0.0, "unparsed")]


def test_text_alone_has_no_tokens(own: Own) -> None:
    fails(
        "sample.length is not known here",
        own("def reward(prompt, sample):\n    return sample.length\n"),
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "def reward(prompt, sample):\n    x = 1\n    return helper(sample)\ndef helper(s):\n"
            "    return 1 / 0\n",
            "division by zero (mine.py:5)",
        ),
        (
            "def reward(prompt, sample):\n    return float(sample.text + 'x')\n",
            "(mine.py:2), at problem 'a'",
        ),
        ("import json\ndef reward(prompt, sample):\n    return json.loads('{')\n", "(mine.py:3)"),
        ("import sys\ndef reward(prompt, sample):\n    sys.exit(0)\n", "SystemExit: 0 (mine.py:3)"),
        ("def reward(prompt, sample):\n    raise ValueError('two\\nlines')\n", "two lines"),
        ("def reward(prompt, sample):\n    return 'good'\n", "returned 'good' for problem 'a'"),
        ("def reward(prompt, sample):\n    pass\n", "returned None"),
        ("def reward(prompt, sample):\n    return float('nan')\n", "returned nan"),
        ("def reward(prompt, sample):\n    return float('-inf')\n", "returned -inf"),
        (
            "from whet.types import Score\ndef reward(prompt, sample):\n    return Score(float('nan'))\n",
            "returned nan",
        ),
        ("def reward(text):\n    return 1.0\n", "takes (text)"),
        ("def reward(prompt, sample, more):\n    return 1.0\n", "takes (prompt, sample, more)"),
        ("async def reward(prompt, sample):\n    return 1.0\n", "is async"),
        ("reward = 3\n", "is a int, not a function"),
        ("def rewrd(prompt, sample):\n    return 1.0\n", "did you mean 'rewrd'"),
        ("x = 1\nimport whet_nowhere\n", "No module named 'whet_nowhere' (mine.py:2)"),
        ("def reward(prompt, sample)\n    return 1.0\n", "(mine.py:1)"),
        ("x = 1\nraise SystemExit(0)\n", "SystemExit: 0 (mine.py:2)"),
    ],
)
def test_a_fault_in_an_own_function_is_one_line_with_its_place(
    own: Own, body: str, message: str
) -> None:
    fails(message, own(body))


def test_what_cannot_be_found_is_named(own: Own) -> None:
    own("", name="whet_own_two.py")
    fails(
        "no module 'whet_own_too' here or installed; did you mean 'whet_own_two'",
        "whet_own_too:reward",
    )
    fails("there is no file", "whet_own_too.py:reward")
    fails("did you mean 'whet_own_two.py'", "whet_own_too.py:reward")
    fails("neither module:function", "a b:reward")
    own("import whet_nowhere\n", name="whet_own_three.py")
    fails(
        "importing whet_own_three failed: ModuleNotFoundError: No module named 'whet_nowhere'",
        "whet_own_three:reward",
    )


def test_a_trl_function_of_texts_runs_unmodified(own: Own) -> None:
    spec = own(
        "def reward(prompts, completions, answer, level, hint, **kwargs):\n"
        "    assert kwargs['completion_ids'] == [[1, 2], [1, 2, 3]] and hint in ([None] * 2, ['even'] * 2)\n"
        "    assert prompts in (['2+2?'] * 2, ['3+3?'] * 2)\n"
        "    return [float(c == a) * l for c, a, l in zip(completions, answer, level)]\n"
    )
    samples = [sample("4"), sample("6", chosen=3)]
    scores = load(spec).score([p for p in PROBLEMS for _ in "12"], ["4", "6"] * 2, samples * 2)
    assert [(s.value, s.reason) for s in scores] == [(1.0, ""), (0.0, ""), (0.0, ""), (2.0, "")]


def test_a_trl_function_of_messages_runs_unmodified(own: Own) -> None:
    spec = own(
        "def reward(completions, answer, **_):\n"
        "    contents = [completion[0]['content'] for completion in completions]\n"
        "    return [1.0 if c == a else None for c, a in zip(contents, answer)]\n"
    )
    assert [s.value for s in load(spec).score(PROBLEMS, ["4", "7"])] == [1.0, 0.0]
    spec = own(
        "def reward(completions):\n    return [len(c) for c in completions]\n", name="lengths.py"
    )
    assert [s.value for s in load(spec).score(PROBLEMS, ["444", "7"])] == [3.0, 1.0]
    assert [s.value for s in load(spec, completions="messages").score(PROBLEMS, ["444", "7"])] == [
        1.0,
        1.0,
    ]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "def reward(completions, solution):\n    return [1, 2]\n",
            "wants a column 'solution', which the problems lack",
        ),
        ("def reward(completions, anser):\n    return [1, 2]\n", "did you mean 'answer'"),
        ("def reward(completions):\n    return [1]\n", "returned 1 values for 2 responses"),
        ("def reward(completions):\n    return 1.0\n", "returned float for 2 responses"),
        ("def reward(completions):\n    return 'ab'\n", "returned str for 2 responses"),
        ("def reward(completions):\n    return [1, 'x']\n", "returned 'x' for problem 'a'"),
        (
            "def reward(completions):\n    return [0, float('inf')]\n",
            "returned inf for problem 'a'",
        ),
        (
            "KEY = 'content'\ndef reward(completions):\n    return [c[0][KEY] for c in completions]\n",
            'set completions = "messages"',
        ),
    ],
)
def test_a_fault_in_a_trl_function_is_one_line(own: Own, body: str, message: str) -> None:
    fails(message, own(body))


def test_the_form_of_completions_is_checked(own: Own) -> None:
    fails(
        "must be 'text' or 'messages'",
        own("def reward(completions):\n    return [0, 0]\n"),
        completions="ids",
    )


def test_the_samples_text_is_the_answer_that_is_judged(own: Own) -> None:
    """What the prompt has begun of an answer (`<think>`) is no part of the sample, and part of the
    answer.
    """
    spec = own(
        "def reward(prompt, sample):\n    return float(sample.text == '<think>' + prompt.answer)\n"
    )
    texts, samples = ["<think>4", "<think>7"], [sample("4"), sample("7")]
    assert [s.value for s in load(spec).score(PROBLEMS, texts, samples)] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (3, "limit = 3; it must be a table"),
        ({"secnds": 1}, "did you mean 'seconds'"),
        ({"seconds": 0}, "above 0"),
        ({"processes": 1.5}, "limit.processes = 1.5; it must be a whole number"),
        ({"processes": 0}, "limit.processes = 0; it must be at least 1"),
    ],
)
def test_a_limit_is_checked(own: Own, limit: Any, message: str) -> None:
    fails(message, own("def reward(prompt, sample):\n    return 1.0\n"), limit=limit)


def test_a_column_that_is_no_plain_data_is_named(own: Own) -> None:
    spec = own(
        "def reward(prompt, sample):\n    return float(prompt.meta['when'] == '2026-11-23' and "
        "prompt.meta['n'] == [1, 2])\n"
    )
    import datetime

    problem = Problem(
        "p",
        PROBLEMS[0].messages,
        "4",
        meta={"when": datetime.date(2026, 11, 23), "n": np.array([1, 2])},
    )
    assert load(spec).score([problem], ["4"])[0].value == 1.0
    with pytest.raises(RewardError, match="problem 'q' has a object, which is no plain data"):
        load(spec).score([Problem("q", problem.messages, meta={"x": object()})], ["4"])
