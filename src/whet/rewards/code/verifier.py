"""The code reward: a response's program runs isolated on the inputs of its tests, and its outputs
are compared outside.

No expected value, test or verdict ever enters the program's process, so nothing that the program
does can make it right.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from pydantic import Field, PrivateAttr

from whet.errors import DataError, RewardError
from whet.rewards.base import RewardOptions, unparsed
from whet.rewards.extract import concluded
from whet.sandbox.exchange import GRACE
from whet.sandbox.pool import Pool, Result
from whet.types import Problem, Sample, Score

LONGEST = 100_000  # characters of a program
PLANS = 4096  # tests of data sets whose calls are remembered
# seconds beyond the programs' own until a worker counts as hung: its start, two runs, a queue
SLACK = 40.0
ENTRY = re.compile(r"[A-Za-z_]\w{0,99}(?:\(\))?(?:\.[A-Za-z_]\w{0,99})?", re.ASCII)

_FENCE = re.compile(
    r"^[ \t]*(```+|~~~+)[ \t]*([\w+-]*)[^\n`]*\n(.*?)^[ \t]*\1[ \t]*$", re.DOTALL | re.MULTILINE
)
_PYTHON = ("python", "py", "python3", "")


class CodeReward(RewardOptions):
    """1 where a response's program passes all the problem's tests, else 0; with `share`, the share
    of the tests that it passes.

    The tests are `problem.meta["tests"]`, else `problem.answer`, as a table or as JSON. A program
    beyond its limits is wrong. Statuses: scored, wrong, unparsed (no program), error (the sandbox
    or the data set's own test failed), timeout (a worker hung).

    Raises RewardError, with what to install, where the sandbox is not here.
    """

    owner = "reward code"
    sandbox: str = Field(
        default="bubblewrap",
        description="bubblewrap, docker, docker:IMAGE, or the URL of a SandboxFusion endpoint",
    )
    share: bool = Field(default=False, description="pay the share of the tests that pass")
    seconds: float = Field(default=4.0, gt=0, le=600, description="wall-clock for each test")
    total: float = Field(default=20.0, gt=0, le=3600, description="wall-clock for all tests, in s")
    memory_mb: int = Field(default=512, ge=1, le=1 << 20, description="memory for the program")
    processes: int = Field(default=2, ge=1, le=1000, description="programs that run at once")
    # data sets' own tests -> the calls that they make
    _plans: dict[str, dict[str, Any]] = PrivateAttr(default_factory=dict)

    def model_post_init(self, _: object) -> None:
        self.probe()

    @cached_property
    def limits(self) -> dict[str, Any]:
        """Where and within what a program runs."""
        memory = max(64, self.memory_mb)
        limits = {"seconds": self.seconds, "total": self.total, "memory_mb": memory}
        return {"sandbox": self.sandbox, **limits}

    @cached_property
    def pool(self) -> Pool:
        seconds = 2 * (self.total + GRACE) + SLACK
        memory = self.limits["memory_mb"] + 1024
        return Pool("whet.rewards.code.grade:grade", self.processes, seconds, memory)

    def probe(self) -> None:
        """Run one program. Raises RewardError, with the cure, where the sandbox does not."""
        result = self.pool.map([{"do": "probe", **self.limits}])[0]
        fault = result.message or str((result.value or {}).get("error", ""))
        if not fault:
            return
        message = fault.removeprefix("RewardError: ")
        if not message.startswith("code sandbox: "):
            message = f"code sandbox: {self.sandbox} cannot isolate here ({message})"
        raise RewardError(message if "apt-get" in message else f"{message}; {cure(self.sandbox)}")

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        """N problems and N responses -> N scores; equal programs run once. Raises DataError for a
        problem whose tests cannot be read.
        """
        tables = {id(problem): table_of(problem) for problem in problems}
        plans = self.plans([table for table in tables.values() if table["kind"] == "asserts"])
        items: dict[str, dict[str, Any]] = {}
        keys: list[tuple[str, bool] | None] = []  # (key of its item, whether a fence marked it)
        for problem, text in zip(problems, texts, strict=True):
            written = program(text)
            if written is None:
                keys.append(None)
                continue
            item = self.item(tables[id(problem)], written[0], plans)
            key = digest(item)
            items[key] = item
            keys.append((key, written[1]))
        results = dict(zip(items, self.pool.map(list(items.values())), strict=True))
        return [scored(results[key[0]], key[1], self.share) if key else unparsed() for key in keys]

    def item(self, table: Mapping[str, Any], text: str, plans: Mapping[str, Any]) -> dict[str, Any]:
        """One program, as a worker takes it."""
        plan = {"plan": plans[digest(table)]} if table["kind"] == "asserts" else {}
        text = table.get("before", "") + text
        return {
            "do": "grade", **table, **plan, **self.limits, "share": self.share, "program": text,
        }  # fmt: skip

    def plans(self, tables: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """The calls that each data set's test makes: it runs once on its reference, isolated."""
        asked = {digest(table): table for table in tables}
        items = {
            key: {"do": "plan", **table, **self.limits}
            for key, table in asked.items()
            if key not in self._plans
        }
        faults: dict[str, dict[str, Any]] = {}  # not remembered: the next call tries again
        for key, result in zip(items, self.pool.map(list(items.values())), strict=True):
            plan = result.value if result.status == "ok" else {"error": result.message}
            (faults if "error" in plan else self._plans)[key] = plan
        plans = {key: faults.get(key) or self._plans[key] for key in asked}
        while len(self._plans) > PLANS:
            del self._plans[next(iter(self._plans))]
        return plans


def scored(result: Result, fenced: bool, share: bool) -> Score:
    """The score of a worker's verdict. A whole response that is no Python at all holds no program."""
    if result.status != "ok":
        return Score(0.0, result.status, reason=result.message)
    verdict = result.value
    if verdict["verdict"] == "error":
        return Score(0.0, "error", reason=str(verdict.get("message", "")))
    if verdict["verdict"] == "load" and not fenced and "SyntaxError" in verdict["message"]:
        return unparsed()
    right, passed = float(verdict["verdict"] == "pass"), verdict["passed"] / verdict["total"]
    value = passed if share else right
    return Score(value, "scored" if value else "wrong", {"accuracy": right, "tests": passed})


def cure(sandbox: str) -> str:
    if sandbox != "bubblewrap":
        return "start it, or use bubblewrap (apt-get install bubblewrap)"
    return (
        "this machine must allow user namespaces to bubblewrap, "
        'or name sandbox = "docker" or a SandboxFusion endpoint'
    )


def digest(table: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def program(text: str) -> tuple[str, bool] | None:
    """(the program in a response, whether a fence marked it): its last closed Python block, else
    all of it; None where there is none.

    Only the text after `</think>` counts. A block that never closes is no program, nor is one of
    another language.

    >>> program("<think>```python\\nno\\n```</think>So:\\n```python\\nprint(7)\\n```")
    ('print(7)\\n', True)
    >>> program("```python\\nprint(7)")
    """
    conclusion = concluded(text)
    if conclusion is None or len(conclusion) > LONGEST or "\0" in conclusion:
        return None
    blocks = [match for match in _FENCE.finditer(conclusion) if match[2].casefold() in _PYTHON]
    if blocks:
        return (blocks[-1][3], True) if blocks[-1][3].strip() else None
    return (conclusion, False) if conclusion.strip() and "```" not in conclusion else None


def table_of(problem: Problem) -> dict[str, Any]:
    """A problem's tests as the worker reads them: kind stdio, call or asserts. Raises DataError,
    naming the problem.
    """
    tests = problem.meta.get("tests", problem.answer)
    if isinstance(tests, str):
        try:
            tests = json.loads(tests)
        except (ValueError, RecursionError) as error:
            raise DataError(f"problem {problem.id!r}: its tests are no JSON ({error})") from None
    if not isinstance(tests, Mapping) or tests.get("kind") not in list(_KINDS):
        raise DataError(
            f"problem {problem.id!r}: its tests are no table with kind = {', '.join(_KINDS)}"
        )
    try:
        return _KINDS[tests["kind"]](tests)
    except (KeyError, TypeError, ValueError) as error:
        fault = error.args[0] if error.args else error
        raise DataError(f"problem {problem.id!r}: its {tests['kind']} tests: {fault}") from None


def _texts(table: Mapping[str, Any], *names: str) -> list[str]:
    for name in names:
        if not isinstance(table.get(name), str):
            raise ValueError(f"{name} must be a text")
    return [table[name] for name in names]


def _entry(name: object) -> str:
    if not isinstance(name, str) or not ENTRY.fullmatch(name):
        raise ValueError(f"entry {name!r} is not of the form f, Class.method or Class().method")
    return name


def _listed(table: Mapping[str, Any]) -> list[Any]:
    tests = table.get("tests")
    if not isinstance(tests, list | tuple) or not tests:
        raise ValueError("tests must be a list that is not empty")
    return list(tests)


def _tolerance(table: Mapping[str, Any]) -> dict[str, float]:
    value = table.get("tolerance", 1e-6)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"tolerance {value!r} is no number of at least 0")
    return {"tolerance": float(value)}


def _stdio(table: Mapping[str, Any]) -> dict[str, Any]:
    names = ("input", "output")
    tests = [dict(zip(names, _texts(test, *names), strict=True)) for test in _listed(table)]
    return {"kind": "stdio", "tests": tests, **_tolerance(table)}


def _call(table: Mapping[str, Any]) -> dict[str, Any]:
    tests, where = [], table.get("argument")
    for test in _listed(table):
        args, kwargs = test.get("args", []), test.get("kwargs", {})
        plain = isinstance(args, list | tuple) and isinstance(kwargs, Mapping)
        if "expected" not in test or not plain:
            raise ValueError("each needs args = [..] and expected")
        tests.append({"args": list(args), "kwargs": dict(kwargs), "expected": test["expected"]})
    if where is not None and (isinstance(where, bool) or not isinstance(where, int) or where < 0):
        raise ValueError(f"argument {where!r} is no position")
    entry, tagged = _entry(table.get("entry")), table.get("tagged", False) is True
    call = {"entry": entry, "tests": tests, "argument": where, "tagged": tagged}
    return {"kind": "call", **call, **_tolerance(table)}


def _humaneval(table: Mapping[str, Any]) -> dict[str, Any]:
    prompt, test, reference = _texts(table, "prompt", "test", "canonical_solution")
    return {
        "kind": "asserts",
        "entry": _entry(table.get("entry_point")),
        "setup": f"{prompt}{reference}\n",
        "test": test,
        "before": prompt,
    }


def _asserts(table: Mapping[str, Any]) -> dict[str, Any]:
    tests = [table["tests"]] if isinstance(table.get("tests"), str) else _listed(table)
    if not all(isinstance(test, str) for test in tests):
        raise ValueError("each must be a text of Python")
    setup, reference = (str(table.get(name) or "") for name in ("setup", "reference"))
    before = setup + "\n" if setup else ""
    return {
        "kind": "asserts",
        "entry": _entry(table.get("entry")),
        "setup": f"{before}{reference}\n",
        "test": "\n".join(tests),
        "before": before,
    }


_KINDS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "stdio": _stdio,
    "call": _call,
    "humaneval": _humaneval,
    "asserts": _asserts,
}
