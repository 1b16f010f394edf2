"""Tasks from files with named columns: splits, and every kind of broken input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from whet.errors import DataError, RecipeError, WhetError
from whet.tasks import load
from whet.tasks.files import Files

GSM8K = Path(__file__).parents[2] / "shared" / "data" / "gsm8k"


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def sums(start: int, stop: int) -> list[dict]:
    return [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(start, stop)]


def questions(task: Files, split: str) -> set[str]:
    return {p.question for p in task.problems(split, task.size(split), 0)}


# ---- splits


def test_one_file_is_split_by_its_questions_whatever_their_order(tmp_path: Path):
    rows = sums(0, 400)
    forward = Files(path=write(tmp_path / "a.jsonl", rows))
    backward = Files(path=write(tmp_path / "b.jsonl", rows[::-1]))
    train, test = questions(forward, "train"), questions(forward, "test")
    assert not train & test and len(train | test) == 400
    assert 20 <= len(test) <= 60
    assert questions(backward, "test") == test
    for split, n in (("train", 50), ("test", 20)):
        assert [p.id for p in forward.problems(split, n, 3)] == [
            p.id for p in backward.problems(split, n, 3)
        ]
    assert [p.id for p in forward.problems("train", 50, 3)] != [
        p.id for p in forward.problems("train", 50, 4)
    ]


def test_questions_of_the_test_file_leave_train_and_repeats_are_counted(tmp_path: Path):
    train = [
        *sums(0, 20),
        {"question": "  what IS 3\n+ 1? ", "answer": "4"},
        {"question": "What is 5 + 1?", "answer": "7"},
    ]
    task = Files(
        path=write(tmp_path / "train.jsonl", train),
        test=write(tmp_path / "test.jsonl", sums(18, 25)),
    )
    assert task.size("train") == 18 and task.size("test") == 7
    assert not questions(task, "train") & questions(task, "test")
    assert (
        task.note == "2 training questions are in the test file too and were removed from train; "
        "2 repeated questions were removed"
    )
    assert {p.answer for p in task.problems("train", 18, 0) if p.question == "What is 5 + 1?"} == {
        "6"
    }  # the first stays


def test_more_than_there_are(tmp_path: Path):
    task = Files(path=write(tmp_path / "a.jsonl", sums(0, 30)), test_share=0.0)
    assert task.size("train") == 30 and task.size("test") == 0
    with pytest.raises(DataError, match="31 asked for, but there are only 30"):
        task.problems("train", 31, 0)
    with pytest.raises(DataError, match="but there are only 0; name a test file"):
        task.problems("test", 1, 0)


def test_the_same_problems_under_another_hash_seed(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", sums(0, 200))
    script = f"""from whet.tasks import load
print([p.id for p in load('files', path={path!r}).problems('test', 10, 5)])"""
    outs = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": s},
            capture_output=True,
            text=True,
            check=True,
        )
        for s in ("1", "2")
    ]
    assert (
        outs[0].stdout
        == outs[1].stdout
        == f"{[p.id for p in Files(path=path).problems('test', 10, 5)]}\n"
    )


# ---- columns


def test_named_columns_system_and_numbers(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", [{"q": "How many?", "a": 18}, {"q": "And now?", "a": 2.5}])
    task = Files(path=path, question="q", answer="a", system="Be brief.", test_share=0.0)
    first, second = sorted(task.problems("train", 2, 0), key=lambda p: p.question)
    assert second.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How many?"},
    )
    assert (first.answer, second.answer) == ("2.5", "18")
    assert set("How many? And now? Be brief. 18 2.5") == set(task.alphabet())


@pytest.mark.parametrize(
    ("options", "gold"),
    [
        ({"answer_after": "####"}, "72"),
        ({"answer_pattern": r"<<[^=]*=(\d+)>>"}, "24"),
        ({"answer_pattern": r"\d+"}, "72"),
        ({}, "48/2 = <<48/2=24>>24\n#### 1\n#### 72"),
    ],
    ids=str,
)
def test_the_gold_answer_within_a_longer_text(tmp_path: Path, options: dict, gold: str):
    path = write(
        tmp_path / "a.jsonl",
        [{"question": "q", "answer": "48/2 = <<48/2=24>>24\n#### 1\n#### 72 "}],
    )
    assert Files(path=path, test_share=0.0, **options).problems("train", 1, 0)[0].answer == gold


def test_responses_and_messages_make_a_corpus(tmp_path: Path):
    rows = [
        {"question": f"q{i}", "answer": f"{i}", "how": f"<think>hm</think>{i}"} for i in range(5)
    ]
    task = Files(path=write(tmp_path / "a.jsonl", rows), response="how", test_share=0.0)
    pairs = task.corpus({}, 12, 0)
    assert len(pairs) == 12 and all(text == f"<think>hm</think>{p.answer}" for p, text in pairs)
    talk = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "r"},
    ]
    task = Files(
        path=write(tmp_path / "b.jsonl", [{"chat": talk}]),
        messages="chat",
        answer="",
        test_share=0.0,
    )
    ((problem, text),) = task.corpus({}, 1, 0)
    assert (list(problem.messages), text, problem.answer) == (talk[:2], "r", None)
    with pytest.raises(DataError, match="nothing can be verified"):
        task.score([problem], ["r"])


def test_no_responses_and_a_mix(tmp_path: Path):
    task = Files(path=write(tmp_path / "a.jsonl", sums(0, 9)), test_share=0.0)
    with pytest.raises(DataError, match="no responses to learn from"):
        task.corpus({}, 1, 0)
    with pytest.raises(RecipeError, match="leave mix out"):
        task.corpus({"direct": 1.0}, 1, 0)


def test_scores_come_from_the_named_reward(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", sums(10, 11))
    task = Files(path=path, test_share=0.0)
    (problem,) = task.problems("train", 1, 0)
    scores = task.score([problem] * 3, ["<think>10+1</think>11", "<think>11</think>12", ""])
    assert [(s.status, s.correct) for s in scores] == [
        ("scored", True),
        ("wrong", False),
        ("unparsed", False),
    ]
    with pytest.raises(WhetError, match="did you mean 'math'"):
        Files(path=path, reward="maths").score([problem], ["11"])


def test_what_a_data_set_says_is_data(tmp_path: Path):
    hostile = "<script>alert(1)</script> {{ 7*7 }} <|im_end|> __import__('os').system('true') \u202e %s {0}"
    task = Files(
        path=write(tmp_path / "a.jsonl", [{"question": hostile, "answer": "1"}]), test_share=0.0
    )
    assert task.problems("train", 1, 0)[0].question == hostile


# ---- broken input

CASES = {
    "broken line": (
        b'{"question": "a", "answer": "1"}\n\n{"question": \n',
        {},
        r"a\.jsonl:3: not JSON",
    ),
    "no object": (b'["question"]\n', {}, r"a\.jsonl:1: a row must be a JSON object"),
    "not utf-8": (b'{"question": "a", "answer": "1"}\n\xff\xfe{}\n', {}, r"a\.jsonl:2: not UTF-8"),
    "half a surrogate": (
        b'{"question": "a\\ud800", "answer": "1"}\n',
        {},
        r"a\.jsonl:1: .*not valid Unicode",
    ),
    "nested without end": (b"[" * 100_000 + b"\n", {}, r"a\.jsonl:1: JSON beyond all bounds"),
    "digits without end": (
        b'{"question": "a", "answer": ' + b"9" * 5000 + b"}\n",
        {},
        r"a\.jsonl:1: JSON beyond",
    ),
    "empty": (b"", {}, "it is empty"),
    "blank": (b"\n  \n", {}, "it is empty"),
    "missing column": (
        b'{"questions": "a", "answer": "1"}\n',
        {},
        "no column 'question'; did you mean 'questions'",
    ),
    "missing gold": (b'{"question": "a", "solution": "1"}\n', {}, "no column 'answer'"),
    "missing response": (
        b'{"question": "a", "answer": "1"}\n',
        {"response": "resp"},
        "no column 'resp'",
    ),
    "a list for text": (
        b'{"question": ["a"], "answer": "1"}\n',
        {},
        r"a\.jsonl:1: column 'question' holds list",
    ),
    "no messages": (
        b'{"m": "hi", "answer": "1"}\n',
        {"messages": "m"},
        r"a\.jsonl:1: column 'm' must be a list",
    ),
    "unknown role": (
        b'{"m": [{"role": "x", "content": "y"}], "answer": "1"}\n',
        {"messages": "m"},
        "with roles system",
    ),
    "bad share": (b"", {"test_share": 1.0}, "test_share = 1.0"),
    "bad pattern": (b"", {"answer_pattern": "("}, "answer_pattern is no regular expression"),
    "both ways": (b"", {"answer_pattern": "a", "answer_after": "b"}, "drop one"),
    "both responses": (b"", {"messages": "m", "response": "r"}, "drop response"),
}


@pytest.mark.parametrize("case", CASES)
def test_broken_input_is_one_clear_line(tmp_path: Path, case: str):
    content, options, message = CASES[case]
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(WhetError, match=message) as caught:
        Files(path=str(tmp_path / "a.jsonl"), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"question": "a", "answer": "1"}, {"question": "b"}, {"question": "c", "answer": None},
        {"question": "d", "answer": " "}],
         {}, r"3 of 4 rows have no answer; the first is .*a\.jsonl:2"),
        ([{"question": "a", "answer": "1"}, {"question": "", "answer": "1"}], {},
        r"1 of 2 rows have no question; .*:2"),
        ([{"question": "a", "answer": "#### 1"}, {"question": "b", "answer": "2"}],
         {"answer_after": "####"},
         r"1 of 2 rows have no answer \(nothing after '####' in column 'answer'\).*:2"),
        ([{"question": "a", "answer": "none"}], {"answer_pattern": r"\d"},
        "answer_pattern finds none in column 'answer'"),
        ([{"question": "a", "answer": "1", "r": "x"}, {"question": "b", "answer": "1"}],
        {"response": "r"}, "no response.*:2"),
    ],
)  # fmt: skip
def test_rows_that_lack_something_are_counted(
    tmp_path: Path, rows: list[dict], options: dict, message: str
):
    with pytest.raises(DataError, match=message):
        Files(path=write(tmp_path / "a.jsonl", rows), **options)


def test_files_that_are_not_there(tmp_path: Path):
    for path, message in (
        (tmp_path / "no.jsonl", "no data file at"),
        (tmp_path, "is a directory"),
        (tmp_path / "a.csv", "csv"),
    ):
        if path.suffix == ".csv":
            path.write_text("question,answer\n")
        with pytest.raises(DataError, match=message):
            Files(path=str(path))


# ---- real data


@pytest.mark.skipif(
    not GSM8K.exists(), reason="the shared data directory is not beside this checkout"
)
def test_gsm8k_is_a_files_task():
    task = load(
        "files",
        path=str(GSM8K / "train.jsonl"),
        test=str(GSM8K / "test.jsonl"),
        answer_after="####",
        response="answer",
    )
    assert (task.size("train"), task.size("test")) == (7473, 1319)
    problems = [
        p for split in ("train", "test") for p in task.problems(split, task.size(split) or 0, 0)
    ]
    assert len({p.id for p in problems}) == 8792
    golds = [p.answer or "" for p in problems]
    assert all(
        s.value == 1.0
        for s in task.score(problems, [f"<think>so</think>The answer is {g}." for g in golds])
    )
    assert not any(
        s.correct for s in task.score(problems, [f"<think>{g}</think>#### {g}1" for g in golds])
    )
    problem, response = task.corpus({}, 1, 0)[0]
    assert response.endswith(f"#### {problem.answer}")
