"""One program against its tests, in a worker process: inputs go to the sandbox, outputs come back,
and are compared here.

The worker is ours and never runs the program. It reads plain data only (`sandbox/plain_data.py`).
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
    """A worker's work on one item, named by its `do`: grade, plan, outputs or probe.

    Grade answers {"verdict": pass, fail, load (the program does not even load) or error, "passed",
    "total", "message"}; plan {"calls", "asserts"} or {"error"}; outputs {"keys"}; probe {}. Raises
    RewardError where the sandbox is not here.
    """
    work = {"plan": _plan, "outputs": _outputs, "probe": _probe}
    kinds = {"stdio": _stdio, "call": _call, "asserts": _asserts}
    return (kinds[item["kind"]] if item["do"] == "grade" else work[item["do"]])(item)


def _run(item: Item, mode: str, **order: Any) -> GuestRun:
    total = item["total"]
    if mode in ("stdio", "calls"):
        number = len(order.get("inputs") or order.get("calls") or [0])
        total = min(item["seconds"] * number, total)
    limits = {"seconds": item["seconds"], "total": total, "bytes": BYTES}
    stop = not item.get("share", False)  # at the first test that fails
    sandbox = _runner(item["sandbox"], item["memory_mb"])
    return sandbox.run({"mode": mode, **limits, "stop": stop, **order})


def _probe(item: Item) -> dict[str, Any]:
    run = _run(item, "stdio", program="print(input())", inputs=["ok"])
    if run.replies == ['{"output": "ok\\n", "ended": "exit 0"}']:
        return {}
    return {"error": run.message or run.ended}


def _verdict(verdict: str, passed: int, total: int, message: str) -> dict[str, Any]:
    return {"verdict": verdict, "passed": passed, "total": total, "message": message}


def _error(message: str) -> dict[str, Any]:
    return _verdict("error", 0, 0, message)


def _judged(run: GuestRun, total: int, accepts: Callable[[int, Any], bool]) -> dict[str, Any]:
    """The verdict over replies: reply i must be there and be accepted. A program's misbehaviour is
    a failed test, never an error.
    """
    if not run.began:
        return _error(run.message or "the sandbox did not start")
    replies = [_parsed(line) for line in run.replies[:total]]
    if replies and isinstance(replies[0], dict) and "load" in replies[0]:
        return _verdict("load", 0, total, str(replies[0]["load"])[:200])
    passed = sum(accepts(i, reply) for i, reply in enumerate(replies))
    return _verdict("pass" if passed == total else "fail", passed, total, run.ended)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _stdio(item: Item) -> dict[str, Any]:
    tests, tolerance = item["tests"], item.get("tolerance", TOLERANCE)
    run = _run(item, "stdio", program=item["program"], inputs=[test["input"] for test in tests])

    def accepts(i: int, reply: Any) -> bool:
        return same_text(tests[i]["output"], _printed(reply), tolerance)

    return _judged(run, len(tests), accepts)


def _printed(reply: Any) -> str | None:
    """The output of a program that ended well."""
    if not isinstance(reply, dict) or reply.get("ended") != "exit 0":
        return None
    output = reply.get("output")
    return output if isinstance(output, str) else None


def _arguments(item: Item, test: Mapping[str, Any]) -> list[Any]:
    """[args, kwargs] as the guest reads them."""
    args, kwargs = test.get("args", []), test.get("kwargs", {})
    if item.get("tagged"):
        return [args, kwargs]
    return [encode(args), {name: encode(value) for name, value in kwargs.items()}]


def _call(item: Item) -> dict[str, Any]:
    tests, tagged, where = item["tests"], bool(item.get("tagged")), item.get("argument")
    calls = [_arguments(item, test) for test in tests]
    run = _run(item, "calls", program=item["program"], entry=item["entry"], calls=calls)

    def accepts(i: int, reply: Any) -> bool:
        try:
            got = returned(reply, calls[i][0], where)
        except NotPlain:
            return False
        wanted = decode(tests[i]["expected"]) if tagged else tests[i]["expected"]
        return same(wanted, got, item.get("tolerance", TOLERANCE), strict=tagged)

    return _judged(run, len(tests), accepts)


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
        LookupError,
        OverflowError,
        RecursionError,
        MemoryError,
    ) as error:
        raise NotPlain from error


def _plan(item: Item) -> dict[str, Any]:
    """Every call that a data set's own test makes of its reference, in order."""
    run = _run(item, "record", setup=item["setup"], test=item["test"], entry=item["entry"])
    replies = [_parsed(line) for line in run.replies]
    last = replies[-1] if replies else None
    if not run.began or run.ended != "done" or not isinstance(last, dict) or "counts" not in last:
        return {"error": run.message or f"its test ends by {run.ended}"}
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
    calls = [[call["args"], call["kwargs"]] for call in plan["calls"]]
    run = _run(item, "calls", program=item["program"], entry=item["entry"], calls=calls)
    total = max(plan["asserts"], 1)
    first = _judged(run, len(calls), lambda i, reply: _equal(reply, plan["calls"][i].get("reply")))
    if first["verdict"] in ("error", "load"):
        return {**first, "total": total}
    if plan["reference"] and first["verdict"] == "pass":  # the very data on which the test passed
        return {**first, "passed": total, "total": total}
    replies = [_parsed(line) for line in run.replies[: len(calls)]]
    replies += [{"ended": run.ended}] * (len(calls) - len(replies))
    whole = all(isinstance(r, dict) and ("value" in r or "raised" in r) for r in replies)
    if not whole and not item.get("share"):
        return _verdict("fail", 0, total, run.ended)
    order = {key: item[key] for key in ("setup", "test", "entry")}
    return _tallied(_run(item, "check", **order, calls=calls, replies=replies), total)


def _equal(reply: Any, other: Any) -> bool:
    return isinstance(reply, dict) and "value" in reply and json.dumps(reply) == json.dumps(other)


def _tallied(run: GuestRun, total: int) -> dict[str, Any]:
    """The verdict of the test's own asserts over returned data. No program runs in that process."""
    if not run.began:
        return _error(run.message or "the sandbox did not start")
    last = _parsed(run.replies[-1]) if run.replies else None
    if not isinstance(last, dict):  # the returned data make the test run out of memory or time
        return _verdict("fail", 0, total, f"the test ends by {run.ended}")
    if last["astray"]:
        return _error("the test's calls depend on the program's results")
    counts = last["counts"]
    whole = counts["failed"] == 0 and counts["ended"] is True and counts["passed"] >= total
    passed = total if whole else min(counts["passed"], total - 1)
    return _verdict("pass" if whole else "fail", passed, total, run.ended)


def _outputs(item: Item) -> dict[str, Any]:
    """One key an input: equal keys, equal outputs; None where the program gave none."""
    inputs = item["inputs"]
    texts: list[str | None]
    if item["kind"] == "stdio":
        run = _run(item, "stdio", program=item["program"], inputs=inputs)
        outputs = [_printed(_parsed(line)) for line in run.replies]
        texts = [None if text is None else "\n".join(_lines(text)) for text in outputs]
    else:
        calls = [_arguments(item, {"args": args}) for args in inputs]
        run = _run(item, "calls", program=item["program"], entry=item["entry"], calls=calls)
        pairs = zip(run.replies, calls, strict=False)
        texts = [_canonical(_parsed(line), args) for line, (args, _) in pairs]
    if not run.began:
        return {"error": run.message or "the sandbox did not start"}
    texts = (texts + [None] * len(inputs))[: len(inputs)]
    return {"keys": [None if text is None else _digest(text) for text in texts]}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


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
    """The lines of an output, without trailing space and without empty lines at the end."""
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    return "\n".join(lines).rstrip("\n").split("\n")


def same_text(wanted: str, got: str | None, tolerance: float = TOLERANCE) -> bool:
    """Whether two outputs agree: all lines, token by token, decimals within the tolerance. The
    space between tokens does not matter.

    >>> same_text("1 2\\n0.5\\n", "1  2 \\n0.5000000001")
    True
    >>> same_text("1\\n2", "1"), same_text("7", "7.0")
    (False, False)
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

    >>> same([1, [2.0]], (1, (2.0000001,))), same([1], (1,), strict=True)
    (True, False)
    >>> same("1", 1), same(3, 3.0)
    (False, True)
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
