"""Inside the isolation: a data set's own test.

It runs on the reference, to record its calls, and on returned data, to judge a program. No program
under test runs in the process of these functions.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from whet.sandbox.guest_child import Order
from whet.sandbox.plain_data import Unplain, decode, encode

_EXPECTED = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    ZeroDivisionError,
    AttributeError,
    OverflowError,
    RuntimeError,
)
EXPECTED = {kind.__name__: kind for kind in _EXPECTED}  # exceptions that a test may expect


def find_entry(namespace: dict[str, Any], entry: str) -> Callable[..., Any]:
    """`f`, `Class.method` or `Class().method` of a program; each time a new instance."""
    name, made, method = re.fullmatch(r"(\w+)(\(\))?(?:\.(\w+))?", entry).groups()  # type: ignore[union-attr]
    thing = namespace[name]
    if made:
        thing = thing()
    return getattr(thing, method) if method else thing


def run(text: str, namespace: dict[str, Any]) -> None:
    """Runs a program. Only this file executes text, and it runs inside the isolation."""
    exec(compile(text, "program.py", "exec", dont_inherit=True), namespace)


def call_reply(value: object, args: list[Any], before: object) -> dict[str, Any]:
    """The reply to a call: its value, and its arguments if they differ from `before`, encoded."""
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
    """A test's syntax tree in which every assert counts itself and a failed one does not end the
    test. An assert of a true constant does not count.
    """
    import ast  # here, because most orders do not need it

    class Tally(ast.NodeTransformer):
        def visit_Assert(self, node: ast.Assert) -> ast.AST:
            if isinstance(node.test, ast.Constant) and node.test.value:
                return node
            wrapped = ast.parse(
                "try:\n    pass\nexcept Exception:\n    __failed__()\nelse:\n    __passed__()"
            ).body[0]
            assert isinstance(wrapped, ast.Try)
            node.msg = None  # the message may call the function once more
            wrapped.body = [node]
            return ast.copy_location(wrapped, node)

    return ast.fix_missing_locations(Tally().visit(ast.parse(text)))


def mutate(args: list[Any], after: list[Any]) -> None:
    """Gives the test's own arguments the contents that the call left in them."""
    for mine, other in zip(args, after, strict=True):
        if type(mine) is list and type(other) is list:
            mine[:] = other
        elif isinstance(mine, (dict, set)) and type(mine) is type(other):
            mine.clear()
            mine.update(other)


class Test:
    """A data set's own test, run with a stand-in for the function under test.

    `setup` is a text that defines the reference.
    """

    def __init__(self, order: Order) -> None:
        import random

        random.seed(0)  # a test that draws its inputs draws the same for reference and program
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
    """Runs the test on the reference. Yields every call with its reply, then the counts."""
    test, seen = Test(order), []
    try:
        reference = find_entry(test.namespace, order["entry"])
    except (KeyError, AttributeError):
        reference = None

    def candidate(*args: Any, **kwargs: Any) -> Any:
        call = {
            "args": encode(list(args)),
            "kwargs": {name: encode(value) for name, value in kwargs.items()},
        }
        seen.append(call)
        value = reference(*args, **kwargs) if reference is not None else None
        call["reply"] = call_reply(value, list(args), call["args"])
        return value

    counts = test.run(candidate)
    yield from seen
    yield {"counts": counts, "reference": reference is not None}


def check(order: Order) -> Iterator[object]:
    """Runs the test on the replies that a program's own process gave to the recorded calls.

    The stand-in looks a reply up by the arguments. Yields the counts, and whether the test made a
    call that was not recorded.
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
                mutate(list(args), decode(reply["args"]))
            return decode(reply["value"])
        raised = reply.get("raised") if isinstance(reply, dict) else None
        raise EXPECTED.get(str(raised), RuntimeError)("the program failed")

    yield {"counts": test.run(candidate), "astray": bool(astray)}
