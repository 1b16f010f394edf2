"""Inside the isolation: a data set's own test, run on the reference to record its calls and on
returned data to judge them.

No program under test ever runs in the process of these functions.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from whet.sandbox.guest_child import Order
from whet.sandbox.plain_data import Unplain, decode, encode

_TELLABLE = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    ZeroDivisionError,
    AttributeError,
    OverflowError,
    RuntimeError,
)
TELLABLE = {kind.__name__: kind for kind in _TELLABLE}  # what a test may expect to be raised


def found(namespace: dict[str, Any], entry: str) -> Callable[..., Any]:
    """`f`, `Class.method` or `Class().method` of a program; an instance is made anew each time."""
    name, made, method = re.fullmatch(r"(\w+)(\(\))?(?:\.(\w+))?", entry).groups()  # type: ignore[union-attr]
    thing = namespace[name]
    if made:
        thing = thing()
    return getattr(thing, method) if method else thing


def run(text: str, namespace: dict[str, Any]) -> None:
    """Run a program. The one place in this project where text is executed; it is inside the
    isolation.
    """
    exec(compile(text, "program.py", "exec", dont_inherit=True), namespace)


def replied(value: object, args: list[Any], before: object) -> dict[str, Any]:
    """A call's reply: its value, and its arguments where it changed them."""
    try:
        after = encode(args)
        return {"value": encode(value), **({} if after == before else {"args": after})}
    except Unplain as error:
        return {"raised": "Unplain", "message": str(error)}


def described(error: BaseException) -> dict[str, str]:
    try:
        message = " ".join(str(error).split())[:200]
    except BaseException:  # its __str__ is the program's
        message = ""
    return {"raised": type(error).__name__[:80], "message": message}


def tallied(text: str) -> Any:
    """A test's code in which every assert counts itself and a failed one ends nothing. `assert
    True` counts for nothing.
    """
    import ast  # late: most orders do without

    class Tally(ast.NodeTransformer):
        def visit_Assert(self, node: ast.Assert) -> ast.AST:
            if isinstance(node.test, ast.Constant) and node.test.value:
                return node
            wrapped = ast.parse(
                "try:\n    pass\nexcept Exception:\n    __failed__()\nelse:\n    __passed__()"
            ).body[0]
            assert isinstance(wrapped, ast.Try)
            node.msg = None  # it may call the function once more
            wrapped.body = [node]
            return ast.copy_location(wrapped, node)

    return ast.fix_missing_locations(Tally().visit(ast.parse(text)))


def restored(given: list[Any], after: list[Any]) -> None:
    """What a call did to its arguments, done to the test's own."""
    for mine, other in zip(given, after, strict=True):
        if type(mine) is list and type(other) is list:
            mine[:] = other
        elif isinstance(mine, (dict, set)) and type(mine) is type(other):
            mine.clear()
            mine.update(other)


class Test:
    """A data set's own test, run with a stand-in for the function under test; the reference is what
    `setup` defines.
    """

    def __init__(self, order: Order) -> None:
        import random

        random.seed(0)  # some tests draw their inputs: the same for the reference and the program
        self.counts = {"passed": 0, "failed": 0}
        self.namespace: dict[str, Any] = {"__name__": "test"}
        self.entry = order["entry"]
        run(order["setup"], self.namespace)
        self.tree = tallied(order["test"])
        self.checks = "check" in {getattr(node, "name", "") for node in self.tree.body}

    def count(self, which: str) -> None:
        self.counts[which] += 1

    def run(self, candidate: Callable[..., Any]) -> dict[str, Any]:
        space = self.namespace
        space["candidate"] = candidate
        if not self.checks:
            space[self.entry] = candidate
        space["__passed__"], space["__failed__"] = (
            lambda: self.count("passed"),
            lambda: self.count("failed"),
        )
        ended: object = True
        try:
            exec(compile(self.tree, "test.py", "exec", dont_inherit=True), space)
            if self.checks:
                space["check"](candidate)
        except BaseException as error:
            ended = described(error)
        return {**self.counts, "ended": ended}


def record(order: Order) -> Iterator[object]:
    """Run the test on the reference: every call with its arguments and result, then the counts."""
    test, seen = Test(order), []
    try:
        reference = found(test.namespace, order["entry"])
    except (KeyError, AttributeError):
        reference = None

    def candidate(*args: Any, **kwargs: Any) -> Any:
        call = {
            "args": encode(list(args)),
            "kwargs": {name: encode(value) for name, value in kwargs.items()},
        }
        seen.append(call)
        value = reference(*args, **kwargs) if reference is not None else None
        call["reply"] = replied(value, list(args), call["args"])
        return value

    counts = test.run(candidate)
    yield from seen
    yield {"counts": counts, "reference": reference is not None}


def check(order: Order) -> Iterator[object]:
    """Run the test on results that another process returned: plain data, found by the arguments of
    the recorded calls.
    """
    test, known, astray = Test(order), {}, []
    for call, reply in zip(order["calls"], order["replies"], strict=True):
        known.setdefault(json.dumps(call), []).append(reply)

    def candidate(*args: Any, **kwargs: Any) -> Any:
        call = [encode(list(args)), {name: encode(value) for name, value in kwargs.items()}]
        replies = known.get(json.dumps(call))
        if replies is None:
            astray.append(True)
            raise RuntimeError("the test asks what it did not ask of the reference")
        reply = (
            replies.pop(0) if len(replies) > 1 else replies[0]
        )  # a test that stops early asks fewer times
        if isinstance(reply, dict) and "value" in reply:
            if "args" in reply:
                restored(list(args), decode(reply["args"]))
            return decode(reply["value"])
        raised = reply.get("raised") if isinstance(reply, dict) else None
        raise TELLABLE.get(str(raised), RuntimeError)("the program failed")

    yield {"counts": test.run(candidate), "astray": bool(astray)}
