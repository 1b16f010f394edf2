"""What runs inside the isolation: it reads one order, runs the program on the order's inputs and
sends back plain data.

Sent as text to a bare interpreter (`source`), so it needs nothing but the standard library. The
program shares its process and may break anything here: all that it can forge is its own output, for
no expected value, test or verdict is ever inside.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator

from whet.sandbox.guest_child import Child, Order, write
from whet.sandbox.guest_tests import check, described, found, record, replied, run
from whet.sandbox.plain_data import decode


def limit(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (bound, bound))


def finish() -> None:
    """What an interpreter does at its end: wait for threads, run what was registered, flush."""
    threading = sys.modules.get("threading")
    if threading is not None:
        threading._shutdown()
    import atexit

    atexit._run_exitfuncs()
    sys.stdout.flush()


def as_script(text: str, target: int) -> int:
    """Run a program that reads standard input and writes standard output. Returns its exit code."""
    os.dup2(target, 1)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.__stdin__, sys.__stdout__ = sys.stdin, sys.stdout
    main = type(sys)("__main__")
    sys.modules["__main__"], sys.argv = main, ["program.py"]
    code = 0
    try:
        run(text, main.__dict__)
    except SystemExit as error:
        code = 0 if error.code in (None, 0) else 1
    except BaseException:
        code = 1
    finish()
    return code


def stdio(order: Order) -> Iterator[object]:
    """One reply a test: {"output", "ended"}."""
    until = time.monotonic() + order["total"]
    try:
        compile(order["program"], "program.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        yield {"load": described(error)}
        return
    for text in order["inputs"]:
        child = Child(
            lambda target: as_script(order["program"], target),
            order,
            text.encode("utf-8", "replace"),
        )
        output, ended = child.read(until, renew=False)
        yield {
            "output": output.decode("utf-8", "replace") if ended == "exit 0" else "",
            "ended": ended,
        }
        if order["stop"] and ended != "exit 0":
            return


def answer(order: Order, first: int, target: int) -> int:
    """Load the program, then one line a call, from call `first` on."""
    main = type(sys)("__main__")
    sys.modules["__main__"] = main
    main.__dict__["__name__"] = "program"
    try:
        run(order["program"], main.__dict__)
    except BaseException as error:
        write(target, json.dumps({"load": described(error)}).encode() + b"\n")
        return 1
    for args, kwargs in order["calls"][first:]:
        try:
            given = decode(args), {name: decode(value) for name, value in kwargs.items()}
            value = found(main.__dict__, order["entry"])(*given[0], **given[1])
            line = json.dumps(replied(value, given[0], args)).encode()
        except BaseException as error:
            line = json.dumps(described(error)).encode()
        write(target, line + b"\n")
    return 0


def calls(order: Order) -> Iterator[object]:
    """One reply a call: {"value"}, {"raised"} or {"ended"}; a program that dies is loaded again for
    the next call.
    """
    until, first = time.monotonic() + order["total"], 0
    while first < len(order["calls"]) and time.monotonic() < until:
        child = Child(lambda target, start=first: answer(order, start, target), order)
        data, ended = child.read(until, renew=True)
        for line in data.split(b"\n")[:-1][: len(order["calls"]) - first]:
            try:
                reply = json.loads(line)
            except (ValueError, RecursionError):
                reply = {"ended": "no plain data"}
            yield reply
            if isinstance(reply, dict) and "load" in reply:
                return
            first += 1
        if first < len(order["calls"]):
            yield {"ended": ended}
            first += 1
            if order["stop"]:
                return


def main() -> None:
    order = json.loads(sys.stdin.buffer.read())
    replies = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    limit(order["limits"])
    write(replies, b'{"began": true}\n')
    modes = {"stdio": stdio, "calls": calls, "record": record, "check": check}
    for reply in modes[order["mode"]](order):
        write(replies, json.dumps(reply).encode() + b"\n")
    write(replies, b'{"done": true}\n')


if __name__ == "__main__":
    main()
