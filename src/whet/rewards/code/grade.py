"""One program against its tests, in a worker process: inputs go to the sandbox, outputs come back,
and are compared here.

The worker is ours and never runs the program; what it reads back is plain data
(`sandbox/plain_data.py`).
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from whet.sandbox.exchange import GuestRun
from whet.sandbox.plain_data import decode, encode
from whet.sandbox.runners import Runner, runner

TOLERANCE = 1e-6  # of decimals, relative and absolute
BYTES = 1 << 20  # of one program's output
_DECIMAL = re.compile(
    r"[-+]?(?:\d{1,40}\.\d{0,40}|\.\d{1,40}|\d{1,40})(?:[eE][-+]?\d{1,3})?", re.ASCII
)

Item = Mapping[str, Any]


class NotPlain(Exception):
    """A reply that holds no plain data: the program raised, ended, or forged nonsense."""


@lru_cache(maxsize=4)
def _runner(sandbox: str, memory_mb: int) -> Runner:
    return runner(sandbox, memory_mb)


def grade(item: Item) -> dict[str, Any]:
    """What a worker does with an item: its `do` is grade, plan, outputs or probe.

    Grade answers {"verdict": pass, fail, load (the program does not even load) or error, "passed",
    "total", "message"}; plan {"calls", "asserts"} or {"error"}; outputs {"keys"}; probe {}. Raises
    RewardError where the sandbox is not here.
    """
    work: dict[str, Callable[[Item], dict[str, Any]]] = {
        "plan": _plan,
        "outputs": _outputs,
        "probe": _probe,
    }
    if item["do"] != "grade":
        return work[item["do"]](item)
    kinds = {"stdio": _stdio, "call": _call, "asserts": _asserts}
    return kinds[item["kind"]](item)


def _run(item: Item, mode: str, **order: Any) -> GuestRun:
    number = len(order.get("inputs") or order.get("calls") or [0])
    total = (
        min(item["seconds"] * number, item["total"])
        if mode in ("stdio", "calls")
        else item["total"]
    )
    limits = {
        "seconds": item["seconds"],
        "total": total,
        "bytes": BYTES,
        "stop": not item.get("share", False),
    }
    return _runner(item["sandbox"], item["memory_mb"]).run({"mode": mode, **limits, **order})


def _probe(item: Item) -> dict[str, Any]:
    ran = _run(item, "stdio", program="print(input())", inputs=["ok"])
    return (
        {}
        if ran.replies == ['{"output": "ok\\n", "ended": "exit 0"}']
        else {"error": ran.message or ran.ended}
    )


def _error(message: str) -> dict[str, Any]:
    return {"verdict": "error", "passed": 0, "total": 0, "message": message}


def _judged(ran: GuestRun, total: int, accepts: Callable[[int, Any], bool]) -> dict[str, Any]:
    """The verdict over replies: reply i must be there and be accepted. A program's misbehaviour is
    a failed test, never an error.
    """
    if not ran.began:
        return _error(ran.message or "the sandbox did not start")
    replies = [_parsed(line) for line in ran.replies[:total]]
    if replies and isinstance(replies[0], dict) and "load" in replies[0]:
        return {
            "verdict": "load",
            "passed": 0,
            "total": total,
            "message": str(replies[0]["load"])[:200],
        }
    passed = sum(accepts(i, reply) for i, reply in enumerate(replies))
    verdict = "pass" if passed == total else "fail"
    return {"verdict": verdict, "passed": passed, "total": total, "message": ran.ended}


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _stdio(item: Item) -> dict[str, Any]:
    tests, tolerance = item["tests"], item.get("tolerance", TOLERANCE)
    ran = _run(item, "stdio", program=item["program"], inputs=[test["input"] for test in tests])
    return _judged(
        ran, len(tests), lambda i, reply: same_text(tests[i]["output"], _printed(reply), tolerance)
    )


def _printed(reply: Any) -> str | None:
    if (
        isinstance(reply, dict)
        and reply.get("ended") == "exit 0"
        and isinstance(reply.get("output"), str)
    ):
        return reply["output"]
    return None


def _arguments(item: Item, test: Mapping[str, Any]) -> list[Any]:
    """[args, kwargs] as the guest reads them."""
    args, kwargs = test.get("args", []), test.get("kwargs", {})
    return (
        [args, kwargs]
        if item.get("tagged")
        else [encode(args), {name: encode(v) for name, v in kwargs.items()}]
    )


def _call(item: Item) -> dict[str, Any]:
    tests, tagged, where = item["tests"], bool(item.get("tagged")), item.get("argument")
    given = [_arguments(item, test) for test in tests]
    ran = _run(item, "calls", program=item["program"], entry=item["entry"], calls=given)

    def accepts(i: int, reply: Any) -> bool:
        try:
            got = returned(reply, given[i][0], where)
        except NotPlain:
            return False
        wanted = decode(tests[i]["expected"]) if tagged else tests[i]["expected"]
        return same(wanted, got, item.get("tolerance", TOLERANCE), strict=tagged)

    return _judged(ran, len(tests), accepts)


def returned(reply: Any, args: Any, where: int | None = None) -> Any:
    """A call's value, or its argument number `where` after the call; builtin values only. Raises
    NotPlain.
    """
    if not isinstance(reply, dict) or "value" not in reply:
        raise NotPlain
    try:
        return decode(reply["value"]) if where is None else decode(reply.get("args", args))[where]
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        OverflowError,
        RecursionError,
        MemoryError,
    ) as error:
        raise NotPlain from error


def _plan(item: Item) -> dict[str, Any]:
    """Every call that a data set's own test makes of its reference, in order."""
    ran = _run(item, "record", setup=item["setup"], test=item["test"], entry=item["entry"])
    replies = [_parsed(line) for line in ran.replies]
    last = replies[-1] if replies else None
    if not ran.began or ran.ended != "done" or not isinstance(last, dict) or "counts" not in last:
        return {"error": ran.message or f"its test ends by {ran.ended}"}
    counts, calls = last["counts"], replies[:-1]
    total = counts["passed"] + counts["failed"]
    if last["reference"] and (counts["failed"] or counts["ended"] is not True):
        return {"error": f"its reference fails its own test ({counts})"}
    if not calls or (not total and not last["reference"]):
        return {
            "error": f"its test calls {item['entry']} with nothing that is plain data ({counts})"
        }
    return {"calls": calls, "asserts": total, "reference": last["reference"]}


def _asserts(item: Item) -> dict[str, Any]:
    plan = item["plan"]
    if "error" in plan:
        return _error(plan["error"])
    given = [[call["args"], call["kwargs"]] for call in plan["calls"]]
    ran = _run(item, "calls", program=item["program"], entry=item["entry"], calls=given)
    total = max(plan["asserts"], 1)
    first = _judged(ran, len(given), lambda i, reply: _equal(reply, plan["calls"][i].get("reply")))
    if first["verdict"] in ("error", "load"):
        return {**first, "total": total}
    if plan["reference"] and first["verdict"] == "pass":  # the very data on which the test passed
        return {**first, "passed": total, "total": total}
    replies = [_parsed(line) for line in ran.replies[: len(given)]]
    replies += [{"ended": ran.ended}] * (len(given) - len(replies))
    if not item.get("share") and not all(
        isinstance(r, dict) and ("value" in r or "raised" in r) for r in replies
    ):
        return {"verdict": "fail", "passed": 0, "total": total, "message": ran.ended}
    told = _run(
        item,
        "check",
        setup=item["setup"],
        test=item["test"],
        entry=item["entry"],
        calls=given,
        replies=replies,
    )
    return _tallied(told, total)


def _equal(reply: Any, other: Any) -> bool:
    return isinstance(reply, dict) and "value" in reply and json.dumps(reply) == json.dumps(other)


def _tallied(ran: GuestRun, total: int) -> dict[str, Any]:
    """The verdict of the test's own asserts over returned data. No program runs in that process."""
    if not ran.began:
        return _error(ran.message or "the sandbox did not start")
    last = _parsed(ran.replies[-1]) if ran.replies else None
    if not isinstance(
        last, dict
    ):  # returned data on which the test itself runs out of memory or time
        return {
            "verdict": "fail",
            "passed": 0,
            "total": total,
            "message": f"the test ends by {ran.ended}",
        }
    counts = last["counts"]
    whole = counts["failed"] == 0 and counts["ended"] is True and counts["passed"] >= total
    if last["astray"]:
        return _error("the test's calls depend on the program's results")
    passed = total if whole else min(counts["passed"], total - 1)
    return {
        "verdict": "pass" if whole else "fail",
        "passed": passed,
        "total": total,
        "message": ran.ended,
    }


def _outputs(item: Item) -> dict[str, Any]:
    """One key an input: equal keys, equal outputs; None where the program gave none."""
    if item["kind"] == "stdio":
        ran = _run(item, "stdio", program=item["program"], inputs=item["inputs"])
        found = [_printed(_parsed(line)) for line in ran.replies]
        plain = [None if text is None else "\n".join(_lines(text)) for text in found]
    else:
        given = [_arguments(item, {"args": args}) for args in item["inputs"]]
        ran = _run(item, "calls", program=item["program"], entry=item["entry"], calls=given)
        plain = [
            _canonical(_parsed(line), args)
            for line, (args, _) in zip(ran.replies, given, strict=False)
        ]
    if not ran.began:
        return {"error": ran.message or "the sandbox did not start"}
    keys = [
        None if text is None else hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
        for text in plain
    ]
    return {"keys": (keys + [None] * len(item["inputs"]))[: len(item["inputs"])]}


def _canonical(reply: Any, args: Any) -> str | None:
    try:
        return json.dumps(_sorted(encode(returned(reply, args))), sort_keys=True)
    except NotPlain:
        return None


def _sorted(data: Any) -> Any:
    """Encoded data with sets and dicts in one order."""
    if isinstance(data, list):
        return [_sorted(item) for item in data]
    if not isinstance(data, dict):
        return data
    ((tag, inside),) = data.items()
    inside = _sorted(inside)
    return {tag: sorted(inside, key=json.dumps) if tag in ("set", "frozenset", "dict") else inside}


def _lines(text: str) -> list[str]:
    return (
        "\n".join(line.rstrip() for line in text.replace("\r\n", "\n").split("\n"))
        .rstrip("\n")
        .split("\n")
    )


def same_text(wanted: str, got: str | None, tolerance: float = TOLERANCE) -> bool:
    """Whether two outputs agree: all lines, token by token, whitespace between them apart; decimals
    within the tolerance.

    >>> same_text("1 2\\n0.5\\n", "1  2 \\n0.5000000001"), same_text("1\\n2", "1"), same_text("7", "7.0")
    (True, False, False)
    """
    if got is None:
        return False
    ours, theirs = _lines(wanted), _lines(got)
    if len(ours) != len(theirs):
        return False
    return all(_same_line(a, b, tolerance) for a, b in zip(ours, theirs, strict=True))


def _same_line(wanted: str, got: str, tolerance: float) -> bool:
    if wanted == got:
        return True
    ours, theirs = wanted.split(), got.split()
    return len(ours) == len(theirs) and all(
        a == b or _near(a, b, tolerance) for a, b in zip(ours, theirs, strict=True)
    )


def _near(wanted: str, got: str, tolerance: float) -> bool:
    if "." not in wanted or not _DECIMAL.fullmatch(wanted) or not _DECIMAL.fullmatch(got):
        return False
    return math.isclose(float(wanted), float(got), rel_tol=tolerance, abs_tol=tolerance)


def same(wanted: Any, got: Any, tolerance: float = TOLERANCE, strict: bool = False) -> bool:
    """Plain equality of builtin values, floats within the tolerance. Unless strict, a tuple may
    stand for a list (JSON has none).

    >>> same([1, [2.0]], (1, (2.0000001,))), same([1], (1,), strict=True), same("1", 1), same(3, 3.0)
    (True, False, False, True)
    """
    if isinstance(wanted, float) or isinstance(got, float):
        numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (wanted, got))
        if not numbers or wanted == got:
            return numbers
        try:
            return math.isclose(wanted, got, rel_tol=tolerance, abs_tol=tolerance)
        except OverflowError:
            return False
    sequences = (list, tuple)
    if isinstance(wanted, sequences) and isinstance(got, sequences):
        alike = len(wanted) == len(got) and (not strict or type(wanted) is type(got))
        return alike and all(
            same(a, b, tolerance, strict) for a, b in zip(wanted, got, strict=True)
        )
    if isinstance(wanted, dict) and isinstance(got, dict):
        return wanted.keys() == got.keys() and all(
            same(wanted[key], got[key], tolerance, strict) for key in wanted
        )
    return bool(wanted == got)
