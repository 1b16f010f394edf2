"""The code reward on data sets: every HumanEval reference is accepted and its mutants rejected;
formats, statuses, shares, many programs.
"""

import ast
import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from whet.errors import DataError, RewardError
from whet.rewards.code import programs
from whet.rewards.code.grade import same, same_text
from whet.rewards.code.verifier import CodeReward, program, table_of
from whet.types import Problem, Score

needs_bwrap = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="bubblewrap is not installed"
)
HUMAN_EVAL = (
    Path(__file__).resolve().parents[2] / "shared" / "data" / "human_eval" / "HumanEval.jsonl.gz"
)
ADD: dict[str, Any] = {
    "kind": "call",
    "entry": "add",
    "tests": [{"args": [1, 2], "expected": 3}, {"args": [5, 6], "expected": 11}],
}
ECHO: dict[str, Any] = {
    "kind": "stdio",
    "tests": [{"input": "a\n", "output": "a"}, {"input": "b\n", "output": "b"}],
}


def problem(tests: Any, name: str = "p") -> Problem:
    return Problem(name, (), None, "", {"tests": tests})


def fenced(text: str) -> str:
    return f"<think>hm</think>Here:\n```python\n{text}\n```\n"


@pytest.fixture(scope="module")
def reward() -> Iterator[CodeReward]:
    try:
        made = CodeReward(seconds=2.0, total=6.0)
    except RewardError as error:
        pytest.skip(str(error))
    with made.pool:
        yield made


@pytest.fixture(scope="module")
def sharing() -> Iterator[CodeReward]:
    try:
        made = CodeReward(share=True, seconds=0.5, total=3.0, processes=1)
    except RewardError as error:
        pytest.skip(str(error))
    with made.pool:
        yield made


def one(reward: CodeReward, tests: Any, text: str) -> Score:
    return reward.score([problem(tests)], [text])[0]


class Mutant(ast.NodeTransformer):
    """One change to a function: its first comparison turned round, else its last number off by one,
    else it returns None.
    """

    def __init__(self, kind: str) -> None:
        self.kind, self.done = kind, False

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        swaps = {
            ast.Lt: ast.GtE,
            ast.GtE: ast.Lt,
            ast.Gt: ast.LtE,
            ast.LtE: ast.Gt,
            ast.Eq: ast.NotEq,
            ast.NotEq: ast.Eq,
            ast.In: ast.NotIn,
        }
        self.generic_visit(node)
        if self.kind == "comparison" and not self.done and type(node.ops[0]) in swaps:
            node.ops[0], self.done = swaps[type(node.ops[0])](), True
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if self.kind == "constant" and not self.done and type(node.value) is int:
            self.done = True
            return ast.Constant(node.value + 1)
        return node

    def visit_Return(self, node: ast.Return) -> ast.AST:
        self.generic_visit(node)
        if self.kind == "none":
            node.value, self.done = ast.Constant(None), True
        return node


def mutant(row: dict[str, str], kind: str) -> str | None:
    tree = ast.parse(row["prompt"] + row["canonical_solution"])
    function = next(
        n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == row["entry_point"]
    )
    change = Mutant(kind)
    change.visit(function)
    return ast.unparse(ast.fix_missing_locations(tree)) if change.done else None


def rows() -> list[dict[str, str]]:
    if not HUMAN_EVAL.is_file():
        pytest.skip("HumanEval is in ../shared/data, which is not here")
    with gzip.open(HUMAN_EVAL, "rt") as file:
        return [json.loads(line) for line in file]


def oracle(row: dict[str, str], text: str) -> dict[str, Any]:
    """The data set's own way to judge, isolated: a stdin program whose test prints what became of
    it.
    """
    run = (
        f"{text}\n{row['test']}\ntry:\n    check({row['entry_point']})\n    print('passes')\n"
        f"except BaseException:\n    print('fails')"
    )
    return {
        "program": run,
        "tests": {"kind": "stdio", "tests": [{"input": "", "output": "passes"}]},
    }


@needs_bwrap
def test_every_reference_of_human_eval_is_accepted_and_mutants_rejected(reward: CodeReward):
    data = rows()
    problems = [problem({"kind": "humaneval", **row}, row["task_id"]) for row in data]
    references = reward.score(problems, [row["canonical_solution"] for row in data])
    assert [
        p.id for p, s in zip(problems, references, strict=True) if s.status != "scored"
    ] == [] and len(data) == 164
    kinds = ("none", "comparison", "constant")
    changed = [mutant(row, kinds[i % 3]) for i, row in enumerate(data)]
    mutants = [
        (text, False) if text else (mutant(row, "none") or "pass", True)
        for row, text in zip(data, changed, strict=True)
    ]
    scores = reward.score(problems, [fenced(text) for text, _ in mutants])
    assert all(s.status == "wrong" for i, s in enumerate(scores) if i % 3 == 0 or mutants[i][1])
    assert sum(s.status == "wrong" for s in scores) >= 150 and all(s.usable for s in scores)
    asked = [
        i for i, s in enumerate(scores) if s.value or i % 4 == 0
    ]  # all that passed, and some that did not
    cases = [oracle(data[i], mutants[i][0]) for i in asked]
    wanted = reward.score(
        [problem(case["tests"]) for case in cases], [fenced(case["program"]) for case in cases]
    )
    assert [scores[i].value for i in asked] == [s.value for s in wanted]


@needs_bwrap
@pytest.mark.parametrize(
    ("tests", "text", "status"),
    [
        (ADD, fenced("def add(a, b): return a + b"), "scored"),
        (json.dumps(ADD), fenced("def add(a, b): return a + b"), "scored"),
        (ADD, "def add(a, b): return a + b", "scored"),
        (ADD, fenced("def add(a, b) return"), "wrong"),
        (ADD, "I think that adding them is best.", "unparsed"),
        (ADD, "<think>```python\ndef add(a, b): return a + b\n```", "unparsed"),
        (ADD, "```python\ndef add(a, b): return a + b", "unparsed"),
        (ADD, "```rust\nfn add() {}\n```", "unparsed"),
        (ADD, "", "unparsed"),
        (ADD, fenced("def plus(a, b): return a + b"), "wrong"),
        (ADD, fenced("def add(a, b):\n    while True: pass"), "wrong"),
        ({**ADD, "entry": "Solution().add"},
         fenced("class Solution:\n    n = 0\n    def add(self, a, b): return a + b"), "scored"),
        ({**ADD, "entry": "Solution.add"},
         fenced("class Solution:\n    @staticmethod\n    def add(a, b): return a + b"), "scored"),
        ({"kind": "call", "entry": "f",
         "tests": [{"args": [], "kwargs": {"x": 1}, "expected": [1, 2]}]},
         fenced("def f(x): return x, 2"), "scored"),
        ({"kind": "call", "entry": "f", "argument": 0,
         "tests": [{"args": [[3, 1]], "expected": [1, 3]}]}, fenced("def f(x): x.sort()"), "scored"),
        ({"kind": "call", "entry": "f", "argument": 0,
         "tests": [{"args": [[3, 1]], "expected": [1, 3]}]}, fenced("def f(x): return sorted(x)"), "wrong"),
        ({"kind": "call", "entry": "f", "tagged": True,
         "tests": [{"args": [{"tuple": [1]}], "expected": {"set": [1]}}]},
         fenced("def f(x): return {*x} if type(x) is tuple else 0"), "scored"),
        ({"kind": "call", "entry": "f", "tests": [{"args": [2**70], "expected": 2**80}]},
         fenced("def f(x): return x << 10"), "scored"),
        (ECHO, fenced("print(input())"), "scored"),
        (ECHO, fenced("import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read())"), "scored"),
        (ECHO,
         fenced(
                "if __name__ == '__main__':\n    import sys, atexit\n"
                "    atexit.register(print, open(0).read())"), "scored"),
        ({"kind": "asserts", "entry": "f", "tests": ["assert f(2) == 4", "assert f(3) == 9"]},
         fenced("def f(x): return x * x"), "scored"),
        ({"kind": "asserts", "entry": "f", "tests": ["assert f(2) == 4", "assert f(3) == 9"]},
         fenced("def f(x): return x + 2"), "wrong"),
        ({"kind": "asserts", "entry": "f", "tests": ["assert f(2) == 4"],
         "reference": "def f(x): return 7"}, fenced("def f(x): return x * x"), "error"),
        ({"kind": "asserts", "entry": "f", "tests": ["assert g() == 4"]},
         fenced("def f(x): return x * x"), "error"),
        ({"kind": "asserts", "entry": "f", "reference": "def f(x): x.sort()",
         "tests": ["x = [2, 1]\nf(x)\nassert x == [1, 2]"]}, fenced("def f(x): x.reverse()"), "scored"),
        ({"kind": "asserts", "entry": "f", "reference": "def f(x): x.sort()",
         "tests": ["x = [2, 1]\nf(x)\nassert x == [1, 2]"]}, fenced("def f(x): pass"), "wrong"),
        ({"kind": "asserts", "entry": "f", "reference": "def f(x):\n    raise ValueError",
         "tests": ["try:\n    f(1)\n    ok = False\nexcept ValueError:\n    ok = True\nassert ok"]},
         fenced("def f(x): raise ValueError('no')"), "scored"),
    ],
)  # fmt: skip
def test_kinds_and_statuses(reward: CodeReward, tests: Any, text: str, status: str):
    score = one(reward, tests, text)
    assert (score.status, score.value) == (status, float(status == "scored"))
    assert score.usable == (status != "error")


@needs_bwrap
def test_shares_count_tests_and_go_on_after_a_failure(sharing: CodeReward):
    tests = {
        "kind": "call",
        "entry": "f",
        "tests": [{"args": [i], "expected": i} for i in range(4)],
    }
    text = "import os\ndef f(x):\n    if x == 1: os._exit(0)\n    while x == 2: pass\n    return x"
    score = one(sharing, tests, fenced(text))
    assert (score.value, score.status, score.correct) == (0.5, "scored", False)
    assert score.parts == {"accuracy": 0.0, "tests": 0.5}
    asserts = {
        "kind": "asserts",
        "entry": "f",
        "reference": "def f(x): return x * x",
        "tests": ["assert f(2) == 4", "assert f(3) == 9"],
    }
    assert one(sharing, asserts, fenced("def f(x): return x + 2")).value == 0.5
    assert one(sharing, ECHO, fenced("print('a')")).value == 0.5
    assert one(sharing, ECHO, fenced("print('c')")).status == "wrong"


@needs_bwrap
def test_equal_programs_are_judged_once_and_in_order(reward: CodeReward):
    right, wrong = fenced("def add(a, b): return a + b"), fenced("def add(a, b): return a - b")
    problems = [problem(ADD)] * 5
    assert [s.value for s in reward.score(problems, [right, wrong, right, "", right])] == [
        1,
        0,
        1,
        0,
        1,
    ]
    assert reward.score([], []) == []


@pytest.mark.parametrize(
    ("tests", "says"),
    [
        (None, "no table with kind"), ("{", "no JSON"), ({"kind": "java"}, "no table with kind"),
        ({"kind": "stdio"}, "list that is not empty"),
        ({"kind": "stdio", "tests": []}, "list that is not empty"),
        ({"kind": "stdio", "tests": [{"input": "x"}]}, "output must be a text"),
        ({**ADD, "entry": "add; import os"}, "is not of the form"),
        ({**ADD, "entry": 7}, "is not of the form"),
        ({**ADD, "tests": [{"args": 1, "expected": 2}]}, "args = [..] and expected"),
        ({**ADD, "argument": -1}, "is no position"),
        ({**ECHO, "tolerance": -1}, "no number of at least 0"),
        ({"kind": "humaneval", "prompt": ""}, "test must be a text"),
        ({"kind": "asserts", "entry": "f", "tests": [1]}, "text of Python"),
    ],
)  # fmt: skip
def test_tests_that_cannot_be_read_are_named(tests: Any, says: str):
    with pytest.raises(DataError, match=r"problem 'p': its") as error:
        table_of(problem(tests))
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"seconds": 0},
        {"total": -1},
        {"memory_mb": True},
        {"processes": 0},
        {"share": 1},
        {"sandbox": 3},
    ],
)
def test_options_out_of_bounds_are_refused(options: dict[str, Any]):
    with pytest.raises(RewardError, match=f"reward code: .*{next(iter(options))}"):
        CodeReward(**options)


def test_outputs_are_compared_whole():
    assert same_text("1\n2\n", "1\r\n2  \n\n") and same_text("", "\n") and same_text("1.50", "1.5")
    for wanted, got in (
        ("1\n2", "1"),
        ("1", "1\n2"),
        ("1", "1.0"),
        ("a", "A"),
        ("1.5", "1.6"),
        ("1.5", "nan"),
        ("1.5", "1_5"),
        ("1 2", "12"),
    ):
        assert not same_text(wanted, got), (wanted, got)
    assert (
        same({"a": [1.0]}, {"a": [1.0 + 1e-9]})
        and not same([1], [1, 2])
        and not same(float("nan"), float("nan"))
        and not same(1.0, 10**400)
    )


def test_the_last_closed_block_is_the_program():
    assert program("```python\na\n```\n```python\nb\n```\n```bash\nls\n```") == ("b\n", True)
    assert program("~~~py\nx\n~~~") == ("x\n", True) and program("    return 1") == (
        "    return 1",
        False,
    )
    assert program("x" * 200_000) is None and program("a\0b") is None


@needs_bwrap
def test_many_programs_are_clustered_and_a_few_submitted(reward: CodeReward):
    texts = [
        "print(int(input())**2)",
        "n = int(input())\nprint(n * n)",
        "print(2 * int(input()))",
        "x",
        "print(int(input())**2 + 0)",
    ]
    groups = programs.clusters(keys := programs.outputs(reward, texts, ["2", "3", "5"]))
    assert [c.members for c in groups] == [(0, 1, 4), (2,)]
    assert programs.submissions(programs.rerank(groups), limit=2) == [0, 2]
    assert programs.majority(keys) == keys[0]
    calls = programs.outputs(
        reward,
        ["def f(x): return {*x}", "def f(x): return set(reversed(x))", "def f(x): return x"],
        [[["a", "b"]]],
        "f",
    )
    assert calls[0] == calls[1] != calls[2]
    brute = "n = int(input())\nassert n < 5\nprint(sum(n for _ in range(n)))"
    checks = programs.cross_check(reward, texts[:4], brute, ["2", "3", "9"])
    assert [(c.compared, c.differs, c.agrees) for c in checks] == [
        (2, (), True),
        (2, (), True),
        (2, (1,), False),
        (2, (0, 1), False),
    ]
    for inputs, entry in (([], None), (["a"], "f"), ([["a"]], None), ([[1]], "f()()")):
        with pytest.raises(RewardError, match="programs: "):
            programs.outputs(reward, texts, inputs, entry)
