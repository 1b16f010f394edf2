"""Programs, verified: a response's program runs isolated on its tests' inputs; its outputs are
compared outside.

No expected value, test or verdict ever enters the program's process, so nothing that it does there
can make it right.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from whet.errors import DataError, RewardError
from whet.rewards.extract import concluded
from whet.sandbox.exchange import GRACE
from whet.sandbox.pool import Pool, Result
from whet.types import Problem, Sample, Score

LONGEST = 100_000  # characters of a program
PLANS = 4096  # tests of data sets whose calls are remembered
# seconds beyond the programs' own before a worker counts as hung: starting, two runs, a remote's
# queue
SLACK = 40.0
ENTRY = re.compile(r"[A-Za-z_]\w{0,99}(?:\(\))?(?:\.[A-Za-z_]\w{0,99})?", re.ASCII)

_FENCE = re.compile(
    r"^[ \t]*(```+|~~~+)[ \t]*([\w+-]*)[^\n`]*\n(.*?)^[ \t]*\1[ \t]*$", re.DOTALL | re.MULTILINE
)
_PYTHON = ("python", "py", "python3", "")
_KINDS = ("stdio", "call", "humaneval", "asserts")


class CodeReward:
    """1 where a response's program passes all the problem's tests, else 0; with `share`, the share
    of the tests that it passes.

    The tests are `problem.meta["tests"]`, else `problem.answer`, as a table or as JSON
    (docs/code.md). `seconds` of wall-clock for each test, `total` for all of them, `memory_mb` for
    the program; a program beyond them is wrong. Statuses: scored, wrong, unparsed (no program),
    error (the sandbox or the data set's own test failed), timeout (a worker hung).

    `sandbox` is "bubblewrap", "docker", "docker:IMAGE" or the URL of a SandboxFusion endpoint.
    Raises RewardError where it is not here, with what to install, and for options out of bounds.
    """

    name = "code"

    def __init__(
        self,
        sandbox: str = "bubblewrap",
        share: bool = False,
        seconds: float = 4.0,
        total: float = 20.0,
        memory_mb: int = 512,
        processes: int = 2,
    ) -> None:
        bounds = {
            "seconds": (seconds, 600),
            "total": (total, 3600),
            "memory_mb": (memory_mb, 1 << 20),
            "processes": (processes, 1000),
        }
        for name, (value, most) in bounds.items():
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not 0 < value <= most
            ):
                raise RewardError(
                    f"reward code: {name} = {value!r} must be a number above 0, at most {most}"
                )
        if not isinstance(sandbox, str) or not isinstance(share, bool):
            raise RewardError(
                f"reward code: sandbox = {sandbox!r} must be a text and share = {share!r} true or false"
            )
        self.share, self.seconds, self.total = share, float(seconds), float(total)
        self.limits = {
            "sandbox": sandbox,
            "memory_mb": max(64, int(memory_mb)),
            "seconds": self.seconds,
            "total": self.total,
        }
        self.processes = max(1, int(processes))
        self._plans: dict[str, dict[str, Any]] = {}
        self.probe()

    @cached_property
    def pool(self) -> Pool:
        seconds = 2 * (self.total + GRACE) + SLACK
        return Pool(
            "whet.rewards.code.grade:grade",
            self.processes,
            seconds,
            self.limits["memory_mb"] + 1024,
        )

    def probe(self) -> None:
        """Run one program. Raises RewardError, with the cure, where the sandbox does not."""
        result = self.pool.map([{"do": "probe", **self.limits}])[0]
        said = result.message or str((result.value or {}).get("error", ""))
        if said:
            message = said.removeprefix("RewardError: ")
            if not message.startswith("code sandbox: "):
                message = f"code sandbox: {self.limits['sandbox']} cannot isolate here ({message})"
            raise RewardError(
                message if "apt-get" in message else f"{message}; {cure(self.limits['sandbox'])}"
            )

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        """N problems and N completion texts -> N scores. Raises DataError for a problem whose tests
        cannot be read.
        """
        tests = {id(problem): table_of(problem) for problem in problems}
        plans = self.planned([table for table in tests.values() if table["kind"] == "asserts"])
        items: dict[str, dict[str, Any]] = {}
        keys: list[tuple[str, bool] | None] = []
        for problem, text in zip(problems, texts, strict=True):
            table = tests[id(problem)]
            written = program(text)
            if written is None:
                keys.append(None)
                continue
            item = self.item(table, written[0], plans)
            key = digest(item)
            items[key] = item
            keys.append((key, written[1]))
        results = (
            dict(zip(items, self.pool.map(list(items.values())), strict=True)) if items else {}
        )
        return [
            self.scored(results[key[0]], key[1])
            if key
            else Score(0.0, "unparsed", {"accuracy": 0.0})
            for key in keys
        ]

    def item(self, table: Mapping[str, Any], text: str, plans: Mapping[str, Any]) -> dict[str, Any]:
        """What a worker is given for one program."""
        plan = {"plan": plans[digest(table)]} if table["kind"] == "asserts" else {}
        return {
            "do": "grade",
            **table,
            **plan,
            **self.limits,
            "share": self.share,
            "program": table.get("before", "") + text,
        }

    def planned(self, tables: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """The calls that each data set's test makes, found by running it once on its reference,
        isolated.
        """
        wanted = {digest(table): table for table in tables}
        new = {
            key: {"do": "plan", **table, **self.limits}
            for key, table in wanted.items()
            if key not in self._plans
        }
        found: dict[str, dict[str, Any]] = {}
        for key, result in zip(new, self.pool.map(list(new.values())) if new else [], strict=True):
            found[key] = result.value if result.status == "ok" else {"error": result.message}
            if "error" not in found[key]:
                self._plans[key] = found[key]
        while len(self._plans) > PLANS + len(wanted):
            del self._plans[next(iter(self._plans))]
        return {key: found.get(key) or self._plans[key] for key in wanted}

    def scored(self, result: Result, fenced: bool) -> Score:
        """The score of a worker's verdict; a whole response that is no Python at all holds no
        program.
        """
        if result.status != "ok":
            return Score(0.0, result.status, reason=result.message)
        verdict = result.value
        if verdict["verdict"] == "error":
            return Score(0.0, "error", reason=str(verdict.get("message", "")))
        right = verdict["verdict"] == "pass"
        if verdict["verdict"] == "load" and not fenced and "SyntaxError" in verdict["message"]:
            return Score(0.0, "unparsed", {"accuracy": 0.0})
        share = verdict["passed"] / verdict["total"]
        value = share if self.share else float(right)
        return Score(
            value, "scored" if value else "wrong", {"accuracy": float(right), "tests": share}
        )


def cure(sandbox: str) -> str:
    if sandbox != "bubblewrap":
        return "start it, or use bubblewrap (apt-get install bubblewrap)"
    return 'this machine must allow user namespaces to bubblewrap, or name sandbox = "docker" or a SandboxFusion endpoint'


def digest(table: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def program(text: str) -> tuple[str, bool] | None:
    """(the program in a response, whether a fence marked it): its last closed Python block, else
    all of it; None where there is none.

    Only what follows `</think>` counts; a block that never closes is no program, nor is one of
    another language.

    >>> program("<think>```python\\nno\\n```</think>So:\\n```python\\nprint(7)\\n```")
    ('print(7)\\n', True)
    >>> program("```python\\nprint(7)")
    """
    said = concluded(text)
    if said is None or len(said) > LONGEST or "\0" in said:
        return None
    blocks = [match for match in _FENCE.finditer(said) if match[2].casefold() in _PYTHON]
    if blocks:
        return (blocks[-1][3], True) if blocks[-1][3].strip() else None
    return (said, False) if said.strip() and "```" not in said else None


def table_of(problem: Problem) -> dict[str, Any]:
    """A problem's tests as the worker reads them: kind stdio, call or asserts. Raises DataError,
    naming the problem.
    """
    given = problem.meta.get("tests", problem.answer)
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise DataError(f"problem {problem.id!r}: its tests are no JSON ({error})") from None
    if not isinstance(given, Mapping) or given.get("kind") not in _KINDS:
        raise DataError(
            f"problem {problem.id!r}: its tests are no table with kind = {', '.join(_KINDS)}"
        )
    try:
        return {"stdio": _stdio, "call": _call, "humaneval": _humaneval, "asserts": _asserts}[
            given["kind"]
        ](given)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"problem {problem.id!r}: its {given['kind']} tests: {error.args[0] if error.args else error}"
        ) from None


def _texts(given: Mapping[str, Any], *names: str) -> list[str]:
    for name in names:
        if not isinstance(given.get(name), str):
            raise ValueError(f"{name} must be a text")
    return [given[name] for name in names]


def _entry(name: object) -> str:
    if not isinstance(name, str) or not ENTRY.fullmatch(name):
        raise ValueError(f"entry {name!r} is not of the form f, Class.method or Class().method")
    return name


def _listed(given: Mapping[str, Any]) -> list[Any]:
    tests = given.get("tests")
    if not isinstance(tests, list | tuple) or not tests:
        raise ValueError("tests must be a list that is not empty")
    return list(tests)


def _tolerance(given: Mapping[str, Any]) -> dict[str, float]:
    value = given.get("tolerance", 1e-6)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"tolerance {value!r} is no number of at least 0")
    return {"tolerance": float(value)}


def _stdio(given: Mapping[str, Any]) -> dict[str, Any]:
    tests = [
        dict(zip(("input", "output"), _texts(test, "input", "output"), strict=True))
        for test in _listed(given)
    ]
    return {"kind": "stdio", "tests": tests, **_tolerance(given)}


def _call(given: Mapping[str, Any]) -> dict[str, Any]:
    tests, where = [], given.get("argument")
    for test in _listed(given):
        args, kwargs = test.get("args", []), test.get("kwargs", {})
        if (
            "expected" not in test
            or not isinstance(args, list | tuple)
            or not isinstance(kwargs, Mapping)
        ):
            raise ValueError("each needs args = [..] and expected")
        tests.append({"args": list(args), "kwargs": dict(kwargs), "expected": test["expected"]})
    if where is not None and (isinstance(where, bool) or not isinstance(where, int) or where < 0):
        raise ValueError(f"argument {where!r} is no position")
    tagged = given.get("tagged", False) is True
    return {
        "kind": "call",
        "entry": _entry(given.get("entry")),
        "tests": tests,
        "argument": where,
        "tagged": tagged,
        **_tolerance(given),
    }


def _humaneval(given: Mapping[str, Any]) -> dict[str, Any]:
    prompt, test, reference = _texts(given, "prompt", "test", "canonical_solution")
    entry = _entry(given.get("entry_point"))
    return {
        "kind": "asserts",
        "entry": entry,
        "setup": f"{prompt}{reference}\n",
        "test": test,
        "before": prompt,
        "argument": None,
    }


def _asserts(given: Mapping[str, Any]) -> dict[str, Any]:
    tests = _listed(given) if not isinstance(given.get("tests"), str) else [given["tests"]]
    if not all(isinstance(test, str) for test in tests):
        raise ValueError("each must be a text of Python")
    setup, reference = (str(given.get(name) or "") for name in ("setup", "reference"))
    before = setup + "\n" if setup else ""
    return {
        "kind": "asserts",
        "entry": _entry(given.get("entry")),
        "setup": f"{before}{reference}\n",
        "test": "\n".join(tests),
        "before": before,
    }
